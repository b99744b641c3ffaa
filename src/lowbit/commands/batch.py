"""Answer a file of requests, in OpenAI's batch format, whatever interrupts it.

Each line of the input is a request: {"custom_id": ..., "method": "POST", "url": "/v1/chat/completions", "body": {...}};
a url may also be /v1/completions or /v1/embeddings. Answers come into the output as they are made, one line each, known
by their custom_id; lines that cannot be answered come into a file of their own, with the reason. The same command goes
on where the last one was stopped, killed, or ran out of disk. What a line gets depends on the line, the model and the
settings alone: a line without a seed gets one that is made of --seed and its custom_id.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from .common import (
    InputError,
    add_model_arguments,
    add_sampling_arguments,
    load_model,
    load_options,
    printable,
    sampling_given,
    whole,
)
from .serve import ray_task, size

if TYPE_CHECKING:
    from ..batch import Answerer, Dispatcher
    from ..serve import Settings

_MANUAL = """\
exit status: 0 if all lines are answered; 3 if some failed; 2 if the batch could not be run to its end; 130 after
Ctrl-C, and 143 after SIGTERM, either of which loses no answer.

examples:
  lowbit batch requests.jsonl -o answers.jsonl -m model.gguf
  lowbit batch requests.jsonl -o answers.jsonl -m model.gguf --alias '*'   # whatever model the lines name
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN.jsonl", help="requests, one in each line")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.jsonl", help="answers; a file that is there from "
                        "an earlier run is gone on with")  # fmt: skip
    add = parser.add_argument_group("batch").add_argument
    add("--failed", metavar="FILE", help="lines that cannot be answered (default: OUT.failed.jsonl). They are not "
        "tried again unless this file is removed")  # fmt: skip
    add("--parallel", type=whole(1), default=32, metavar="N", help="most texts that are made at a time (default: 32)")
    add("--kv-ram", metavar="SIZE", help="most memory for keys and values (default: as --max-ram leaves, or no limit)")
    add("--order", choices=("prefix", "file", "random"), default="prefix",
        help="prefix: lines whose prompts begin alike come together, so that their beginning is read once (default)"
    )  # fmt: skip
    add("--ray", metavar="ADDRESS", help="answer on all nodes of this Ray cluster, each of which has lowbit and the "
        "model: auto, or HOST:PORT")  # fmt: skip
    add("--alias", action="append", default=[], metavar="NAME",
        help="what lines may call the model, beside its own name; '*' is any name")  # fmt: skip
    add("--max-line", default="8MB", metavar="SIZE", help="longest line (default: 8MB)")
    add("--chat-template", metavar="NAME", help="built-in chat template or Jinja file (default: the model's, or plain)")
    add("--reasoning", choices=("on", "off"),
        help="whether answers begin with thoughts, for models that can (default: as the template has it)")  # fmt: skip
    add("--date", type=_day, metavar="DATE", help="the day that chat templates are told, as 2026-01-31 (default: "
        "that of the output's beginning)")  # fmt: skip
    add("--pooling", choices=("last", "mean"), default="last", help="what an embedding is (default: last)")
    add("-q", "--quiet", action="store_true", help="report nothing but errors")
    add_sampling_arguments(parser, "as many as there is room for", "0")
    add_model_arguments(parser)
    parser.epilog = _MANUAL


def _day(text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a day, such as 2026-01-31, not {text!r}") from None


def _settings(args: argparse.Namespace, begun: dict[str, Any]) -> tuple[Settings, int]:
    """Return the settings of a run that begins, or goes on with one of which this is the header; and its seed."""
    from .. import __version__
    from ..serve import Settings

    today = begun.get("settings", {}).get("date") if args.date is None else None
    sampling = sampling_given(args)
    seed = sampling.pop("seed", 0)
    return Settings(
        version=f"lowbit-{__version__}", aliases=tuple(args.alias), chat_template=args.chat_template,
        pooling=args.pooling, reasoning={"on": True, "off": False}.get(args.reasoning), sampling=sampling,
        max_sequences=args.parallel, max_queue=(1 << 20) - 1, kv_ram=args.kv_ram, step_ms=60_000.0,
        today=today or (args.date or datetime.date.today()).isoformat(),
    ), seed  # fmt: skip


def _answerer(args: argparse.Namespace, settings: Settings, seed: int) -> Answerer | Dispatcher:
    from ..batch import Answerer, Dispatcher

    if args.ray is None:
        return Answerer(settings, seed, lambda: load_model(args))
    try:
        from ..ray import Cluster
    except ImportError as error:
        raise InputError(f"--ray needs the extra 'ray': pip install 'lowbit[ray]' ({error})") from None
    cluster = Cluster(args.ray, ray_task(args, settings, seed))
    try:
        return Dispatcher(cluster, settings.max_sequences)
    except BaseException:
        cluster.close()
        raise


def run(args: argparse.Namespace) -> int:
    from .. import batch
    from ..errors import LowbitError

    if os.path.exists(args.output) and os.path.samefile(args.input, args.output):
        raise InputError("the output is the input")
    failed = args.failed or f"{os.path.splitext(args.output)[0]}.failed.jsonl"
    with ExitStack() as held:
        # Files first, and the model then, for what may be wrong with them.
        lines = held.enter_context(closing(batch.Lines(args.input, size(args.max_line, "--max-line"))))
        answers = held.enter_context(closing(batch.Journal(args.output)))
        failures = held.enter_context(closing(batch.Journal(failed, create=False)))
        settings, seed = _settings(args, answers.begun())
        answerer = held.enter_context(closing(_answerer(args, settings, seed)))
        left = batch.lines_left(lines, answers, failures, answerer.header(load_options(args)))
        progress = batch.Progress(len(lines), len(lines) - len(left), args.quiet)
        order = lines.order(args.order, left)
        outcome = batch.run(lines, order, answers, failures, answerer.answer, answerer.width, progress)
    progress.end()
    done = answers.lines + failures.lines
    where = f"{done:,} of {len(lines):,} lines are done; the same command goes on from there"
    if isinstance(outcome.lost, OSError):
        raise InputError(f"{outcome.lost.filename}: {outcome.lost.strerror}; {where}")
    if isinstance(outcome.lost, (LowbitError, MemoryError)):
        raise InputError(f"{outcome.lost or 'not enough memory'}; {where}")
    if outcome.lost is not None:
        raise outcome.lost
    if outcome.signal:
        print(f"lowbit: stopped; {where}", file=sys.stderr)
        return 128 + outcome.signal
    if not args.quiet:
        print(f"lowbit: {progress.summary()}", file=sys.stderr)
    if failures.lines and not args.quiet:
        print(f"lowbit: {printable(failures.path)} has {failures.lines:,} lines that failed, with the reason",
              file=sys.stderr)  # fmt: skip
    return 3 if failures.lines else 0
