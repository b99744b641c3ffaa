"""Continue a text.

The text appears on standard output as it is made, until the model ends it, the context is full, or there are as many
tokens as -n says. Timings follow on standard error, and why the text ended if the model did not end it.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from .common import (
    InputError,
    add_constraint_arguments,
    add_model_arguments,
    add_prompt_arguments,
    add_sampling_arguments,
    constraint_values,
    load_model,
    print_json,
    printable,
    prompt_of,
    read_text,
    sampling_values,
    whole,
)

if TYPE_CHECKING:
    from ..model import Generation, Model, TokenLogprob


MOST_TOKENS = 256
"""Unless -n says otherwise."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_prompt_arguments(parser, "text to continue; - or none reads a pipe")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end instead of a stream")
    parser.add_argument("-q", "--quiet", action="store_true", help="do not report timings")
    parser.add_argument(
        "--speculate", action="store_true", default=None, help="propose tokens from the text so far: same text, sooner"
    )
    parser.add_argument(
        "--logprobs", type=whole(0), metavar="N", help="with --json: log-probability of each token, and the N likeliest"
    )
    parser.add_argument(
        "--context-shift", action="store_true", help="where the context is full, go on without its older half"
    )
    add_constraint_arguments(parser)
    add_sampling_arguments(parser, str(MOST_TOKENS))
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..engine.text import MAX_LOGPROBS

    if args.logprobs is not None and not args.json:
        raise InputError("--logprobs needs --json")
    if args.logprobs is not None and args.logprobs > MAX_LOGPROBS:
        raise InputError(f"--logprobs takes at most {MAX_LOGPROBS}")
    sampling = sampling_values(args, MOST_TOKENS)
    constraint = constraint_values(args)
    prompt = prompt_of(args)
    if prompt is None:
        prompt = read_text(None, "prompt")
    options = {"speculate": args.speculate, "context_shift": args.context_shift, **constraint, **sampling}
    if args.context_shift and constraint:
        raise InputError("--context-shift goes with no schema, expression or grammar, which bind the text as a whole")
    model = load_model(args)
    if args.json:
        if args.logprobs is not None:
            options["logprobs"] = args.logprobs
        out = model.generate(prompt, **options)
        print_json(as_json(out, sampling["seed"]))
        return 0
    out = _stream(model, prompt, options)
    if not args.quiet:
        print(_summary(model, out, sampling, args.max_tokens is None), file=sys.stderr)
    return 0


def _stream(model: Model, prompt: str, options: dict[str, Any]) -> Generation:
    """Write the pieces as they come, and return what the stream returns when it ends."""
    pieces = model.stream(prompt, **options)
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            sys.stdout.write("\n")
            sys.stdout.flush()
            out: Generation = end.value
            return out
        sys.stdout.write(piece)
        sys.stdout.flush()


def _summary(model: Model, out: Generation, sampling: dict[str, Any], by_default: bool) -> str:
    timings, info = out.timings, model.info()
    parts = [
        printable(info["name"] or os.path.basename(info["path"])),
        f"load {timings.load_seconds:.2f} s",
        f"prompt {timings.prompt_tokens} tokens, {timings.prefill_tps:.1f} tok/s",
        f"decode {timings.decode_tokens} tokens, {timings.decode_tps:.1f} tok/s",
    ]
    if sampling["temperature"] > 0:
        parts.append(f"seed {sampling['seed']}")
    if out.left_out:
        parts.append(f"the context was full: the end was made without the first {out.left_out} tokens")
    if out.finish_reason == "context":
        parts.append(f"ended by the context of {model.context} tokens")
    elif out.finish_reason == "length":
        parts.append(f"cut at {timings.decode_tokens} tokens{', -n takes more' if by_default else ''}")
    return "[" + " | ".join(parts) + "]"


def as_json(out: Generation, seed: int) -> dict[str, Any]:
    timings = out.timings
    return {
        "text": out.text,
        "tokens": [int(token) for token in out.tokens],
        **({} if out.logprobs is None else {"logprobs": [_logprob_as_json(one) for one in out.logprobs]}),
        "prompt_tokens": out.prompt_tokens,
        "finish_reason": out.finish_reason,
        **({"left_out": out.left_out} if out.left_out else {}),
        "seed": seed,
        "timings": {
            "load_seconds": timings.load_seconds,
            "prompt_seconds": timings.prompt_seconds,
            "reused_tokens": timings.reused_tokens,
            "first_token_seconds": timings.first_token_seconds,
            "decode_tokens": timings.decode_tokens,
            "decode_seconds": timings.decode_seconds,
            "prefill_tps": timings.prefill_tps,
            "decode_tps": timings.decode_tps,
        },
    }


def _logprob_as_json(one: TokenLogprob) -> dict[str, Any]:
    top = [{"token": token, "piece": piece, "logprob": logprob} for token, piece, logprob in one.top]
    return {"token": one.token, "piece": one.piece, "logprob": one.logprob, "top": top}
