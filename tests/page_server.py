"""A server of the page whose model says what a test wants, for tests/server/test_page.py and to look at the page.

`python tests/page_server.py` serves it at http://127.0.0.1:8765/.
"""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from lowbit.serve import page

STORY = "Once upon a time, there was a **small** cat named Tom. Tom lived in a house with a red door.\n\nOne day, it rained."
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


def event(delta, finish=None, **more):
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"id": "c", "object": "chat.completion.chunk", "model": "lowbit-tiny", "choices": [choice], **more}
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\r\n\r\n"


def words(text):
    return [word + " " for word in text.split(" ")][:-1] + [text.split(" ")[-1]]


class FakeServer:
    """What it saw, and how it shall behave."""

    def __init__(self):
        self.key, self.model, self.pause = None, "lowbit-tiny", 0.0
        self.requests, self.left, self.busy = [], 0, 0
        self.running = 0
        self.app = Starlette(
            routes=[
                *page.routes(),
                Route("/v1/models", self.models),
                Route("/metrics", self.metrics),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
            ]
        )

    def refused(self, request):
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "no key", "type": "authentication_error", "code": 401}}, 401)
        return None

    async def models(self, request):
        return self.refused(request) or JSONResponse({"object": "list", "data": [{"id": self.model}]})

    async def metrics(self, request):
        tokens = sum(1 + self.running for _ in range(20))
        return self.refused(request) or PlainTextResponse(
            f"# HELP lowbit:requests_processing x\nlowbit:requests_processing {self.running}\n"
            f"lowbit:requests_deferred 1\nlowbit:tokens_predicted_total {tokens}\n"
            "lowbit:kv_blocks_held 5\nlowbit:kv_blocks_known 11\nlowbit:kv_blocks_limit 64\n"
        )

    async def chat(self, request):
        if refusal := self.refused(request):
            return refusal
        body = await request.json()
        self.requests.append(body)
        asked = body["messages"][-1]["content"]
        if self.busy:
            self.busy -= 1
            error = {"message": "the queue is full", "type": "rate_limit_error", "code": 429}
            return JSONResponse({"error": error}, 429, {"Retry-After": "2"})
        if asked == "too long":
            error = {"message": "600 of 512 tokens", "type": "invalid_request_error", "code": "context_length_exceeded"}
            return JSONResponse({"error": error}, 400)
        return StreamingResponse(self.stream(asked), media_type="text/event-stream")

    async def stream(self, asked):
        self.running += 1
        try:
            async for piece in self.pieces(asked):
                yield piece
        except (asyncio.CancelledError, GeneratorExit):
            self.left += 1
            raise
        finally:
            self.running -= 1

    async def pieces(self, asked):
        yield event({"role": "assistant"})
        yield ": ping\r\n\r\n"
        if asked == "endless":
            while True:
                await asyncio.sleep(0.02)
                yield event({"content": "la "})
        if asked == "broken":
            yield event({"content": "half an ans"})
            return
        texts = {"evil": EVIL, "rich": RICH, "bytes": UNICODE, "think": "<think>Cats are small.</think>\n\nA cat."}
        text = texts.get(asked, f"{STORY} ({len(self.requests)})")
        if asked == "reason":
            for word in words("It may be a cat."):
                yield event({"reasoning_content": word})
        for word in words(text):
            if asked == "bytes":  # every event in as many chunks as it has bytes
                for byte in event({"content": word}).encode():
                    yield bytes([byte])
                    await asyncio.sleep(0)
            else:
                yield event({"content": word})
            await asyncio.sleep(self.pause)
        yield event({}, "stop")
        timings = {"predicted_per_second": 312.5}
        yield event({}, usage={"completion_tokens": 41}, timings=timings).replace('"choices": [{', '"unused": [{')
        yield "data: [DONE]\r\n\r\n"

    @contextmanager
    def running_at(self, port=0):
        """Serve in a thread; yields the address."""
        server = uvicorn.Server(uvicorn.Config(self.app, port=port, log_level="error", timeout_graceful_shutdown=1))
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
