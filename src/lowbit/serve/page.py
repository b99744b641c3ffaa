"""The page at `/`: files of the package, sent as they are."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["routes"]

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Endings of the files that are sent. Licences and notes beside them are not."""

HEADERS = {
    "Cache-Control": "no-cache",  # a browser asks each time, and learns by the ETag that nothing changed
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
        "require-trusted-types-for 'script'; trusted-types dompurify"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Only files of this server, and markup only by way of the sanitiser, whatever a model may write."""


class File(NamedTuple):
    body: bytes
    media_type: str
    etag: str


def _read(folder: resources.abc.Traversable, prefix: str = "") -> dict[str, File]:
    files = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            files |= _read(entry, f"{prefix}{entry.name}/")
        elif media_type := TYPES.get("." + entry.name.rpartition(".")[2]):
            body = entry.read_bytes()
            files[prefix + entry.name] = File(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
    return files


def routes() -> list[Route]:
    """Return the routes of the page: `/` and what it loads, below `/page/`.

    Everything is read here, once: a path of a request is looked up among names and never opened.
    """
    files = _read(resources.files("lowbit.serve") / "page")

    async def send(request: Request) -> Response:
        file = files.get(request.path_params.get("name", "index.html"))
        if file is None:
            raise HTTPException(404, "there is no such file")
        headers = {**HEADERS, "ETag": file.etag}
        known = request.headers.get("if-none-match", "")
        if known == "*" or file.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(file.body, media_type=file.media_type, headers=headers)

    return [Route("/", send), Route("/page/{name:path}", send)]
