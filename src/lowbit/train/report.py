"""What a run shows: a progress bar while it goes on, and a curve of the loss at the end."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..replacing import Replacing

QUIET_SECONDS = 9.0
"""Between two lines where nobody watches a bar (a log file), also while something takes longer."""


class Beat:
    """Tells now and then what a run is at, so that nobody takes what needs long for the end.

    Attributes
    ----------
    what : str
        That it is at.
    told : float
        Time of the last line, also of others.
    bar : tqdm, optional
        On a terminal, which is drawn anew instead.
    """

    def __init__(self, what: str) -> None:
        self.bar: Any = None
        self.told = time.monotonic()
        self.at(what)
        self._over = threading.Event()
        threading.Thread(target=self._run, args=(QUIET_SECONDS,), daemon=True).start()

    def at(self, what: str) -> None:
        """Be told what begins now."""
        self.what, self.begun = what, time.monotonic()

    def _run(self, seconds: float) -> None:
        while not self._over.wait(max(0.0, self.told + seconds - time.monotonic())):
            if time.monotonic() - self.told < seconds:
                continue
            self.told = time.monotonic()
            if self.bar is not None:
                self.bar.refresh()
            else:
                print(f"{self.what}, {(self.told - self.begun) / 60:.1f} min", file=sys.stderr, flush=True)

    def __enter__(self) -> Beat:
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()


class Progress:
    """A bar on a terminal, a line now and then in a log; both on standard error.

    Parameters
    ----------
    steps : number of steps of the whole run
    done : steps that an earlier part has done
    batch_tokens : tokens per step
    beat : what tells of steps that take long, such as the first, for which the model is compiled
    """

    def __init__(self, steps: int, done: int, batch_tokens: int, beat: Beat) -> None:
        self.steps, self.batch_tokens, self.loss, self.measured, self.beat = steps, batch_tokens, math.nan, "", beat
        self.bar = tqdm(total=steps, initial=done, unit="step", disable=None, dynamic_ncols=True)
        self.printed, self.begun, self.first = 0.0, time.monotonic(), done
        beat.at(f"step {done + 1} of {steps} is at work")
        beat.bar = None if self.bar.disable else self.bar

    def __call__(self, record: dict[str, float]) -> None:
        """Show the newest record of `lowbit.train.loop.fit`."""
        step, loss = int(record["step"]), record["loss"]
        self.loss = loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * loss
        if "bits_per_byte" in record:
            self.measured = f", {record['bits_per_byte']:.4f} bits/byte"
        speed = self.batch_tokens / max(record["seconds"], 1e-9)
        status = f"loss {self.loss:.4f}{self.measured}, {speed:,.0f} tokens/s"
        if not self.bar.disable:
            self.bar.update(step - self.bar.n)
            self.bar.set_postfix_str(status)
        elif time.monotonic() - self.printed > QUIET_SECONDS or step == self.steps:
            self.printed = self.beat.told = time.monotonic()
            left = (self.printed - self.begun) / max(step - self.first, 1) * (self.steps - step)
            print(f"step {step} of {self.steps}: {status}, {left / 60:.1f} min left", file=sys.stderr, flush=True)
        self.beat.at(f"step {step + 1} of {self.steps} is at work")

    def close(self) -> None:
        """Leave the bar as it is, and go to the next line."""
        self.beat.bar = None
        self.bar.close()


def plot_loss(path: Path, history: Sequence[dict[str, float]]) -> None:
    """Draw the training loss and the measured bits per byte over the steps, as SVG or PNG by the file's ending."""
    from matplotlib.figure import Figure

    steps = [record["step"] for record in history]
    smooth, average = [], history[0]["loss"]
    for record in history:
        average += (record["loss"] - average) * 0.05
        smooth.append(average)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss on training text, nats per token")
    axes.plot(steps, [record["loss"] for record in history], color="0.8", linewidth=0.8, label="loss of each step")
    axes.plot(steps, smooth, color="tab:blue", label="loss, smoothed")
    measured = [record for record in history if "bits_per_byte" in record]
    if measured:
        right = axes.twinx()
        right.set_ylabel("bits per byte on held-out text")
        values = [record["bits_per_byte"] for record in measured]
        right.plot([r["step"] for r in measured], values, "o-", color="tab:orange", markersize=3, label="bits per byte")
        right.legend(loc="upper right", bbox_to_anchor=(1, 0.88), frameon=False)
    axes.legend(loc="upper right", frameon=False)
    axes.grid(alpha=0.3)
    with Replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:])
