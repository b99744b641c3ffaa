"""Train one small model four ways, on the same text from the same seed, and draw the loss curves side by side.

    python bench/precisions.py stories.txt --validation other.txt

Writes precisions.json after each run and goes on from it, and low-precision-training.svg at the end. Needs the extra
"train".
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

from lowbit.tokenizers import from_gguf_metadata
from lowbit.train.corpus import encode, plain_text, read_documents
from lowbit.train.loop import Schedule, fit
from lowbit.train.measure import bits_per_byte
from lowbit.train.model import PRECISIONS, BitNet, BitNetShape
from lowbit.train.report import Beat, Progress
from lowbit.train.vocabulary import train_vocabulary

HEAD_DIM = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="+")
    parser.add_argument("--validation", required=True, help="text that is not in the corpus")
    parser.add_argument("--validation-bytes", type=int, default=15_000)
    parser.add_argument("--hidden", type=int, default=128, help="width of the model, a multiple of 64")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--window", type=int, default=64, help="tokens of a sequence")
    parser.add_argument("--batch", type=int, default=1024, help="tokens of a step")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--output", type=Path, default=Path("docs"))
    parser.add_argument("--results", type=Path, default=Path("build/precisions.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    documents = read_documents(args.corpus)
    tokenizer = from_gguf_metadata(train_vocabulary(documents, args.vocabulary, 1_000_000), "the vocabulary")
    held, size = [], 0
    for text in map(plain_text, read_documents([args.validation])):
        if size < args.validation_bytes:
            held.append(text)
            size += len(text.encode())
    tokens, held_tokens = encode(documents, tokenizer), encode(held, tokenizer)
    schedule = Schedule(
        steps=args.steps, batch_tokens=args.batch, micro_tokens=args.batch, window=args.window,
        learning_rate=args.learning_rate,
    )  # fmt: skip
    shape = BitNetShape(
        tokenizer.vocab_size, hidden_size=args.hidden, intermediate_size=2 * args.hidden, n_layers=args.layers,
        n_heads=args.hidden // HEAD_DIM, n_kv_heads=args.hidden // HEAD_DIM // 2, context_length=args.window,
    )  # fmt: skip
    args.results.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(args.results.read_text(encoding="utf-8")) if args.results.exists() else {}
    for precision in PRECISIONS:
        if precision in results:
            continue
        torch.manual_seed(0)
        model = BitNet(shape, precision=precision)
        begun = time.process_time()
        with tempfile.TemporaryDirectory() as folder, Beat(precision) as beat:
            progress = Progress(args.steps, 0, args.batch, beat)
            history = fit(model, tokens, schedule, Path(folder) / "checkpoint.npz", report=progress)
            progress.close()
        results[precision] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "processor_seconds": time.process_time() - begun,
            "loss": [record["loss"] for record in history],
            "bits_per_byte": bits_per_byte(model, held_tokens, size),
        }
        args.results.write_text(json.dumps(results), encoding="utf-8")
        print(f"{precision}: {results[precision]['bits_per_byte']:.4f} bits/byte", flush=True)
    plot(args.output / "low-precision-training.svg", results)
    print(
        "| linear layers | mean loss of the last tenth, nats per token | bits per byte, held-out text |\n|---|---|---|"
    )
    for precision, result in results.items():
        last = result["loss"][-max(1, len(result["loss"]) // 10) :]
        print(f"| {precision} | {sum(last) / len(last):.3f} | {result['bits_per_byte']:.3f} |")


def plot(path: Path, results: dict) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss on training text, nats per token")
    for precision, result in results.items():
        smooth, average = [], result["loss"][0]
        for number, loss in enumerate(result["loss"], 1):
            average += (loss - average) / min(number, 15)
            smooth.append(average)
        axes.plot(range(1, len(smooth) + 1), smooth, label=precision, linewidth=1.2)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path)


if __name__ == "__main__":
    main()
