"""Counts for Prometheus."""

from __future__ import annotations

from .http import Call
from .service import Histogram, Service

__all__ = ["metrics"]

_ROWS = (
    ("prompt_tokens_total", "counter", "Tokens of prompts."),
    ("prompt_tokens_known_total", "counter", "Those of them that did not have to be computed."),
    ("tokens_total", "counter", "Tokens made."),
    ("steps_total", "counter", "Steps of the engine."),
    ("requests_finished_total", "counter", "Texts that came to their end."),
    ("requests_cancelled_total", "counter", "Texts that were cancelled, most of them because the client left."),
    ("requests_failed_total", "counter", "Texts that failed."),
    ("requests_running", "gauge", "Texts that are being made."),
    ("requests_waiting", "gauge", "Texts that wait."),
    ("tokens_per_second", "gauge", "Tokens per second of the time that steps took."),
    ("kv_blocks_held", "gauge", "Blocks of keys and values that running texts hold."),
    ("kv_blocks_known", "gauge", "Blocks that are only remembered."),
    ("kv_block_bytes", "gauge", "Size of a block."),
    ("kv_blocks_limit", "gauge", "Most blocks; -1 is no limit."),
    ("kv_disk_bytes", "gauge", "Size of the folder behind them, as last seen."),
    ("kv_disk_read_total", "counter", "Blocks and states that were read there."),
    ("kv_disk_written_total", "counter", "Blocks and states that were written there."),
)


async def metrics(call: Call, service: Service) -> None:
    """Return all counts as text."""
    service.check()
    stats = service.engine.stats()
    kv = stats["kv"]
    disk = kv["disk"] or {"bytes": 0, "read": 0, "written": 0}
    values = (
        stats["prompt_tokens"], stats["known_tokens"], stats["tokens"], stats["steps"], stats["finished"],
        stats["cancelled"], stats["failed"], stats["running"], stats["waiting"], stats["tokens_per_second"],
        kv["held"], kv["known"], kv["block_bytes"], -1 if kv["limit"] is None else kv["limit"],
        disk["bytes"], disk["read"], disk["written"],
    )  # fmt: skip
    lines: list[str] = []
    for (name, kind, words), value in zip(_ROWS, values, strict=True):
        lines += [f"# HELP lowbit_{name} {words}", f"# TYPE lowbit_{name} {kind}", f"lowbit_{name} {value:.12g}"]
    lines += _histogram("first_token_seconds", "From a request to its first token.", service.first_token)
    lines += _histogram("token_seconds", "Mean time between the tokens of a text.", service.between_tokens)
    lines += ["# HELP lowbit_answers_total Answers by status.", "# TYPE lowbit_answers_total counter"]
    lines += [f'lowbit_answers_total{{status="{s}"}} {n}' for s, n in sorted(service.answered.items())]
    headers = {"process-start-time-unix": str(service.started)}
    await call.answer(200, ("\n".join(lines) + "\n").encode(), headers, "text/plain; version=0.0.4; charset=utf-8")


def _histogram(name: str, words: str, histogram: Histogram) -> list[str]:
    lines, n = [f"# HELP lowbit_{name} {words}", f"# TYPE lowbit_{name} histogram"], 0
    for bound, count in zip((*map(str, histogram.BOUNDS), "+Inf"), histogram.counts, strict=True):
        n += count
        lines.append(f'lowbit_{name}_bucket{{le="{bound}"}} {n}')
    return [*lines, f"lowbit_{name}_sum {histogram.total:.12g}", f"lowbit_{name}_count {n}"]
