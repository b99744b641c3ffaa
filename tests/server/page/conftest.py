"""A browser, a server, and pages of it."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def browser():
    from page_reader import CHROMIUM, sync_api

    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def server():
    from page_server import FakeServer

    return FakeServer()


@pytest.fixture
def address(server):
    with server.running_at() as address:
        yield address


@pytest.fixture
def visit(browser, address):
    """Opens the page in a profile of its own; nothing may go wrong in it, and nothing be asked of another host."""
    wrong, contexts = [], []

    def open_page(viewport=None, **more):
        viewport = viewport or {"width": 1200, "height": 800}
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
