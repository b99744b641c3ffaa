"""The page at `/`: files of the package, sent as they are."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

from .http import Call
from .problems import Problem
from .service import Service

if TYPE_CHECKING:
    from importlib.abc import Traversable

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
"""Endings of the files that are sent. Licences and notes beside them are not."""

HEADERS = {
    "cache-control": "no-cache",  # a browser asks each time, and learns by the ETag that nothing changed
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
        "require-trusted-types-for 'script'; trusted-types dompurify"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Only files of this server, and markup only by way of the sanitiser, whatever a model may write."""


class _File(NamedTuple):
    body: bytes
    kind: str
    etag: str


@cache
def _files() -> dict[str, _File]:
    """All files by path, read once: the path of a request is looked up here, and never opened."""
    found: dict[str, _File] = {}

    def read(folder: Traversable, path: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                read(entry, f"{path}{entry.name}/")
            elif kind := TYPES.get(entry.name.rpartition(".")[2]):
                body = entry.read_bytes()
                found[path + entry.name] = _File(body, kind, f'"{hashlib.sha256(body).hexdigest()[:32]}"')

    read(resources.files("lowbit.serve") / "page", "/page/")
    found["/"] = found.pop("/page/index.html")
    return found


def serves(path: str) -> bool:
    """Tell whether a path is one of the page's, which nobody needs a key for."""
    return path == "/" or path.startswith("/page/")


async def page(call: Call, service: Service) -> None:
    """Send a file, or word that the browser has it."""
    file = _files().get(call.scope["path"])
    if file is None:
        raise Problem(404, "there is nothing at this path", code="not_found")
    headers = {**HEADERS, "etag": file.etag, "content-length": str(len(file.body))}
    known = [tag.strip().removeprefix("W/") for tag in call.headers.get("if-none-match", "").split(",")]
    if file.etag in known or known == ["*"]:
        await call.answer(304, b"", headers, file.kind)
    else:
        await call.answer(200, file.body, headers, file.kind)
