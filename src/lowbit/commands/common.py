"""Options and small helpers that several subcommands share."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import LowbitError
from ..replacing import Replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..model import Model

ESCAPES = {r"\n": "\n", r"\r": "\r", r"\t": "\t", r"\\": "\\"}
FILES = ("FILE", "FILE|JSON", "PATH", "SRC", "DST", "DIR")
"""What arguments that name files are called in the help; in all of them a ~ stands for the user's home."""
NO_LIMIT = 2**31 - 1
"""As many tokens as there is room for."""


class InputError(Exception):
    """What the user gave cannot be used; the message is one line that says why."""


@contextmanager
def refused() -> Iterator[None]:
    """Take a ValueError of ours, about an option out of range, for an InputError."""
    try:
        yield
    except LowbitError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from None


@contextmanager
def progress_bar(unit: str, scale: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows how much is done of all that there is."""
    from tqdm import tqdm

    with tqdm(unit=unit, unit_scale=scale, delay=1, disable=None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `load_model` reads."""
    add = parser.add_argument_group("model").add_argument
    add(
        "-m",
        "--model",
        type=path,
        metavar="FILE",
        help="model file, folder or hf:OWNER/NAME[:FILE] (default: the embedded model)",
    )
    add_tokenizer_argument(add)
    add("-t", "--threads", type=whole(1), metavar="N", help="threads (default: one per core, which is also the most)")
    add(
        "--max-ram",
        metavar="SIZE",
        help="most memory for the model, such as 64MB; what does not fit is read again and again",
    )
    add("--sparsity", type=share_or_file, metavar="F", help="share of activations to skip, or a thresholds file")
    add("--sparse-prefill", action="store_true", default=None, help="skip them in prompts too")
    add(
        "-c",
        "--context",
        type=whole(1),
        metavar="N",
        help="tokens to make room for (default: as the model says, at most 8192)",
    )
    add("--kv-type", metavar="TYPE", help="keep past keys and values as f32, f16 or int8 (default: auto, f32 if small)")
    add(
        "--kv-disk",
        metavar="PATH",
        help="folder to keep them in for later runs; 'auto' is one in the user's cache folder",
    )
    add("--kv-disk-bytes", metavar="SIZE", help="most that this folder may take (default: 4GB)")
    add("--draft", metavar="FILE", help="small model of the same vocabulary that writes ahead: same text, sooner")
    add("--head", metavar="TYPE", help="float output heads: auto (large ones in 8 bits, default), file or q8_0")
    add("--pack", metavar="TYPE", help="ternary weights in memory: auto (four to a byte, default) or dense (five)")


def add_tokenizer_argument(add: Callable[..., argparse.Action]) -> None:
    """Add the option that names another tokenizer than the model's own."""
    add("--tokenizer", metavar="PATH", help="tokenizer file or folder to use in place of the model's own")


MODEL_OPTIONS = (
    "tokenizer", "threads", "max_ram", "sparsity", "sparse_prefill", "context", "kv_type", "kv_disk", "kv_disk_bytes",
    "draft", "head", "pack",
)  # fmt: skip
"""What `add_model_arguments` adds besides the model: keyword arguments of `lowbit.load`."""


def load_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what of the options of `add_model_arguments` was given, but for the model, as `lowbit.load` takes it."""
    given = {name: value for name in MODEL_OPTIONS if (value := getattr(args, name, None)) is not None}
    if "threads" in given:
        given["threads"] = at_most_cores(given["threads"])
    return given


def load_model(args: argparse.Namespace) -> Model:
    """Load the model that the options of `add_model_arguments` name."""
    import lowbit

    given = load_options(args)
    with refused():
        return lowbit.load(args.model, **given) if args.model is not None else lowbit.load(**given)


def add_sampling_arguments(
    parser: argparse.ArgumentParser, most: str | None = None, seed: str = "a new one, reported at the end"
) -> None:
    """Add the options that `sampling_values` reads, with the defaults of `SamplingParams`; `most` tells of tokens."""
    from ..sampling import SamplingParams

    default = SamplingParams()
    add = parser.add_argument_group("sampling").add_argument
    add("-n", "--max-tokens", type=_most_tokens, metavar="N",
        help=f"most tokens to generate, -1 is no limit (default: {most or default.max_tokens})")  # fmt: skip
    add("--temperature", "--temp", type=float, metavar="T", help=f"0 is greedy (default: {default.temperature})")
    add("--top-k", type=int, metavar="K", help=f"keep the K likeliest tokens, 0 is off (default: {default.top_k})")
    add("--top-p", type=float, metavar="P", help=f"keep the likeliest tokens up to this sum (default: {default.top_p})")
    add("--min-p", type=float, metavar="P", help=f"drop tokens below this share of the best (default: {default.min_p})")
    add(
        "--repeat-penalty",
        type=float,
        metavar="F",
        help=f"make recent tokens less likely, 1 is off (default: {default.repeat_penalty})",
    )
    add("-s", "--seed", type=int, metavar="N", help=f"same seed, same text (default: {seed})")
    add(
        "--stop",
        action="append",
        type=unescaped,
        metavar="S",
        help=r"end before this text, in which \n is a line end; may be given several times",
    )


def add_prompt_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the options that `prompt_of` reads."""
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help=what)
    parser.add_argument("-p", "--prompt", dest="prompt_text", metavar="TEXT", help="the same")
    parser.add_argument("-f", "--file", dest="prompt_file", metavar="FILE", help="read it from a file")


