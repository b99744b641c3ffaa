"""Train a small ternary language model on your own text.

Text and JSONL files in, one GGUF file out. Documents in a text file are parted by <|endoftext|> or two empty lines;
a JSONL file has an object with a "text" field on each line. The run keeps its state in OUTPUT.train and can be
killed at any time: the same command with --resume goes on where the last checkpoint was, as if nothing had happened.

    lowbit train stories.txt -o stories.gguf
    lowbit train stories.txt -o stories.gguf --resume
    lowbit train letters.txt -o mine.gguf --init stories.gguf --learning-rate 5e-4

Needs the extra "train": pip install "lowbit[train]"
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from ..assets import EMBEDDED_MODEL
from ..errors import LowbitError
from .common import InputError, at_most_cores, whole

# As in lowbit.train, which needs torch.
PRECISIONS = ("ternary", "int8", "int4-fp4", "float32")
OPTIMIZERS = ("adamw", "muon")
CURVES = ("linear", "cosine", "wsd")

_Kind = TypeVar("_Kind")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "corpus", nargs="+", metavar="FILE", help="text or JSONL; FILE=2.5 takes it 2.5 times in an epoch"
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="GGUF file to write")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--folder", metavar="DIR", help="checkpoint, loss curve and samples (default: OUTPUT.train)")
    parser.add_argument(
        "--validation", action="append", metavar="FILE", help="measure on this (default: part of the corpus)"
    )
    parser.add_argument("--name", metavar="NAME", help="name of the model inside the file")

    add = parser.add_argument_group("model").add_argument
    add("--vocab-size", type=whole(512), default=2048, metavar="N", help="tokens, 512 to 8192 (default: %(default)s)")
    add("--vocabulary", metavar="FILE", help="use the vocabulary of a GGUF or SentencePiece file")
    add("--init", metavar="FILE", help="go on from a BitNet GGUF model, or from 'embedded'; --layers may add to it")
    add("--layers", type=whole(1), metavar="N", help="transformer blocks (default: 8)")
    add("--hidden", type=whole(1), metavar="N", help="width, a multiple of 256 (default: 256)")
    add("--intermediate", type=whole(1), metavar="N", help="feed-forward width, a multiple of 256 (default: 512)")
    add("--heads", type=whole(1), metavar="N", help="attention heads (default: 4)")
    add("--kv-heads", type=whole(1), metavar="N", help="key and value heads (default: 2)")
    add("--context", type=whole(2), metavar="N", help="longest text in tokens (default: 512)")
    add(
        "--activation",
        choices=("relu2", "silu"),
        help="gate: squared ReLU (the default), or SiLU, which llama.cpp runs",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default="ternary",
        help="of linear layers; the others are there to compare (default: %(default)s)",
    )
    add("--type", choices=("TQ2_0", "TQ1_0", "I2_S"), default="TQ2_0", help="of ternary weights (default: %(default)s)")
    add("--embedding-type", choices=("Q8_0", "Q4_0", "F16", "F32"), default="Q8_0", help="(default: %(default)s)")

    add = parser.add_argument_group("schedule").add_argument
    add("--epochs", type=positive, default=4.0, metavar="F", help="passes over the corpus (default: %(default)g)")
    add("--steps", type=whole(1), metavar="N", help="optimizer steps, instead of --epochs")
    add("--batch", type=whole(1), default=8192, metavar="N", help="tokens per step (default: %(default)s)")
    add("--micro-batch", type=whole(1), metavar="N", help="tokens per forward pass (default: 2048 or the batch)")
    add("--window", type=whole(2), metavar="N", help="tokens per training sequence (default: 256 or the context)")
    add("--optimizer", choices=OPTIMIZERS, default="adamw", help="muon for linear layers (default: %(default)s)")
    add("--curve", choices=CURVES, default="linear", help="of the learning rate (default: %(default)s)")
    add("--learning-rate", type=positive, default=1.5e-3, metavar="F", help="peak (default: %(default)g)")
    add("--warmup", type=part, default=0.03, metavar="F", help="share of the run, or steps (default: %(default)g)")
    add("--decay-share", type=part, default=0.3, metavar="F", help="last part, with wsd (default: %(default)g)")
    add("--float-share", type=part, metavar="F", help="first part, not yet ternary (default: 0.1; with --init 0)")
    add("--ema", type=share, default=0.0, metavar="F", help="export a running mean of the weights, such as 0.998")
    add("--weight-decay", type=share, default=0.1, metavar="F", help="in the first half (default: %(default)g)")
    add("--dropout", type=share, default=0.0, metavar="F", help="(default: %(default)g)")
    add("--keep", type=share, default=1.0, metavar="F", help="top-k: share of activations kept in every other step")
    add(
        "--keep-share",
        type=part,
        default=0.5,
        metavar="F",
        help="last part of the run, with --keep (default: %(default)g)",
    )
    add("--teacher", metavar="FILE", help="model with the same vocabulary to learn from too")
    add("--distill", type=share, default=0.5, metavar="F", help="weight of the teacher (default: %(default)g)")
    add(
        "--emphasis", type=positive, default=1.0, metavar="F",
        help="weight of what an answer was asked for where it says it first (default: %(default)g)",
    )  # fmt: skip
    add("--seed", type=whole(0), default=0, metavar="N", help="(default: %(default)s)")

    add = parser.add_argument_group("machine").add_argument
    add("-t", "--threads", type=whole(1), metavar="N", help="cores to use (default: as torch chooses)")
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add(
        "--compute",
        choices=("auto", "bf16", "float32"),
        default="auto",
        help="of matrix products (default: bf16 where the processor has it, unless --precision is float32)",
    )
    add(
        "--compile", action=argparse.BooleanOptionalAction, help="fuse arithmetic (default: if there is a C++ compiler)"
    )
    add(
        "--checkpoint-seconds",
        type=positive,
        default=60.0,
        metavar="F",
        help="between checkpoints (default: %(default)g)",
    )
    add(
        "--measure-every",
        type=whole(1),
        default=100,
        metavar="N",
        help="steps between measurements (default: %(default)s)",
    )
    add("--samples", type=whole(0), default=3, metavar="N", help="texts to write at the end (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    try:
        from ..train.loop import Schedule
        from ..train.project import Project, train
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise InputError('training needs torch: pip install "lowbit[train]"') from None
    names = {
        "n_layers": args.layers, "hidden_size": args.hidden, "intermediate_size": args.intermediate,
        "n_heads": args.heads, "n_kv_heads": args.kv_heads, "context_length": args.context,
        "activation": args.activation,
    }  # fmt: skip
    schedule = _filled(
        Schedule,
        args,
        steps=args.steps or 0,
        batch_tokens=args.batch,
        micro_tokens=args.micro_batch or min(2048, args.batch),
        window=args.window or min(256, args.context or 256),
        warmup_share=args.warmup,
        float_share=args.float_share if args.float_share is not None else 0.0 if args.init else 0.1,
        distill=args.distill if args.teacher else 0.0,
    )
    project = _filled(
        Project,
        args,
        output=Path(args.output),
        schedule=schedule,
        folder=Path(args.folder) if args.folder else None,
        validation=args.validation or (),
        vocabulary=_path(args.vocabulary),
        start_from=_path(args.init),
        teacher=_path(args.teacher),
        shape={name: value for name, value in names.items() if value is not None},
        threads=at_most_cores(args.threads),
        ternary_type=args.type,
        name=args.name or "",
    )
    try:
        train(project)
    except RuntimeError as error:  # torch: no such device, not enough memory
        if isinstance(error, LowbitError):
            raise
        raise InputError(" ".join(str(error).split())[:300]) from None
    return 0


def _filled(kind: type[_Kind], args: argparse.Namespace, **others: Any) -> _Kind:
    """Make a dataclass whose fields are options of the same names, but for the others."""
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: getattr(args, name) for name in names if hasattr(args, name)} | others)


def _path(name: str | None) -> str | None:
    """Return the path of a model file, where `embedded` names the one that comes with lowbit."""
    return EMBEDDED_MODEL if name == "embedded" else name


def positive(text: str) -> float:
    """Convert an argument to a number above 0."""
    value = _number(text)
    if value is None or not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return value


def share(text: str) -> float:
    """Convert an argument to a number from 0 to 1."""
    value = _number(text)
    if value is None or not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return value


def part(text: str) -> float:
    """Convert an argument to a share from 0 to 1, or a whole number of steps above 1."""
    value = _number(text)
    if value is None or not (0 <= value <= 1 or (value < 1e9 and value.is_integer())):
        raise argparse.ArgumentTypeError(f"must be a share from 0 to 1 or a whole number of steps, not {text!r}")
    return value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
