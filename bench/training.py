"""Tokens per second of `lowbit train`, for the 5-million-parameter model of docs/training.md.

    python bench/training.py [--threads 1,2] [--json]

The machine should do nothing else. Needs the extra "train".
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict

import torch

from lowbit.train.model import BitNet, BitNetShape
from lowbit.train.project import compute_type, share_cores
from lowbit.train.speed import training_speed

SHAPE = BitNetShape(
    vocab_size=512, hidden_size=512, intermediate_size=256, n_layers=4, n_heads=8, n_kv_heads=4, activation="silu"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,2", help="numbers of cores (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8192, help="tokens per step (default: %(default)s)")
    parser.add_argument("--micro-batch", type=int, default=2048, help="tokens per pass (default: %(default)s)")
    parser.add_argument("--window", type=int, default=256, help="tokens per sequence (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="measured; the fastest counts (default: %(default)s)")
    parser.add_argument("--compute", choices=("auto", "bf16", "float32"), default="auto")
    parser.add_argument("--json", action="store_true")
    for name, default in asdict(SHAPE).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default)
    args = parser.parse_args()
    shape = BitNetShape(**{name: getattr(args, name) for name in asdict(SHAPE)})
    results = []
    for cores in map(int, args.threads.split(",")):
        processes, each = share_cores(cores, "cpu", args.batch // args.micro_batch)
        torch.set_num_threads(1 if processes > 1 else each)
        torch.manual_seed(0)
        model = BitNet(shape, compute_type(args.compute, "cpu"))
        if shutil.which("c++"):
            model.compile()
        speed = training_speed(model, args.batch, args.micro_batch, args.window, args.steps, processes, each)
        parameters = sum(p.numel() for p in model.parameters())
        results.append({"threads": cores, "parameters": parameters, "tokens_per_second": speed})
        if not args.json:
            print(f"{parameters:,} parameters, {cores} cores: {speed:,.0f} tokens/s", flush=True)
    if args.json:
        print(json.dumps({"shape": asdict(shape), "torch": torch.__version__, "results": results}))


if __name__ == "__main__":
    main()