def prompt_of(args: argparse.Namespace) -> str | None:
    """Return the prompt that was given, its words joined; None if there is none."""
    given = [value for value in (args.prompt or None, args.prompt_text, args.prompt_file) if value is not None]
    if len(given) > 1:
        raise InputError("give one prompt: as an argument, with -p or with -f")
    if args.prompt_file is not None:
        return without_last_line_end(read_file(args.prompt_file))
    if args.prompt_text is not None:
        return read_text(args.prompt_text, "prompt", named=False)
    return read_text(" ".join(args.prompt), "prompt") if args.prompt else None


def add_constraint_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `constraint_values` reads."""
    group = parser.add_argument_group("what the text must be", "One of these; they need the extra 'serve'.")
    group.add_argument("--json-schema", metavar="FILE|JSON", help="JSON that fulfils this schema")
    group.add_argument("--regex", metavar="RE", help="a text that matches this expression as a whole")
    group.add_argument("--grammar", metavar="FILE", help="a text of this grammar, in GBNF or Lark")


def constraint_values(args: argparse.Namespace) -> dict[str, Any]:
    """Return keyword arguments for `Model.generate`, of which there is one at most."""
    given = {name: getattr(args, name) for name in ("json_schema", "regex", "grammar")}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise InputError(" and ".join(f"--{name.replace('_', '-')}" for name in given) + " cannot be given together")
    schema = given.get("json_schema", "")
    if "grammar" in given or (schema and not schema.lstrip().startswith("{")):
        name = next(iter(given))
        given[name] = read_file(given[name])
    return given


def sampling_given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of `add_sampling_arguments` that were given, checked."""
    from ..sampling import SamplingParams

    names = [field.name for field in dataclasses.fields(SamplingParams)]
    given = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    if "stop" in given:
        given["stop"] = tuple(given["stop"])
    with refused():
        SamplingParams(**given)
    return given


def sampling_values(args: argparse.Namespace, max_tokens: int) -> dict[str, Any]:
    """Return keyword arguments for `Model.generate`, with a seed that can be reported.

    `max_tokens` is the most if nothing else was asked for.
    """
    from ..sampling import SamplingParams

    chosen = {"seed": int.from_bytes(os.urandom(4), "little"), "max_tokens": max_tokens, **sampling_given(args)}
    return dataclasses.asdict(SamplingParams(**chosen))


