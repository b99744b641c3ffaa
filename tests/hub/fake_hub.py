"""A server on this machine that speaks as much of the Hugging Face hub's protocol as fetching a model takes."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40


class Repository:
    """Files of a model by name; how the server behaves is set by the attributes."""

    def __init__(self, files, commit=COMMIT):
        self.files, self.commit = dict(files), commit
        self.small = set()  # files that Git keeps itself: named by SHA-1
        self.digests, self.sizes = {}, {}  # what is announced in place of the truth
        self.cut = []  # bytes after which the next answers end
        self.pause = None  # an event to wait for in the middle of each file
        self.refuse = None  # (status, X-Error-Code) of every answer
        self.refuse_files = None  # the same, of files alone
        self.ranges = True

    def entry(self, name):
        data = self.files[name]
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        size = self.sizes.get(name, len(data))
        if name in self.small:
            return {"rfilename": name, "size": size, "blobId": self.digests.get(name, blob)}
        digest = self.digests.get(name, hashlib.sha256(data).hexdigest())
        lfs = {"sha256": digest, "size": size, "pointerSize": 130}
        return {"rfilename": name, "size": size, "blobId": blob, "lfs": lfs}


class FakeHub:
    """The server; `asked` holds what it was asked: (method, path, range, authorization)."""

    def __init__(self):
        self.repositories, self.asked = {}, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_GET  # noqa: N815 (the library's name)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def add(self, name, files, **options):
        self.repositories[name] = Repository(files, **options)
        return self.repositories[name]

    def files_asked(self):
        return [
            (path.partition("/resolve/")[2].partition("/")[2], begin) for path, begin in self.asked_for("/resolve/")
        ]

    def asked_for(self, part):
        return [(path, begin) for path, begin, _ in self.asked if part in path]

    def answer(self, request):
        path = request.path.partition("?")[0]
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = about or file
        if match is None:
            return self.refuse(request, 404, None)
        self.asked.append((path, request.headers.get("Range"), request.headers.get("Authorization")))
        repository = self.repositories.get(match[1])
        if repository is None:
            return self.refuse(request, 401, "RepoNotFound")
        refusal = repository.refuse or (file and repository.refuse_files)
        if refusal:
            return self.refuse(request, *refusal)
        if about:
            siblings = [repository.entry(name) for name in repository.files]
            body = {"id": match[1], "modelId": match[1], "sha": repository.commit, "siblings": siblings, "tags": []}
            return self.send(request, 200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        data = repository.files.get(file[3])
        if data is None or file[2] != repository.commit:
            return self.refuse(request, 404, "EntryNotFound")
        return self.send_file(request, repository, data)

    def send_file(self, request, repository, data):
        begin = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
        start = int(begin[1]) if begin and repository.ranges else 0
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": repository.commit}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        part = data[start:]
        request.send_response(206 if start else 200)
        for name, value in {**headers, "Content-Length": len(part)}.items():
            request.send_header(name, str(value))
        request.end_headers()
        if request.command == "HEAD":
            return
        end = repository.cut.pop(0) if repository.cut else len(part)
        try:
            if repository.pause is not None:
                request.wfile.write(part[: end // 2])
                request.wfile.flush()
                part, end = part[end // 2 :], end - end // 2
                repository.pause.wait(60)
            request.wfile.write(part[:end])
            request.wfile.flush()
        except OSError:  # the other end is gone
            pass
        request.close_connection = end < len(part)

    def refuse(self, request, status, code):
        headers = {"X-Error-Code": code, "X-Error-Message": "not for you"} if code else {}
        return self.send(request, status, b'{"error": "not for you"}', headers)

    def send(self, request, status, body, headers):
        request.send_response(status)
        for name, value in {**headers, "Content-Length": len(body)}.items():
            request.send_header(name, str(value))
        request.end_headers()
        request.wfile.write(body)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def running():
    hub = FakeHub()
    try:
        yield hub
    finally:
        hub.close()


def until(condition):
    """Wait for something that another process does."""
    end = time.monotonic() + 1200
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
