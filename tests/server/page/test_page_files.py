"""The static route of the page: types, headers, and paths that lead nowhere else."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("llguidance")

from lowbit.serve import App, Service, Settings
from lowbit.serve.page import TYPES, _files

SOURCE = Path(__file__).parents[3] / "src" / "lowbit" / "serve" / "page"


def ask(path, method="GET", headers=(), settings=Settings()):  # noqa: B008 (it is frozen)
    """Status, headers and body of one request, whose path no client has tidied up."""
    sent = []
    scope = {"type": "http", "method": method, "path": path,
             "headers": [(b"host", b"localhost"), *((k.encode(), v.encode()) for k, v in headers)]}  # fmt: skip

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(App(Service(settings, lambda: None))(scope, receive, send))
    start, *bodies = sent
    return start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, b"".join(b["body"] for b in bodies)


@pytest.mark.parametrize("path", sorted(_files()))
def test_a_file_has_its_type_and_the_headers_that_guard_it(path):
    status, headers, body = ask(path)
    assert (status, body) == (200, _files()[path].body)
    assert headers["content-type"] == TYPES[path.rpartition(".")[2] if path != "/" else "html"]
    assert headers["content-length"] == str(len(body))
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-cache"
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert not {"script-src", "img-src", "connect-src", "style-src", "font-src"} & set(policy)
    assert "unsafe" not in headers["content-security-policy"]


def test_a_browser_that_has_a_file_is_not_sent_it_again():
    _, headers, _ = ask("/page/app.js")
    tag = headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        status, again, body = ask("/page/app.js", headers=[("if-none-match", known)])
        assert (status, body, again["etag"]) == (304, b"", tag)
    assert ask("/page/app.js", headers=[("if-none-match", '"other"')])[0] == 200
    assert ask("/page/style.css")[1]["etag"] != tag


@pytest.mark.parametrize(
    "path",
    [
        "/page", "/page/", "/page/index.html", "/page/page.py", "/page/../page.py", "/page/..", "/page/./app.js",
        "/page//app.js", "/page/app.js/", "/page/app.js\0", "/page/..\\page.py", "/page/%2e%2e/page.py", "/page/vendor",
        "/page//etc/passwd", "/page/vendor/marked/LICENSE", "/page/vendor/README.md", "/page/APP.JS", "//page/app.js",
        "/page/" + "../" * 20 + "etc/passwd", "/page/" + "a" * 60_000, "/page/\udcff", "/app.js",
    ],
)  # fmt: skip
def test_a_path_that_is_no_file_of_the_page_is_not_found(path):
    status, headers, body = ask(path)
    assert (status, headers["content-type"]) == (404, "application/json")
    assert b"error" in body


def test_the_page_needs_no_key_and_what_it_asks_does():
    locked = Settings(api_keys=("secret",))
    assert ask("/", settings=locked)[0] == ask("/page/app.js", settings=locked)[0] == 200
    assert ask("/v1/models", settings=locked)[0] == ask("/metrics", settings=locked)[0] == 401


def test_the_page_is_read_and_not_written():
    for method in ("POST", "PUT", "DELETE"):
        assert ask("/", method)[0] == 405
    assert ask("/", "HEAD")[0] == 200


def test_what_a_file_names_is_there():
    for path, file in _files().items():
        text = file.body.decode()
        named = re.findall(r'(?:from|import)\s*\(?"(\.[^"]+)"', text) if path.endswith(".js") else []
        if path == "/":
            named = re.findall(r'(?:src|href)="(?!#)([^"]+)"', text)
        for name in named:
            parts = [*path.split("/")[:-1], *name.split("/")]
            while ".." in parts:
                at = parts.index("..")
                del parts[at - 1 : at + 1]
            assert "/".join(part for part in parts if part != ".") in _files(), (path, name)


def test_the_document_has_no_script_and_no_style_in_it():
    text = _files()["/"].body.decode()
    assert re.findall(r"<script(?![^>]*\ssrc=)", text) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=|https?:", text) == []


def test_the_package_has_every_file_of_the_page():
    here = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*") if path.suffix[1:] in TYPES}
    assert {path.removeprefix("/page/") for path in _files()} == here - {"index.html"} | {"/"}
    for name in ("marked", "dompurify", "speed-highlight"):
        assert (SOURCE / "vendor" / name / "LICENSE").is_file()