def share_or_file(text: str) -> float | str:
    """Return the number that an argument is, or the argument if it names a file."""
    try:
        return float(text)
    except ValueError:
        if os.path.isfile(path(text)):
            return path(text)
    raise argparse.ArgumentTypeError(f"must be a share from 0 to 1 or a thresholds file, not {text!r}")


path = os.path.expanduser
"""Converts an argument to the name of a file; a shell does not see a ~ behind ``=`` or in quotes."""


def unescaped(text: str) -> str:
    r"""Return an argument with ``\n``, ``\r``, ``\t`` and ``\\`` as the characters that they stand for."""
    return re.sub(r"\\[nrt\\]", lambda found: ESCAPES[found[0]], text)


def at_most_cores(threads: int | None) -> int | None:
    """Return a number of threads, but for more than there are cores, which is said."""
    from .._kernels import dispatch

    if threads is None:
        return None
    most = min(dispatch.cores(), dispatch.MAX_THREADS)
    if threads > most:
        print(f"lowbit: {threads} threads are more than there are cores; {most} will do", file=sys.stderr)
    return min(threads, most)


def _most_tokens(text: str) -> int:
    if text.strip() == "-1":
        return NO_LIMIT
    try:
        return whole(0)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"must be a whole number, or -1 for no limit, not {text!r}") from None


def whole(least: int) -> Callable[[str], int]:
    """Return a converter of arguments to whole numbers of at least `least`."""

    def convert(text: str) -> int:
        value = int(text) if text.strip().isdecimal() else least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not {text!r}")
        return value

    return convert


def read_text(argument: str | None, what: str, named: bool = True) -> str:
    """Return the argument itself, or all of standard input if it was left out, or is ``-`` and that is a name."""
    if argument is not None and (argument != "-" or not named):
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(f"the {what} is not UTF-8") from None
        return argument
    if argument is None and (sys.stdin is None or sys.stdin.isatty()):
        raise InputError(f"no {what}: give it as an argument, or pipe it in")
    return without_last_line_end(read_file("-"))


def without_last_line_end(text: str) -> str:
    """Return a text without the line end that echo and editors put after the last line."""
    return text[:-1] if text.endswith("\n") else text


def read_file(name: str) -> str:
    """Return the text of a file, or of standard input if `name` is ``-``."""
    if name == "-":
        data, name = (b"" if sys.stdin is None else sys.stdin.buffer.read()), "standard input"
    else:
        with open(path(name), "rb") as file:
            data = file.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 text (byte {error.start})") from None


def print_json(value: Any) -> None:
    """Print one JSON value on one line."""
    print(json.dumps(value, ensure_ascii=False))


def print_table(rows: Iterable[Iterable[str]], numeric: bool = False) -> None:
    """Print rows of text in columns: aligned to the left, or to the right for numbers."""
    table = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [cell.rjust(w) if numeric else cell.ljust(w) for cell, w in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


def check_plot(path: str) -> None:
    """Refuse --plot where it cannot be done, before the long work whose result is drawn."""
    try:
        from matplotlib import backend_bases
    except ModuleNotFoundError:
        raise InputError("--plot needs matplotlib: pip install matplotlib") from None
    if _ending(path) not in backend_bases.FigureCanvasBase.get_supported_filetypes():
        raise InputError(f"--plot draws an SVG or a PNG, as the file's ending says, and {path} has another")


def save_figure(figure: Figure, path: str) -> None:
    """Write a picture, as SVG or PNG by the file's ending."""
    try:
        with Replacing(path) as file:
            figure.savefig(file, format=_ending(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be drawn ({error.strerror or error})") from None


def _ending(path: str) -> str:
    return os.path.splitext(path)[1][1:].lower()


def printable(text: str) -> str:
    """Return one line without control characters, for text that may come from a hostile file."""
    return without_controls(" ".join(text.split()))


def without_controls(text: str) -> str:
    """Return the text with every character that does not print written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
