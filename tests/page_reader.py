"""A reader of the page, for tests/server/page: says something, and waits for the answer."""

from __future__ import annotations

import shutil
import time

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("llguidance")
sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
expect.set_options(timeout=60_000)  # the machine may be busy

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)

PHONE = {"width": 360, "height": 640}
SAID = "Once upon a time, there was a small cat named Tom. Tom lived in a house with a red door."


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
    before = page.locator("article").count()
    say(page, text)
    expect(page.locator("article")).to_have_count(before + 2)  # or the answer before this one would count as the last
    return settled(page)


def until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come true")
