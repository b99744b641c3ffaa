"""Serve a model over HTTP, to clients of OpenAI, Anthropic and llama.cpp.

Whatever is asked at the same time, each request gets the answer that it would get alone: the same prompt, settings and
seed give the same text. Without -m the embedded model is served. The server listens on this machine only, unless
--host says otherwise, and stops on Ctrl-C or SIGTERM, when the running answers have ended.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from typing import TYPE_CHECKING

from .common import (
    InputError,
    add_model_arguments,
    add_sampling_arguments,
    load_model,
    load_options,
    refused,
    sampling_given,
    whole,
)

if TYPE_CHECKING:
    from ..ray import Task
    from ..serve import Settings

_MANUAL = """\
paths (those of OpenAI with and without /v1):
{paths}

fields of requests:
  A field that is not listed, or a value that would have to be ignored, is refused with status 400 and its name.
  null is the same as leaving a field out. Sampling settings that are left out are those of the options above.

{fields}

limits:
  A request that finds the queue full gets status 429 and Retry-After; one that is larger than --max-body 413; one that
  does not arrive within 30 seconds 408. While the model is being loaded, and when the engine has stopped, /health and
  all others say 503. A client that leaves frees what it held within one step of the model; one that does not read its
  stream for 60 seconds is left. With --api-key, every path but /health wants it (Authorization: Bearer KEY, or
  x-api-key: KEY). A Host header other than localhost, an address in numbers, or a name of --allow-host gets 403, so
  that no page of a stranger can reach the server through a name of its own.

examples:
  lowbit serve -m model.gguf --port 8000
  lowbit serve -m /models/model.gguf --ray auto --host 0.0.0.0 --replicas 1:8
  lowbit serve --host 0.0.0.0 --api-key-file key.txt --allow-host models.example.org
  curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\
       -d '{{"messages": [{{"role": "user", "content": "Tell me a story."}}], "seed": 1}}'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("address").add_argument
    add("--host", default="127.0.0.1", metavar="NAMES",
        help="address to listen at, or several with commas (default: 127.0.0.1)")  # fmt: skip
    add("--port", type=_port, default=8080, metavar="N", help="port; 0 takes a free one (default: 8080)")
    add("--alias", action="append", default=[], metavar="NAME",
        help="what the model is called; may be given several times, and '*' is any name")  # fmt: skip
    add("--tag", action="append", default=[], metavar="WORD", help="a word about the model, for its description")
    add("--no-page", action="store_true", help="serve no page at /")
    add("--no-slots", action="store_true", help="do not tell at /slots what runs")
    add("--no-metrics", action="store_true", help="do not tell counts at /metrics")
    add = parser.add_argument_group("cluster").add_argument
    add("--ray", metavar="ADDRESS", help="serve on all nodes of this Ray cluster, each of which has lowbit and the "
        "model, at a port of its head: auto, or HOST:PORT")  # fmt: skip
    add("--replicas", type=_replicas, metavar="N[:MAX]", help="with --ray: how many processes, each with the whole "
        "model and -t processors; or the fewest and the most, by how many requests there are (default: all that "
        "there is room for)")  # fmt: skip
    add = parser.add_argument_group("safety").add_argument
    add("--api-key", action="append", default=[], metavar="KEY",
        help="refuse requests without this key; may be given several times (or LOWBIT_API_KEY)")  # fmt: skip
    add("--api-key-file", metavar="FILE", help="the same, one key in each line")
    add("--allow-host", action="append", default=[], metavar="NAME", help="a name under which browsers may reach it")
    add("--cors", type=_origin, action="append", default=[], metavar="ORIGIN",
        help="let pages of this origin, as http://localhost:3000, read answers; localhost is any of this machine, "
             "'*' any at all")  # fmt: skip
    add("--show-prompts", action="store_true", help="chat completions return the prompt as the model reads it")
    add("--max-body", default="8MB", metavar="SIZE", help="largest request (default: 8MB)")
    add("--log-requests", action="store_true", help="a line for each request on standard error, without its text")
    add = parser.add_argument_group("work").add_argument
    add("--parallel", type=whole(1), default=16, metavar="N", help="most texts that are made at a time (default: 16)")
    add("--queue", type=whole(1), default=256, metavar="N", help="most texts that wait (default: 256)")
    add("--kv-ram", metavar="SIZE", help="most memory for keys and values (default: as --max-ram leaves, or no limit)")
    add("--step-ms", type=float, default=50.0, metavar="MS",
        help="what prompts may cost running answers, per token (default: 50)")  # fmt: skip
    add("--batch", type=whole(1), metavar="N", help="most tokens that a step reads (default: as the model has it)")
    add("--timeout", type=whole(1), default=3600, metavar="S", help="longest time for an answer (default: 3600)")
    add("--grace", type=whole(0), default=10, metavar="S", help="time for answers to end at the stop (default: 10)")
    add("--chat-template", metavar="NAME", help="built-in chat template or Jinja file (default: the model's, or plain)")
    add("--reasoning", choices=("on", "off"),
        help="whether answers begin with thoughts, for models that can (default: as the template has it)")  # fmt: skip
    add("--pooling", choices=("last", "mean", "none"), default="last",
        help="what an embedding is; none: the vectors of all tokens, at /embeddings only (default: last)")  # fmt: skip
    add_sampling_arguments(parser, "as many as there is room for")
    add_model_arguments(parser)
    brief = parser.format_help

    def manual() -> str:
        from ..serve.manual import fields, paths

        parser.epilog = _MANUAL.format(paths=paths(), fields=fields())
        return brief()

    parser.format_help = manual  # type: ignore[method-assign]


