"""The page in a browser, against a server that says what a test wants."""

from __future__ import annotations

import json
import re
import shutil
import time

import pytest

pytest.importorskip("uvicorn")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from page_server import EVIL, STORY, UNICODE, FakeServer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)

expect = sync_api.expect
WIDE, PHONE = {"width": 1200, "height": 800}, {"width": 360, "height": 640}
SAID = "Once upon a time, there was a small cat named Tom. Tom lived in a house with a red door."


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def server():
    return FakeServer()


@pytest.fixture
def address(server):
    with server.running_at() as address:
        yield address


@pytest.fixture
def visit(browser, address):
    """Opens the page in a profile of its own; nothing may go wrong in it, and nothing be asked of another host."""
    wrong, contexts = [], []

    def open_page(viewport=WIDE, **more):
        context = browser.new_context(viewport=viewport, **{"locale": "en-US", **more})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda m: m.type == "error" and "status of 4" not in m.text and wrong.append(m.text))
        page.on("request", lambda r: r.url.startswith((address, "data:", "blob:")) or wrong.append(r.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def page(visit):
    return visit()


def say(page, text):
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press("Enter")


def last(page):
    return page.locator("article").last


def settled(page):
    """The last answer, when it is whole."""
    expect(last(page)).to_have_attribute("aria-busy", "false")
    return last(page)


def ask(page, text):
    say(page, text)
    return settled(page)


def until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come true")


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


def test_an_event_may_be_split_anywhere(page):
    expect(ask(page, "bytes").locator(".prose").last).to_have_text(UNICODE)


def test_lines_of_a_stream_end_in_any_way(page):
    found = page.evaluate(
        """async () => {
            const { events } = await import("/page/api.js");
            const all = [];
            const bytes = new TextEncoder().encode(": hi\\r\\ndata: a\\r\\n\\r\\ndata:b\\rdata:  ü\\r\\revent: x\\ndata: c\\n\\n\\n\\ndata: cut");
            for (let size = 1; size <= bytes.length; size++) {
                const parts = [];
                for (let i = 0; i < bytes.length; i += size) parts.push(bytes.slice(i, i + size));
                const said = [];
                const body = new ReadableStream({ start(c) { parts.forEach((p) => c.enqueue(p)); c.close(); } });
                for await (const event of events(body)) said.push(event);
                all.push(JSON.stringify(said));
            }
            return [...new Set(all)];
        }"""
    )
    assert [json.loads(one) for one in found] == [["a", "b\n ü", "c"]]


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
    server.pause = 0.04
    say(page, "one")
    expect(last(page)).to_contain_text("Once")
    page.locator("#new").click()
    say(page, "two")
    expect(last(page)).to_contain_text("Once")
    assert server.running == 2
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


def test_what_a_model_writes_does_nothing(address, page):
    page.evaluate(
        "window.violations = []; addEventListener('securitypolicyviolation', (e) => violations.push(e.blockedURI))"
    )
    answer = ask(page, "evil")
    expect(answer).to_contain_text("<img src=x onerror=\"window.hit='img'\">")
    expect(answer).to_contain_text("<script>window.hit='script'</script>")
    assert page.locator("#log :is(img, script, style, iframe, form, object, embed, link, meta)").count() == 0
    assert page.locator("#log svg").evaluate_all("all => all.every((svg) => svg.matches('.icon'))")
    assert page.evaluate(
        """() => [...document.querySelectorAll("#log *")].every((e) =>
            [...e.attributes].every(({ name }) => !name.startsWith("on") && name !== "style"))"""
    )
    links = answer.locator(".prose a[href]")
    assert links.evaluate_all("all => all.map((a) => [a.getAttribute('href'), a.rel, a.target])") == [
        [href, "noopener noreferrer nofollow", "_blank"]
        for href in ("https://example.com/a.png", "https://example.com/")
    ]
    for text in ("link", "data", "rel"):
        answer.locator(".prose a", has_text=re.compile(f"^{text}$")).click()
    answer.locator(".code code").click()
    assert page.evaluate("window.hit") is None
    assert page.evaluate("window.violations") == []
    assert page.url.startswith(address)
    page.reload()
    expect(last(page)).to_contain_text("window.hit='code'")
    assert page.evaluate("window.hit") is None


def test_the_policy_of_the_page_stops_what_got_past_the_sanitiser(page):
    blocked = page.evaluate(
        """() => {
            const tried = [];
            for (const act of [() => { document.body.innerHTML = "<b>x</b>"; }, () => eval("1"),
                () => { document.createElement("script").text = "window.hit = 1"; }]) {
                try { act(); tried.push("done"); } catch (error) { tried.push("refused"); }
            }
            return tried;
        }"""
    )
    assert blocked == ["refused"] * 3


@pytest.mark.parametrize("text", [EVIL, "a < b & c > d", "[x](https://a.b/?q=\"'><img src=x>)", "<", "```\n<b>"])
def test_the_text_of_an_answer_is_rendered_the_same_however_it_grew(page, text):
    whole, grown = page.evaluate(
        """async (text) => {
            const { render, renderInto } = await import("/page/markdown.js");
            const [whole, grown] = [document.createElement("div"), document.createElement("div")];
            whole.append(render(text));
            for (let n = 0; n <= text.length; n++) renderInto(grown, text.slice(0, n));
            return [whole.outerHTML, grown.outerHTML];
        }""",
        text,
    )
    assert whole == grown


@pytest.mark.parametrize("asked", ["think", "reason"])
def test_thoughts_are_folded_away_and_not_told_to_the_model(server, page, asked):
    answer = ask(page, asked)
    thought = "Cats are small." if asked == "think" else "It may be a cat."
    assert not answer.locator("details").evaluate("details => details.open")
    expect(answer.get_by_text(thought)).not_to_be_visible()
    expect(answer.locator("> .body > .prose")).not_to_contain_text(thought)
    answer.locator("summary").click()
    expect(answer.get_by_text(thought)).to_be_visible()
    ask(page, "go on")
    assert thought not in json.dumps(server.requests[-1])


def test_thoughts_are_told_from_answers(page):
    texts = ["<think>a</think>b", "  <think>\na", "a</think>\n\nb", "<thi", "<think>a</thi", "no <think>a</think>", "b"]
    found = page.evaluate(
        """async (texts) => {
            const { splitThought } = await import("/page/conversation.js");
            return texts.map((text) => Object.values(splitThought({ text })));
        }""",
        texts,
    )
    assert found == [
        ["a", "b", False], ["a", "", True], ["a", "b", False], ["", "", True], ["a", "", True],
        ["", "no <think>a</think>", False], ["", "b", False],
    ]  # fmt: skip


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
    page.get_by_label("API key").last.fill("wrong")
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


def test_focus_goes_everywhere_and_is_seen(page):
    ask(page, "hello")
    page.reload()
    expect(page.locator("article")).to_have_count(2)
    page.evaluate("document.activeElement.blur()")
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            """() => { const e = document.activeElement;
                const s = getComputedStyle(e);
                const opaque = (e) => !e || (getComputedStyle(e).opacity > 0.3 && opaque(e.parentElement));
                return [e.getAttribute("aria-label") || e.textContent.trim(), e.id === "prompt"
                    ? getComputedStyle(document.getElementById("composer")).borderColor !== ""
                    : s.outlineStyle !== "none" && opaque(e)]; }"""
        )
        if name in seen:
            break
        seen.append(name)
        assert outline, name
    for name in ("Skip to the message box", "New conversation", "hello", "Settings", "Keyboard shortcuts", "Message",
                 "Title of this conversation", "More about this conversation", "Copy", "Edit", "Answer again"):  # fmt: skip
        assert name in seen or name == "Copy"


def test_every_control_has_a_name(page):
    ask(page, "rich")
    page.get_by_role("button", name="Settings").click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, [role=img], dialog, nav")].filter((e) =>
            !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length || e.getAttribute("aria-labelledby")))
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
