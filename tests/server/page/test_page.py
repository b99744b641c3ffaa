"""The page in a browser: conversations, settings, errors, against a server that says what a test wants."""

from __future__ import annotations

import json
import re

import pytest
from page_reader import SAID, ask, expect, last, say, settled, until
from page_server import STORY


def test_an_answer_is_read_as_it_comes(server, page):
    server.pause = 0.05
    say(page, "a cat")
    expect(last(page)).to_contain_text("Once upon")
    expect(last(page)).to_have_attribute("aria-busy", "true")
    answer = settled(page)
    expect(answer.locator(".prose p").first).to_have_text(SAID)
    expect(answer.locator("strong")).to_have_text("small")
    expect(answer.locator(".stats")).to_contain_text("313 tokens/s")
    expect(answer.locator(".stats")).to_contain_text("41 tokens")
    expect(answer.locator(".stats")).to_contain_text("first after")
    assert server.requests == [
        {"model": "lowbit-tiny", "messages": [{"role": "user", "content": "a cat"}], "stream": True,
         "stream_options": {"include_usage": True}}
    ]  # fmt: skip
    expect(page.locator("#announcer")).to_contain_text(f"The model wrote: {STORY[:40]}")


@pytest.mark.parametrize("how", ["key", "button"])
def test_an_answer_is_stopped(server, page, how):
    say(page, "endless")
    expect(last(page)).to_contain_text("la la la")
    if how == "key":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="Stop").click()
    expect(settled(page).locator(".stats")).to_contain_text("Stopped")
    until(lambda: (server.running, server.left) == (0, 1))
    expect(last(page)).to_contain_text("la la la")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    ask(page, "and now")
    assert [m["role"] for m in server.requests[-1]["messages"]] == ["user", "assistant", "user"]


def test_an_edited_message_is_another_version_and_loses_nothing(server, page):
    ask(page, "first")
    ask(page, "second")
    page.locator("article.user").first.hover()
    page.locator("article.user").first.get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Edit").fill("better")
    page.get_by_role("button", name="Send again").click()
    expect(settled(page)).to_contain_text("(3)")
    assert [m["content"] for m in server.requests[-1]["messages"]] == ["better"]
    expect(page.locator("article")).to_have_count(2)
    page.locator("article.user").hover()
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator("article.user .said")).to_have_text(["first", "second"])
    expect(last(page)).to_contain_text("(2)")


def test_another_answer_keeps_the_first(server, page):
    ask(page, "first")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".versions")).to_have_text("2/2")
    expect(settled(page)).to_contain_text("(2)")
    assert server.requests[0] == server.requests[1]
    page.get_by_role("button", name="Previous version").click()
    expect(last(page)).to_contain_text("(1)")


def test_a_conversation_outlives_the_page(server, page):
    ask(page, "about a cat")
    ask(page, "and a dog")
    page.reload()
    expect(page.locator("article.user .said")).to_have_text(["about a cat", "and a dog"])
    expect(last(page)).to_contain_text("(2)")
    expect(page.locator("#list [aria-current]")).to_have_text("about a cat")
    assert len(server.requests) == 2
    page.keyboard.press("Control+Shift+O")
    expect(page.locator("article")).to_have_count(0)
    page.locator("#list").get_by_text("about a cat").click()
    expect(page.locator("article")).to_have_count(4)


def test_a_page_that_is_closed_over_an_answer_keeps_what_was_said(page):
    say(page, "endless")
    expect(last(page)).to_contain_text("la la la")
    page.wait_for_timeout(1500)
    page.reload()
    expect(last(page)).to_contain_text("la la la")
    expect(last(page).locator(".stats")).to_contain_text("Stopped")


def test_two_conversations_are_answered_at_a_time(server, page):
    server.pause = 1.0
    say(page, "one")
    expect(last(page)).to_contain_text("Once")
    page.locator("#new").click()
    say(page, "two")
    expect(last(page)).to_contain_text("Once")
    assert server.running == 2
    server.pause = 0.0
    expect(settled(page)).to_contain_text("(2)")
    page.locator("#list").get_by_text("one").click()
    expect(settled(page)).to_contain_text("(1)")
    expect(page.locator("article")).to_have_count(2)


def menu(page, name):
    page.locator("#more").click()
    page.get_by_role("menuitem", name=name).click()