def _origin(text: str) -> str:
    """Return an origin as browsers send it; raise for what none of them ever sends."""
    origin = text.rstrip("/")
    if origin not in ("*", "localhost", "null") and not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s]+", origin):
        raise argparse.ArgumentTypeError(f"must be an origin, as http://localhost:3000, not {text!r}")
    return origin


def run(args: argparse.Namespace) -> int:
    from .. import __version__
    from ..serve import Settings

    if args.replicas is not None and args.ray is None:
        raise InputError("--replicas is of use with --ray only")
    try:
        if args.ray is None:
            from ..serve.running import run as serve
    except ImportError as error:
        raise InputError(f"the server needs the extra 'serve': pip install 'lowbit[serve]' ({error})") from None
    with refused():
        settings = Settings(
            version=f"lowbit-{__version__}", host=args.host, port=args.port, api_keys=_keys(args),
            hosts=tuple(name.lower() for name in args.allow_host),
            cors=tuple(args.cors), aliases=tuple(args.alias),
            chat_template=args.chat_template, pooling=args.pooling, sampling=sampling_given(args), tags=tuple(args.tag),
            page=not args.no_page, slots=not args.no_slots, metrics=not args.no_metrics, batch=args.batch,
            show_prompts=args.show_prompts, reasoning={"on": True, "off": False}.get(args.reasoning),
            max_sequences=args.parallel, max_queue=args.queue, kv_ram=args.kv_ram, step_ms=args.step_ms,
            max_body=size(args.max_body, "--max-body"), request_seconds=args.timeout, grace_seconds=args.grace,
            log_requests=args.log_requests,
        )  # fmt: skip
    if args.ray is not None:
        _serve_on_cluster(args, settings)
    else:
        serve(settings, lambda: load_model(args))
    return 0


def _serve_on_cluster(args: argparse.Namespace, settings: Settings) -> None:
    if not args.port or "," in args.host:
        raise InputError("with --ray, --host must be one address and --port not 0")
    try:
        from ..ray.running import run as serve
    except ImportError as error:
        raise InputError(f"serve --ray needs the extra 'ray', and Ray 2.60 or newer: pip install 'lowbit[ray]' "
                         f"({error})") from None  # fmt: skip
    serve(args.ray, ray_task(args, settings), args.threads, args.replicas)


def ray_task(args: argparse.Namespace, settings: Settings, seed: int = 0) -> Task:
    """Return what the nodes of a cluster are to load; files are at the same path on each."""
    from ..ray import Task

    def everywhere(name: str | None) -> str | None:
        return os.path.abspath(name) if name is not None and os.path.exists(name) else name

    # Threads are those of the nodes, which may have more cores than this machine.
    options = load_options(argparse.Namespace(**{**vars(args), "threads": None}))
    for name in ("tokenizer", "draft"):
        if name in options:
            options[name] = everywhere(options[name])
    settings = dataclasses.replace(settings, chat_template=everywhere(settings.chat_template))
    if args.threads is not None:
        options["threads"] = args.threads
    return Task(everywhere(args.model), options, settings, seed)


def size(text: str, name: str) -> int:
    """Return the bytes that an option says."""
    from ..loading.memory import parse_size

    try:
        return parse_size(text)
    except ValueError:
        raise InputError(f"{name} must be a size, such as 8MB, not {text!r}") from None


def _keys(args: argparse.Namespace) -> tuple[str, ...]:
    keys = [*args.api_key, *filter(None, [os.environ.get("LOWBIT_API_KEY")])]
    if args.api_key_file is not None:
        with open(args.api_key_file, encoding="utf-8") as file:
            keys += [line.strip() for line in file if line.strip()]
        if not keys:
            raise InputError(f"{args.api_key_file}: holds no key")
    if not all(keys):
        raise InputError("an API key must not be empty")
    return tuple(keys)


def _replicas(text: str) -> int | tuple[int, int]:
    try:
        fewest, *most = map(whole(1), text.split(":"))
    except argparse.ArgumentTypeError:
        fewest, most = 1, [0]
    if len(most) > 1 or any(fewest > one for one in most):
        raise argparse.ArgumentTypeError(f"must be a number, or two as 1:8, not {text!r}")
    return (fewest, most[0]) if most else fewest


def _port(text: str) -> int:
    value = int(text) if text.strip().isdecimal() else 65536
    if value > 65535:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, not {text!r}")
    return value
