"""The training loop. What step n does follows from the options and n alone, so a resumed run equals an unbroken one."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..errors import FormatError, LowbitError
from .checkpoint import load_checkpoint, save_checkpoint
from .corpus import IGNORED, Rows
from .crew import Crew
from .model import INPUTS, BitNet, Rounded
from .optimizer import Optimizer, OptimizerName

Curve = Literal["linear", "cosine", "wsd"]
CURVES: tuple[Curve, ...] = get_args(Curve)
"""Of the learning rate after the warm-up: falling to 0 at once, or (warm-up, stable, decay) in the last part only."""


STABLE = "stable.npz"
"""Checkpoint before the learning rate of ``wsd`` falls: from there the run can go on with more steps."""


@dataclass(frozen=True)
class Schedule:
    """What happens at which step of a run. A share is of all steps, or a number of steps if it is above 1."""

    steps: int = 0
    """Number of optimizer steps."""
    batch_tokens: int = 8192
    """Tokens per optimizer step."""
    micro_tokens: int = 2048
    """Tokens per forward pass; gradients of several passes add up to a step."""
    window: int = 256
    """Tokens per row, at most the context length. A longer text is cut."""
    optimizer: OptimizerName = "adamw"
    curve: Curve = "linear"
    learning_rate: float = 1.5e-3
    """Peak, after the warm-up."""
    warmup_share: float = 0.03
    """Share with a rising learning rate."""
    decay_share: float = 0.3
    """Share, at the end, in which the learning rate of ``wsd`` falls to 0."""
    float_share: float = 0.1
    """Share, from the start, that computes in float before rounding begins (warm start)."""
    weight_decay: float = 0.1
    """In the first half; 0 in the second, when the ternary weights settle (Ma et al., 2024)."""
    ema: float = 0.0
    """Decay of the running mean of the weights, which is then what is measured and exported; 0 for none."""
    keep: float = 1.0
    """Share of each linear layer's input kept by top-k, on every other step of the last part of the run."""
    keep_share: float = 0.5
    """Share of the run, at its end, with top-k steps."""
    distill: float = 0.0
    """Weight of the teacher's distribution against the text itself in the loss."""
    emphasis: float = 1.0
    """Weight in the loss of what an answer was asked for, where it says it first."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    """Of the weights, the order of the text and dropout."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise FormatError(f"a run cannot have {self.steps} steps")
        if not 0 <= self.seed < 1 << 63:
            raise FormatError(f"seed must be a whole number from 0 to 2**63 - 1, not {self.seed}")
        if self.micro_tokens < self.window or self.batch_tokens % self.micro_tokens or self.micro_tokens % self.window:
            raise FormatError("the batch must be a multiple of the micro-batch, and that a multiple of the window")

    def count(self, share: float) -> int:
        """Return how many steps a share is."""
        return min(self.steps, round(share if share > 1 else share * self.steps))

    @property
    def stable(self) -> int:
        """Steps before the learning rate begins to fall for good; as far as that, more steps change nothing."""
        return self.steps - self.count(self.decay_share) if self.curve == "wsd" else 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        warm = max(1, self.count(self.warmup_share))
        done = min(1.0, max(0, step - warm) / max(1, self.steps - warm))
        if self.curve == "linear":
            fall = 1 - done
        elif self.curve == "cosine":
            fall = 0.5 + 0.5 * math.cos(math.pi * done)
        else:
            fall = min(1.0, (self.steps - step) / max(1, self.steps - self.stable))
        return self.learning_rate * min((step + 1) / warm, fall)

    def decay(self, step: int) -> float:
        """Return the weight decay of a step."""
        return self.weight_decay if step < (self.stable or self.steps / 2) else 0.0

    def rounds(self, step: int) -> bool:
        """Tell whether a step rounds."""
        return step >= self.count(self.float_share)

    def keep_at(self, step: int) -> float:
        """Return the share of inputs kept at a step."""
        return self.keep if step >= self.steps - self.count(self.keep_share) and step % 2 else 1.0


