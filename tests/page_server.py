"""A server of the page whose model says what a test wants, for tests/server/test_page.py and to look at the page.

`python tests/page_server.py` serves it at http://127.0.0.1:8765/.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from contextlib import contextmanager

import uvicorn

from lowbit.serve import page
from lowbit.serve.http import Call
from lowbit.serve.problems import Problem, openai_form
from lowbit.serve.settings import Settings

STORY = """Once upon a time, there was a **small** cat named Tom. Tom lived in a house with a red door.

One day, it rained."""
EVIL = """<img src=x onerror="window.hit='img'"> <script>window.hit='script'</script> <svg onload="window.hit='svg'">
<a href="javascript:window.hit='html'" id="html">html</a> [link](javascript:window.hit='link') <iframe src="/"></iframe>
[data](data:text/html,<script>window.hit='data'</script>) ![picture](https://example.com/a.png) [rel](/metrics)
<form action="https://example.com"><button>go</button></form> <style>body{display:none}</style>

[good](https://example.com/)

```html"><img src=x onerror=window.hit='fence'>
<img src=x onerror="window.hit='code'">
```
"""
RICH = """## Ternary sums

Every weight is **−1**, **0** or **+1**, so a product needs no multiplication:

| code | weight | what is done |
|---:|---:|---|
| 0 | −1 | subtract |
| 1 | 0 | nothing |
| 2 | +1 | add |

```python
def dot(codes, x):  # codes 0, 1, 2 stand for -1, 0, +1
    return sum((code - 1) * value for code, value in zip(codes, x))
```

1. Exact in `int32`, whatever the order.
2. The same on every processor.

> A row's bits do not depend on the other rows.
"""
UNICODE = "雨の日、小さな猫がいました。🐈‍⬛ Ünïcödé – 𝒳."


def data(chunk):
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\r\n\r\n".encode()


def event(delta, finish=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return data({"object": "chat.completion.chunk", "model": "lowbit-tiny", "choices": [choice]})


def words(text):
    return re.findall(r"[^ ]+ ?", text)


class FakeServer:
    """What it saw, and how it shall behave."""

    def __init__(self):
        self.key, self.models, self.pause = None, ["lowbit-tiny"], 0.0
        self.requests, self.running, self.left, self.busy, self.tokens = [], 0, 0, 0, 0

    async def __call__(self, scope, receive, send):
        assert scope["type"] == "http"
        call, path = Call(scope, receive, send, Settings(), openai_form), scope["path"]
        try:
            if page.serves(path):
                await page.page(call, None)
            elif self.key and call.headers.get("authorization") != f"Bearer {self.key}":
                raise Problem(401, "the API key is missing or wrong")
            elif path == "/v1/models":
                await call.answer(200, {"object": "list", "data": [{"id": name} for name in self.models]})
            elif path == "/metrics":
                counts = {"requests_running": self.running, "requests_waiting": 0, "tokens_total": self.tokens,
                          "kv_blocks_held": 5, "kv_blocks_known": 11, "kv_blocks_limit": 64}  # fmt: skip
                await call.answer(200, "".join(f"lowbit_{name} {n}\n" for name, n in counts.items()).encode())
            elif path == "/v1/chat/completions":
                await self.chat(call, await call.json())
            else:
                raise Problem(404, "there is nothing at this path")
        except Problem as problem:
            await call.fail(problem)
        except asyncio.CancelledError:
            self.left += 1
        finally:
            call.close()

    async def chat(self, call, body):
        self.requests.append(body)
        asked = body["messages"][-1]["content"]
        if self.busy:
            self.busy -= 1
            raise Problem(429, "the queue is full", headers={"retry-after": "2"})
        if asked == "too long":
            raise Problem(400, "600 of 512 tokens", code="context_length_exceeded")
        events = await call.events(lambda problem: b"")
        self.running += 1
        try:
            async for piece in self.pieces(asked):
                for part in [bytes([byte]) for byte in piece] if asked == "bytes" else [piece]:
                    await call.send(part)
                self.tokens += 1
                await asyncio.sleep(self.pause)
            await events.end(b"" if asked == "broken" else b"data: [DONE]\r\n\r\n")
        finally:
            self.running -= 1

    async def pieces(self, asked):
        yield event({"role": "assistant"})
        yield b": ping\r\n\r\n"
        while asked == "endless":
            await asyncio.sleep(0.02)
            yield event({"content": "la "})
        if asked == "broken":
            yield event({"content": "half an ans"})
            return
        texts = {"evil": EVIL, "rich": RICH, "bytes": UNICODE, "think": "<think>Cats are small.</think>\n\nA cat."}
        for word in words("It may be a cat.") if asked == "reason" else []:
            yield event({"reasoning_content": word})
        for word in words(texts.get(asked, f"{STORY} ({len(self.requests)})")):
            yield event({"content": word})
        yield event({}, "stop")
        yield data({"choices": [], "usage": {"completion_tokens": 41}, "timings": {"predicted_per_second": 312.5}})

    @contextmanager
    def running_at(self, port=0):
        """Serve in a thread; yields the address."""
        server = uvicorn.Server(
            uvicorn.Config(self, port=port, lifespan="off", log_level="error", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                thread.join(0.01)
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    fake = FakeServer()
    fake.pause = 0.03
    with fake.running_at(8765) as address:
        print(address)
        threading.Event().wait()
