"""Find thresholds for activation sparsity, from the activations of a text.

The result is a file beside the model (MODEL.thresholds.json) for --sparsity of the other commands. The text should be
like what the model will write; some ten thousand tokens are plenty.
"""

from __future__ import annotations

import argparse

from ..hub import PREFIX
from .common import (
    InputError,
    add_tokenizer_argument,
    at_most_cores,
    print_json,
    progress_bar,
    read_file,
    refused,
    whole,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-m", "--model", metavar="FILE", help="model file (default: the embedded model)")
    add_tokenizer_argument(add)
    add("--text", required=True, metavar="FILE", help="UTF-8 text; - reads a pipe")
    add("--target", required=True, type=float, metavar="F", help="share of the activations to skip, such as 0.4")
    add("-o", "--output", metavar="FILE", help="where to write the thresholds (default: MODEL.thresholds.json)")
    add("-t", "--threads", type=whole(1), metavar="N", help="threads (default: one per core)")
    add("--json", action="store_true", help="print the thresholds as JSON")


def run(args: argparse.Namespace) -> int:
    from ..convert.calibration import calibrate, default_path

    if args.output is None and (args.model is None or args.model.startswith(PREFIX)):
        raise InputError("beside that model nothing can be written: give --output")
    output = default_path(args.model) if args.output is None else args.output
    text = read_file(args.text)
    threads = at_most_cores(args.threads)
    with refused(), progress_bar("tok") as progress:
        layers = calibrate(args.model, text, args.target, output, threads, progress, args.tokenizer)
    if args.json:
        print_json({"output": output, "target": args.target, "layers": layers})
    else:
        print(output)
    return 0