Teacher = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(tokens, first) as in `Batch` -> float32 log-probabilities (rows, length, vocab)."""


class Passes:
    """Forward and backward passes of a step, each on rows of its own, with its gradient in a place of its own.

    Parameters
    ----------
    model : its parameters may change from step to step
    rows : training text
    schedule : what happens at which step
    teacher : whose predictions are learned too
    shared : gradients must be seen by other processes
    """

    def __init__(self, model: BitNet, rows: Rows, schedule: Schedule, teacher: Teacher | None, shared: bool) -> None:
        self.model, self.rows, self.schedule, self.teacher = model, rows, schedule, teacher
        self.count = schedule.batch_tokens // schedule.micro_tokens
        self.parameters = dict(model.named_parameters())
        sizes = [p.numel() for p in self.parameters.values()]
        self.gradients = torch.zeros(self.count, sum(sizes), device=model.cos.device)
        if shared:
            self.gradients.share_memory_()  # type: ignore[no-untyped-call]
        shapes = [p.shape for p in self.parameters.values()]
        self._views = [
            {n: part.view(s) for n, part, s in zip(self.parameters, row.split(sizes), shapes, strict=True)}
            for row in self.gradients
        ]
        self._step, self._weights = -1, list[list[Rounded]]()

    def __call__(self, step: int, i: int) -> tuple[float, int]:
        """Do pass `i` of a step; return the cross-entropy with the text, summed in nats, and its number of tokens."""
        model, schedule = self.model, self.schedule
        if step != self._step:
            self._begin(step)
        per_pass = schedule.micro_tokens // schedule.window
        batch = self.rows.batch((step * self.count + i) * per_pass, per_pass)
        tokens, targets, first, asked = (torch.from_numpy(a).to(model.cos.device) for a in batch)
        torch.manual_seed(hash((schedule.seed, step, i)) & (1 << 62) - 1)  # dropout
        if self.teacher is None or not schedule.distill:
            text, said = model.loss(tokens, targets, first, self._weights, asked)
            loss = text + (schedule.emphasis - 1) * said
        else:
            logits = model(tokens, first, self._weights).flatten(0, 1)
            told = torch.from_numpy(self.teacher(batch.tokens, batch.first)).to(logits.device).flatten(0, 1)
            text = functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
            distance = functional.kl_div(logits.log_softmax(-1), told, log_target=True, reduction="none").sum(-1)
            loss = (1 - schedule.distill) * text + schedule.distill * distance[targets.flatten() >= 0].sum()
        (loss / schedule.batch_tokens).backward()  # type: ignore[no-untyped-call]
        self._collect(self._views[i])
        return text.item(), int((batch.targets >= 0).sum())

    def _begin(self, step: int) -> None:
        quantisation = self.model.quantisation
        quantisation.on, quantisation.keep = self.schedule.rounds(step), self.schedule.keep_at(step)
        with torch.no_grad():
            self._weights = self.model.round_weights()
        for rounded in (rounded for block in self._weights for rounded in block):
            rounded.matrix.requires_grad_()
        self._step = step

    def _collect(self, into: dict[str, Tensor]) -> None:
        """Move the gradients of a pass to where they are kept."""
        for number, block in enumerate(self._weights):
            for names, rounded in zip(INPUTS, block):  # none in 4-bit training
                full = [f"blk.{number}.{name}" for name in names]
                gradient = rounded.matrix.grad
                assert gradient is not None
                for name, part in zip(full, torch.split(gradient, [len(into[name]) for name in full]), strict=True):
                    into[name].copy_(part)
                rounded.matrix.grad = None
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                into[name].copy_(parameter.grad)
                parameter.grad = None


def fit(
    model: BitNet,
    documents: Sequence[np.ndarray],
    schedule: Schedule,
    checkpoint: Path,
    *,
    weights: Sequence[float] | None = None,
    marks: Sequence[np.ndarray] | None = None,
    teacher: Teacher | None = None,
    identity: dict[str, Any] | None = None,
    resume: bool = False,
    processes: int = 1,
    threads: int = 1,
    checkpoint_seconds: float = 60.0,
    validate: Callable[[], float] | None = None,
    validate_every: int = 0,
    report: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Run the schedule to its end.

    Parameters
    ----------
    model : trained in place
    documents : token ids of each document
    schedule : what happens at which step
    checkpoint : file for the state, written every `checkpoint_seconds`, at the end, and on Ctrl-C
    weights, marks : how often each document comes in an epoch, and the tokens to emphasise; see `Rows`
    teacher : whose predictions are learned too (knowledge distillation)
    identity : what else a resumed run must have in common with the first part (corpus, shape)
    resume : continue from `checkpoint`
    processes, threads : processes that share the passes of a step, and threads of each if there are several; any
        number of processes gives the same result
    validate : measures the model, in bits per byte; called every `validate_every` steps and at the end
    report : called after each step with the newest record

    Returns
    -------
    list of dict
        A record per step: step, loss, rate, seconds, tokens, epoch; and bits_per_byte where it was measured.

    Raises
    ------
    LowbitError
        If the loss is no longer finite; `checkpoint` then holds the last good state.
    KeyboardInterrupt
        At once, but between two steps as far as the state is concerned; `checkpoint` then holds it.
    """
    rows = Rows(documents, schedule.window, schedule.seed, weights, marks)
    optimizer = Optimizer(model, schedule.optimizer, schedule.ema)
    same = json.loads(json.dumps({"schedule": asdict(schedule), **(identity or {})}))
    history: list[dict[str, float]] = []
    start = 0
    if resume:
        progress = load_checkpoint(checkpoint, model, optimizer)
        start, history = progress["step"], progress["history"]
        _check_same(checkpoint, progress["same"], same, start)
    if processes > 1:
        optimizer.share_memory()
    passes = Passes(model, rows, schedule, teacher, processes > 1)
    names = list(optimizer.parameters)
    total = torch.zeros_like(passes.gradients[0])
    if processes > 1:
        total.share_memory_()  # type: ignore[no-untyped-call]
    sizes = [p.numel() for p in optimizer.parameters.values()]
    parts = dict(zip(names, torch.split(total, sizes), strict=True))

    def add_up(i: int) -> float:
        """Sum the gradients of all passes for one parameter, and return the square of its norm."""
        begin = sum(sizes[:i])
        torch.sum(passes.gradients[:, begin : begin + sizes[i]], 0, out=parts[names[i]])
        return 0.0 if names[i] in optimizer.moves else float(parts[names[i]].square().sum())

    def update(step: int, factor: float, i: int) -> None:
        parameter = optimizer.parameters[names[i]]
        gradient = parts[names[i]].view(parameter.shape)
        gradient = gradient / passes.count if names[i] in optimizer.moves else gradient * factor
        optimizer.update(names[i], gradient, step, schedule.rate(step), schedule.decay(step))

    def save(step: int, path: Path = checkpoint) -> None:
        save_checkpoint(path, model, optimizer, {"step": step, "same": same, "history": history})

    if not resume:
        save(0)
    model.train()
    try:
        with Crew(processes, {"pass": passes, "add": add_up, "update": update}, threads) as crew:
            saved = time.monotonic()
            for step in range(start, schedule.steps):
                begun = time.monotonic()
                first_row = step * schedule.batch_tokens // schedule.window
                rows.epoch_of(first_row + schedule.batch_tokens // schedule.window)  # packs the epoch
                done = crew.run("pass", passes.count, step)
                tokens = sum(n for _, n in done)
                loss = sum(nats for nats, _ in done) / max(tokens, 1)
                fill = schedule.batch_tokens / max(tokens, 1)
                norm = math.sqrt(sum(crew.run("add", len(names)))) * fill
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise LowbitError(
                        f"the loss is {loss:.3g} and its gradient {norm:.3g} at step {step + 1}: "
                        f"try a lower learning rate; the last good state is in {checkpoint}"
                    )
                record = {
                    "step": step + 1, "loss": loss, "rate": schedule.rate(step), "norm": norm, "tokens": tokens,
                    "epoch": rows.epoch_of(first_row),
                }  # fmt: skip
                with _uninterrupted():
                    crew.run("update", len(names), step, fill * min(1.0, schedule.clip / (norm + 1e-6)))
                    record["seconds"] = time.monotonic() - begun
                    history.append(record)
                last = step + 1 == schedule.steps
                if validate and (last or (validate_every and (step + 1) % validate_every == 0)):
                    _at_full_rounding(model)
                    with optimizer.averaged():
                        record["bits_per_byte"] = validate()
                if last or time.monotonic() - saved > checkpoint_seconds:
                    save(step + 1)
                    saved = time.monotonic()
                if schedule.stable and step + 1 == schedule.stable:
                    save(step + 1, checkpoint.with_name(STABLE))
                if report:
                    report(record)
    except KeyboardInterrupt:
        with _uninterrupted():
            save(len(history))
        raise
    for name, mean in optimizer.means().items():
        optimizer.parameters[name].data.copy_(mean)
    _at_full_rounding(model)
    model.eval()
    return history


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until the block has ended."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # which Ctrl-C does not interrupt
        return
    pressed = False

    def note(*arguments: object) -> None:
        nonlocal pressed
        pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def _at_full_rounding(model: BitNet) -> None:
    model.quantisation.on, model.quantisation.keep = True, 1.0


def _check_same(path: Path, had: dict[str, Any], wanted: dict[str, Any], step: int) -> None:
    """Refuse to go on with other text, another shape or other options; more steps may follow a stable phase."""
    old, new = had["schedule"], wanted["schedule"]
    if old.get("curve") == new["curve"] == "wsd" and step <= min(Schedule(**old).stable, Schedule(**new).stable):
        had = {**had, "schedule": {**old, "steps": new["steps"], "decay_share": new["decay_share"]}}
    for name in {**wanted, **had}:
        if had.get(name) != wanted.get(name):
            raise FormatError(f"{path}: cannot resume, the {name} was {had.get(name)}")
