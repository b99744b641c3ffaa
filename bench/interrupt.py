"""From Ctrl-C to the end of the process, for each command at work.

    python bench/interrupt.py [--shape 0.7B] [--cache DIR] [--presses 5] [--only NAME;NAME] [--json FILE]

Each command is interrupted at several moments, spread over its work, in a process of its own: with SIGINT, which is
what Ctrl-C sends. The models are random ones of `lowbit bench`. "work" is what all threads of the process computed in
that time, which a busy machine does not change. Where a command has ended before, "ended" stands in the table.
"train" needs torch; the Python that has it may find lowbit by PYTHONPATH.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from random_gguf import write_random_gguf

WORDS = "w1 w2 w3 "
PORT = 18080


@dataclass
class Case:
    """A command, and when to press Ctrl-C.

    Attributes
    ----------
    arguments : str
        Behind ``lowbit``, or Python; ``{large}`` and ``{float}`` are models, ``{text}`` and ``{words}`` a long and a
        short text.
    first, last : float
        Seconds between which it is pressed: after the start, or after `begun`.
    begun : str
        ``start``; ``output``, when something has been printed on standard output; or what is then on standard error.
    ask : bool
        Ask the server something before.
    """

    name: str
    arguments: str
    first: float
    last: float
    begun: str = "start"
    ask: bool = False


TRAIN = "train {stories} -o {out}.gguf --vocabulary embedded --steps 100000"
CASES = [
    Case("while it starts", "generate w1 -m {large}", 0.1, 0.25),
    Case("generate, loading", "generate w1 -m {large} -n 1000", 0.3, 0.9),
    Case("generate, prompt", "generate -f {words} -m {large}", 1.5, 3.5),
    Case(
        "generate, prompt, under --max-ram",
        "generate -f {short} -m {large} --max-ram 200MB -c 512 --kv-type int8",
        0.8,
        2.0,
    ),
    Case("generate, decode", "generate w1 -m {large} -n 5000", 0.1, 1.0, "output"),
    Case("generate, decode, under --max-ram", "generate w1 -m {large} -n 5000 --max-ram 120MB", 0.1, 1.0, "output"),
    Case("generate --json --logprobs 5", "generate w1 -m {large} -n 5000 --json --logprobs 5", 1.5, 2.5),
    Case("generate --context-shift", "generate w1 -m {large} -c 64 -n 5000 --context-shift", 0.2, 3.0, "output"),
    Case("generate --json-schema", "generate w1 -m {large} -n 5000 --json-schema {schema}", 0.1, 1.0, "output"),
    Case("chat, one question", "chat -f {words} -m {large}", 1.5, 3.5),
    Case("perplexity", "perplexity {text} -m {large}", 3.0, 5.0),
    Case("Model.logits", "PYTHON {logits}", 1.5, 3.5),
    Case("Model.embed", "PYTHON {embed}", 1.5, 3.5),
    Case("tokenize", "tokenize - -m {large}", 0.4, 0.9),
    Case("bench", "bench -m {large} -p 1000 -t 1 --repeat 9", 1.5, 3.5),
    Case("bench --profile", "bench -m {large} -t 1 --profile", 1.5, 4.5),
    Case("batch", "batch {requests} -o {out}.jsonl -m {large} --alias *", 2.0, 4.0),
    Case("serve, idle", "serve -m {large} --port {port}", 0.1, 0.5, "serving"),
    Case("serve --grace 0, answering", "serve -m {large} --port {port} --grace 0", 1.0, 2.0, "serving", True),
    Case("cache warm", "cache warm --text {words} --kv-disk {out}.kv -m {large}", 1.5, 3.5),
    Case("info", "info {large}", 0.1, 0.2),
    Case("convert --type f16", "convert {large} {out}.gguf --type f16", 0.5, 2.0),
    Case("convert --type q4_k_m", "convert {large} {out}.gguf --type q4_k_m", 1.0, 5.0),
    Case("quantize --type int4", "quantize {float} {out}.gguf --type int4", 0.5, 1.0),
    Case("quantize --type ternary", "quantize {float} {out}.gguf --type ternary", 0.5, 1.0),
    Case("quantize --policy dynamic", "quantize {float} {out}.gguf --policy dynamic --bits 6 --text {text}", 1.5, 4.5),
    Case("calibrate", "calibrate -m {large} --text {text} --target 0.5 -o {out}.json", 3.0, 5.0),
    Case("train, before the first step", f"{TRAIN} --no-compile", 1.0, 3.0),
    Case("train, at work", f"{TRAIN} --no-compile", 0.1, 3.0, ": loss"),
    Case("train, compiled and at work", TRAIN, 0.1, 3.0, ": loss"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="0.7B")
    parser.add_argument("--cache", type=Path, default=Path("build/bench"), help="folder for the random models")
    parser.add_argument("--presses", type=int, default=5, help="moments (default: %(default)s)")
    parser.add_argument("--only", help="names of cases that begin like this, with semicolons")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        names = materials(args.shape, args.cache, Path(folder))
        print("| command | median | slowest | work | status |\n|---|---|---|---|---|", flush=True)
        for case in chosen(args.only):
            found = [press(case, names | {"out": f"{folder}/{len(results)}-{i}"}, moment)
                     for i, moment in enumerate(moments(case, args.presses))]  # fmt: skip
            seconds, work = ([one[i] for one in found if one is not None] for i in (0, 1))
            statuses = sorted({"ended" if one is None else str(one[2]) for one in found})
            figures = [statistics.median(seconds), max(seconds), max(work)] if seconds else []
            shown = " | ".join(f"{1000 * one:.0f} ms" for one in figures) or " | | "
            print(f"| {case.name} | {shown} | {', '.join(statuses)} |", flush=True)
            results.append({"name": case.name, "seconds": seconds, "processor_seconds": work, "statuses": statuses})
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


def chosen(only: str | None) -> Iterator[Case]:
    torch = importlib.util.find_spec("torch") is not None
    for case in CASES:
        if (only is None or case.name.startswith(tuple(only.split(";")))) and (
            torch or not case.name.startswith("train")
        ):
            yield case


def moments(case: Case, n: int) -> list[float]:
    return [case.first + (case.last - case.first) * (i + 0.5) / n for i in range(n)]


def materials(shape: str, cache: Path, folder: Path) -> dict[str, str]:
    """Write what the commands read; return the paths by their names."""
    large = write_random_gguf(shape, cache)
    whole = cache / "random-110M.f16.gguf"
    if not whole.exists():
        source = write_random_gguf("110M", cache)
        subprocess.run([sys.executable, "-m", "lowbit", "convert", source, whole, "--type", "f16"], check=True)
    (folder / "words.txt").write_text(WORDS * 500)
    (folder / "short.txt").write_text(WORDS * 32)
    (folder / "text.txt").write_text(WORDS * 200_000)
    (folder / "stories.txt").write_text("Once upon a time there was a little dog who found a ball.\n\n" * 20_000)
    (folder / "schema.json").write_text('{"type": "array", "items": {"type": "integer"}, "minItems": 900}')
    body = {"model": "m", "messages": [{"role": "user", "content": WORDS * 20}], "max_tokens": 900}
    for name, call in ("logits", "logits(model.tokenizer.encode(text))"), ("embed", "embed([text] * 9)"):
        code = f"import lowbit; model, text = lowbit.load({str(large)!r}), {WORDS * 250!r}; model.{call}"
        (folder / f"{name}.py").write_text(code)
    lines = [{"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": body} for i in range(500)]
    (folder / "requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = {path.stem: str(path) for path in folder.iterdir()}
    return {**files, "large": str(large), "float": str(whole), "port": str(PORT)}


def processor_seconds(process: int) -> float:
    """Return what the threads of a process have computed."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def press(case: Case, names: dict[str, str], moment: float) -> tuple[float, float, int] | None:
    """Run a command and press Ctrl-C; seconds to its end, those of processors, and its status; None if it had ended."""
    argv = [word.format(**names) for word in case.arguments.split()]
    argv = [sys.executable, *argv[1:]] if argv[0] == "PYTHON" else [sys.executable, "-m", "lowbit", *argv]
    with open(names["text"], "rb") as text:  # for commands that read standard input
        process = subprocess.Popen(
            argv, stdin=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    begun = threading.Event()
    out, err = ("", "\0") if case.begun == "output" else ("\0", case.begun)
    drained = [drain(process.stdout, out, begun), drain(process.stderr, err, begun)]
    try:
        if case.begun != "start":
            begun.wait(120)
        if case.ask:
            time.sleep(0.3)
            threading.Thread(target=ask, daemon=True).start()
        time.sleep(moment)
        if process.poll() is not None:
            return None
        start, work = time.perf_counter(), processor_seconds(process.pid)
        process.send_signal(signal.SIGINT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return time.perf_counter() - start, used.ru_utime + used.ru_stime - work, process.returncode
    finally:
        process.kill()
        process.wait()
        for thread in drained:
            thread.join()


def drain(pipe: Any, word: str, begun: threading.Event) -> threading.Thread:
    """Read a pipe to its end, and tell when the word was there."""

    def read() -> None:
        seen = b""
        while piece := pipe.read1(1 << 16):
            seen = seen[-100:] + piece
            if word.encode() in seen:
                begun.set()
        begun.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def ask() -> None:
    body = json.dumps({"prompt": WORDS * 100, "n_predict": 5000}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/completion", body, {"Content-Type": "application/json"})
    with contextlib.suppress(OSError):  # it is cut off, as it should be
        urllib.request.urlopen(request, timeout=120).read()


if __name__ == "__main__":
    main()
