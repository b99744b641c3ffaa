"""Counts for Prometheus."""

from __future__ import annotations

from typing import Any

from .http import Call
from .problems import Problem
from .service import Histogram, Service

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
    if not service.settings.metrics:
        raise Problem(501, "this server was started without /metrics", code="not_supported")
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
    lines += _as_llama(service, stats)
    lines += _histogram("first_token_seconds", "From a request to its first token.", service.first_token)
    lines += _histogram("token_seconds", "Mean time between the tokens of a text.", service.between_tokens)
    lines += ["# HELP lowbit_answers_total Answers by status.", "# TYPE lowbit_answers_total counter"]
    lines += [f'lowbit_answers_total{{status="{s}"}} {n}' for s, n in sorted(service.answered.items())]
    headers = {"Process-Start-Time-Unix": str(service.started)}
    await call.answer(200, ("\n".join(lines) + "\n").encode(), headers, "text/plain; version=0.0.4; charset=utf-8")


_LLAMA = (
    ("prompt_tokens_total", "counter", "Number of prompt tokens processed."),
    ("prompt_tokens_cached_total", "counter", "Number of prompt tokens reused from the cache."),
    ("prompt_seconds_total", "counter", "Prompt process time."),
    ("tokens_predicted_total", "counter", "Number of generation tokens processed."),
    ("tokens_predicted_seconds_total", "counter", "Predict process time."),
    ("n_decode_total", "counter", "Total number of steps."),
    ("n_tokens_max", "counter", "Largest observed sequence length, in tokens."),
    ("spec_decode_num_draft_tokens_total", "counter", "Number of proposed tokens; this server proposes none."),
    ("spec_decode_num_accepted_tokens_total", "counter", "Number of accepted ones."),
    ("spec_decode_num_drafts_total", "counter", "Number of proposals."),
    ("prompt_tokens_seconds", "gauge", "Average prompt throughput in tokens/s."),
    ("predicted_tokens_seconds", "gauge", "Average generation throughput in tokens/s."),
    ("requests_processing", "gauge", "Number of requests processing."),
    ("requests_deferred", "gauge", "Number of requests deferred."),
    ("n_busy_slots_per_decode", "gauge", "Average number of busy slots per step."),
)
"""What llama.cpp's server calls such counts, for who watches that already."""


def _as_llama(service: Service, stats: dict[str, Any]) -> list[str]:
    read, made, times = stats["prompt_tokens"] - stats["known_tokens"], stats["tokens"], service.times
    values = (
        read, stats["known_tokens"], times.prompt_seconds, made, times.decode_seconds, stats["steps"], times.longest, 0,
        0, 0, times.prompt_tokens / times.prompt_seconds if times.prompt_seconds else 0,
        times.decode_tokens / times.decode_seconds if times.decode_seconds else 0, stats["running"], stats["waiting"],
        stats["entered"] / stats["steps"] if stats["steps"] else 0,
    )  # fmt: skip
    lines: list[str] = []
    for (name, kind, words), value in zip(_LLAMA, values, strict=True):
        lines += [f"# HELP llamacpp:{name} {words}", f"# TYPE llamacpp:{name} {kind}", f"llamacpp:{name} {value:.12g}"]
    return lines


def _histogram(name: str, words: str, histogram: Histogram) -> list[str]:
    lines, n = [f"# HELP lowbit_{name} {words}", f"# TYPE lowbit_{name} histogram"], 0
    for bound, count in zip((*map(str, histogram.BOUNDS), "+Inf"), histogram.counts, strict=True):
        n += count
        lines.append(f'lowbit_{name}_bucket{{le="{bound}"}} {n}')
    return [*lines, f"lowbit_{name}_sum {histogram.total:.12g}", f"lowbit_{name}_count {n}"]
