"""The page for every eye and hand: colours, languages, phones, keyboards, screen readers."""

from __future__ import annotations

import re

import pytest
from page_reader import PHONE, ask, expect, last, say, settled


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_colours_follow_the_system_until_they_are_chosen(visit):
    page = visit(color_scheme="dark")
    dark = background(page)
    page.emulate_media(color_scheme="light")
    light = background(page)
    assert dark != light
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("radio", name="Dark").check(force=True)
    assert background(page) == dark
    page.reload()
    assert background(page) == dark
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_the_language_is_that_of_the_browser_until_it_is_chosen(visit):
    page = visit(locale="ja-JP")
    expect(page.locator("html")).to_have_attribute("lang", "ja")
    expect(page.get_by_role("textbox", name="メッセージ")).to_be_visible()
    ask(page, "ねこ")
    page.get_by_role("button", name="設定").click()
    page.get_by_label("言語").select_option("en")
    expect(page.locator("#settings h2")).to_have_text("Settings")
    page.get_by_role("button", name="Done").click()
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(last(page).locator(".stats")).to_contain_text("tokens/s")


def test_every_language_says_everything(page):
    strings = page.evaluate('import("/page/strings.js").then((module) => module.strings)')
    assert set(strings) == {"en", "ja"}
    for table in strings.values():
        assert list(table) == list(strings["en"])
        for key, text in table.items():
            assert text.strip()
            assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", strings["en"][key])), key
    used = page.evaluate(
        """() => [...document.querySelectorAll("[data-t], [data-t-label], [data-t-placeholder]")].flatMap(
            (e) => [e.dataset.t, e.dataset.tLabel, e.dataset.tPlaceholder].filter(Boolean))"""
    )
    assert set(used) <= set(strings["en"])


def test_the_first_screen_suggests_what_the_small_model_can_do(server, page):
    suggestions = page.locator("#welcome li button")
    expect(suggestions).to_have_count(3)
    expect(suggestions.first).to_contain_text("Tell me a story")
    suggestions.first.click()
    expect(settled(page)).to_contain_text("Once upon")
    assert server.requests[0]["messages"][0]["content"].startswith("Tell me a story")


def sideways(page):
    return page.evaluate(
        """() => [document.documentElement, document.body, document.getElementById("scroll")]
            .some((e) => e.scrollWidth > e.clientWidth)"""
    )


@pytest.mark.parametrize("locale", ["en-US", "ja-JP"])
def test_nothing_is_wider_than_a_phone(visit, locale):
    page = visit(PHONE, locale=locale, has_touch=True, is_mobile=True)
    assert not sideways(page)
    ask(page, "rich")
    ask(page, "w" * 400)
    ask(page, "evil")
    assert not sideways(page)
    assert page.locator("#sidebar").evaluate("e => e.inert")
    page.locator("#open-list").click()
    expect(page.locator("#new")).to_be_in_viewport()
    assert not sideways(page)
    page.locator("#open-settings").click()
    assert not page.locator("#settings").evaluate("e => e.scrollWidth > e.clientWidth")
    page.keyboard.press("Escape")
    page.locator("#new").click()
    expect(page.locator("#sidebar")).not_to_be_in_viewport()
    expect(page.locator("#welcome")).to_be_visible()


def test_everything_is_done_by_keyboard(server, page):
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert server.requests == []
    page.keyboard.press("Enter")
    settled(page)
    assert server.requests[0]["messages"][0]["content"] == "one\ntwo"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Control+A")
    page.keyboard.type("three")
    page.keyboard.press("Enter")
    expect(settled(page)).to_contain_text("(2)")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.press("Control+Shift+O")
    page.keyboard.type("four")
    page.keyboard.press("Enter")
    settled(page)
    page.keyboard.press("Alt+ArrowDown")
    expect(page.locator("article.user .said")).to_have_text("three")
    page.keyboard.press("Alt+ArrowUp")
    expect(page.locator("article.user .said")).to_have_text("four")
    page.keyboard.press("Control+/")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).not_to_be_visible()
    page.keyboard.press("Control+B")
    expect(page.locator("#new")).not_to_be_visible()
    page.keyboard.press("Enter")  # on the button that brings it back
    expect(page.locator("#new")).to_be_visible()


def test_focus_goes_everywhere_and_is_seen(visit):
    page = visit(reduced_motion="reduce")  # what appears is there at once
    ask(page, "hello")
    page.reload()
    expect(page.locator("article")).to_have_count(2)
    page.evaluate("document.activeElement.blur()")
    border = "getComputedStyle(document.getElementById('composer')).borderTopColor"
    plain, seen = page.evaluate(border), {}
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outlined = page.evaluate(
            """() => {
                const e = document.activeElement;
                const visible = (e) => !e || (getComputedStyle(e).opacity > 0.9 && visible(e.parentElement));
                return [e === document.body ? "" : e.getAttribute("aria-label") || e.textContent.trim(),
                    visible(e) && (e.id === "prompt" || getComputedStyle(e).outlineStyle !== "none")];
            }"""
        )
        if name:  # and not the document, which the browser's own controls lie behind
            seen[name] = outlined and (name != "Message" or page.evaluate(border) != plain)
    assert {name for name, outlined in seen.items() if not outlined} == set()
    assert set(seen) >= {"Skip to the message box", "Hide conversations", "New conversation", "hello", "Settings",
                         "Keyboard shortcuts", "Title of this conversation", "More about this conversation", "Copy",
                         "Edit", "Message"}  # fmt: skip


def test_every_control_has_a_name(page):
    ask(page, "rich")
    page.get_by_role("button", name="Settings").click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, [role=img], dialog, nav")]
            .filter((e) => !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.labels?.length
                || e.textContent.trim()))
            .map((e) => e.outerHTML)"""
    )
    assert nameless == []


def test_enter_that_ends_a_japanese_word_sends_nothing(server, page):
    page.locator("#prompt").fill("ねこ")
    page.locator("#prompt").evaluate(
        """e => e.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", isComposing: true, bubbles: true }))"""
    )
    page.wait_for_timeout(100)
    assert server.requests == []
    expect(page.locator("#prompt")).to_have_value("ねこ")


def test_nothing_moves_for_those_who_do_not_want_it(visit):
    page = visit(reduced_motion="reduce")
    say(page, "endless")
    expect(last(page)).to_contain_text("la la")
    moving = page.evaluate("document.getAnimations().length")
    assert moving == 0
    page.keyboard.press("Escape")
