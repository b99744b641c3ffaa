"""What the page makes of the text of a model, hostile or not."""

from __future__ import annotations

import json
import re

import pytest
from page_reader import ask, expect, last
from page_server import EVIL, UNICODE


def test_an_event_may_be_split_anywhere(page):
    expect(ask(page, "bytes").locator(".prose").last).to_have_text(UNICODE)


def test_lines_of_a_stream_end_in_any_way(page):
    found = page.evaluate(
        """async () => {
            const { events } = await import("/page/api.js");
            const all = [];
            const bytes = new TextEncoder().encode(
                ": hi\\r\\ndata: a\\r\\n\\r\\ndata:b\\rdata:  ü\\r\\revent: x\\ndata: c\\n\\n\\n\\ndata: cut");
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


def test_the_policy_of_the_page_stops_what_got_past_the_sanitiser(browser, address):
    page = browser.new_page()
    page.goto(address)
    tried = page.evaluate(
        """async () => {
            const tried = [];
            addEventListener("securitypolicyviolation", (event) => tried.push(event.effectiveDirective));
            for (const act of [() => { document.body.innerHTML = "<b>x</b>"; },
                () => document.body.setAttribute("onclick", "window.hit = 1"),
                () => { document.body.appendChild(document.createElement("script")).append("window.hit = 1"); }]) {
                try { act(); } catch { tried.push("refused"); }
            }
            const image = new Image();
            image.src = "https://example.com/a.png";
            await new Promise((resolve) => { image.onerror = resolve; });
            return [...new Set(tried)].sort();
        }"""
    )
    assert tried == ["img-src", "refused", "require-trusted-types-for"]
    assert page.evaluate("window.hit") is None
    page.close()


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