def test_a_conversation_is_renamed_exported_deleted_and_brought_back(page):
    ask(page, "think")
    menu(page, "Rename")
    page.keyboard.type("Cats & dogs")
    page.keyboard.press("Enter")
    expect(page.locator("#list [aria-current]")).to_have_text("Cats & dogs")
    with page.expect_download() as download:
        menu(page, "Export as JSON")
    assert download.value.suggested_filename == "Cats-dogs.json"
    exported = json.loads(download.value.path().read_text("utf-8"))
    assert exported["title"] == "Cats & dogs"
    assert [m["content"] for m in exported["messages"]] == ["think", "A cat."]
    assert exported["messages"][1]["reasoning_content"] == "Cats are small."
    with page.expect_download() as download:
        menu(page, "Export as Markdown")
    assert download.value.path().read_text("utf-8") == "# Cats & dogs\n\n## You\n\nthink\n\n## Model\n\nA cat.\n"
    menu(page, "Delete")
    expect(page.locator("#list button")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#list [aria-current]")).to_have_text("Cats & dogs")
    menu(page, "Delete")
    page.reload()
    expect(page.locator("#welcome")).to_be_visible()
    expect(page.locator("#list button")).to_have_count(0)


def test_settings_are_sent_where_they_are_set(server, page):
    page.keyboard.press("Control+,")
    for label, value in (("Temperature", "0.25"), ("Top p", "0.9"), ("Top k", "7"), ("Min p", "0.05"),
                         ("Longest answer", "99"), ("Seed", "3")):  # fmt: skip
        page.get_by_role("spinbutton", name=label).fill(value)
    page.get_by_role("textbox", name="System prompt").fill("Be brief.")
    page.get_by_role("button", name="Done").click()
    ask(page, "hello")
    sent = {"temperature": 0.25, "top_p": 0.9, "top_k": 7, "min_p": 0.05, "max_tokens": 99, "seed": 3}
    assert {name: server.requests[-1].get(name) for name in sent} == sent
    assert server.requests[-1]["messages"][0] == {"role": "system", "content": "Be brief."}
    page.reload()
    page.keyboard.press("Control+,")
    page.get_by_role("spinbutton", name="Top p").fill("2")
    page.get_by_role("button", name="Done").click()
    expect(page.locator("#settings")).to_be_visible()  # what cannot be is not accepted
    page.get_by_role("button", name="Empty all fields").click()
    page.get_by_role("button", name="Done").click()
    ask(page, "again")
    assert set(server.requests[-1]) == {"model", "messages", "stream", "stream_options"}
    assert server.requests[-1]["messages"][0]["role"] == "user"


def test_a_server_with_a_key_is_asked_again_with_it(server, visit):
    server.key = "secret"
    page = visit()
    page.locator("#ask-key input").fill("wrong")
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#ask-key")).to_be_visible()
    page.locator("#ask-key input").fill("secret")
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#model")).to_have_text("lowbit-tiny")
    expect(ask(page, "hello")).to_contain_text("Once upon")
    assert page.evaluate("JSON.stringify(localStorage)").count("secret") == 0


def test_a_full_queue_says_so_and_can_be_tried_again(server, page):
    server.busy = 1
    answer = ask(page, "hello")
    expect(answer.get_by_role("alert")).to_contain_text("asks to try again in 2 s")
    answer.get_by_role("button", name="Try again").click()
    expect(last(page)).to_contain_text("Once upon")
    assert server.requests[0] == server.requests[1]


@pytest.mark.parametrize(("asked", "says"), [("broken", "connection broke"), ("too long", "no longer fits")])
def test_what_went_wrong_is_said(page, asked, says):
    expect(ask(page, asked).get_by_role("alert")).to_contain_text(says)
    if asked == "broken":
        expect(last(page)).to_contain_text("half an ans")
    page.reload()
    expect(last(page).get_by_role("alert")).to_contain_text(says)


def test_a_server_that_is_gone_is_missed_and_found_again(server, browser):
    with server.running_at() as address:
        port = int(address.rsplit(":", 1)[1].strip("/"))
        page = browser.new_page(locale="en-US")
        page.goto(address)
        expect(page.locator("#model")).to_have_text("lowbit-tiny")
    expect(ask(page, "hello").get_by_role("alert")).to_contain_text("does not answer")
    expect(page.locator("#engine")).to_contain_text("no answer")
    with server.running_at(port):
        page.get_by_role("button", name="Try again").click()
        expect(settled(page)).to_contain_text("Once upon")
        expect(page.locator("#engine svg")).to_be_visible()
        page.close()


def test_the_engine_is_pictured(page):
    picture = page.locator("#engine svg")
    expect(picture).to_have_attribute("aria-label", re.compile("0 running, 0 waiting, 5 of 64 blocks"))
    assert picture.locator("rect.held").count() == 3  # of 36 cells
    assert picture.locator("rect.known").count() == 6
    say(page, "endless")
    expect(page.locator("#engine")).to_contain_text("1 running")
    expect(page.locator("#engine")).to_contain_text("tokens/s")
    page.keyboard.press("Escape")


def test_one_of_several_models_is_chosen(server, visit):
    server.models = ["small", "large"]
    page = visit()
    page.get_by_role("combobox", name="Model").select_option("large")
    ask(page, "hello")
    assert server.requests[-1]["model"] == "large"
    expect(page.locator("#welcome li")).to_have_count(3)


def test_a_conversation_that_is_deleted_while_it_is_answered_stays_deleted(server, page):
    say(page, "endless")
    expect(last(page)).to_contain_text("la la la")
    menu(page, "Delete")
    until(lambda: server.running == 0)
    page.wait_for_timeout(300)
    page.reload()
    expect(page.locator("#welcome")).to_be_visible()
    expect(page.locator("#list button")).to_have_count(0)


def test_what_one_tab_says_another_one_lists(page):
    ask(page, "here")
    other = page.context.new_page()
    other.goto(page.url.split("#")[0])
    expect(other.locator("#list button").first).to_have_text("here")
    ask(other, "there")
    expect(page.locator("#list .row-button")).to_have_text(["there", "here"])
    expect(page.locator("article.user .said")).to_have_text("here")
