"""The training loop. What step n does follows from the options and n alone, so a resumed run equals an unbroken one."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import FormatError, LowbitError
from .checkpoint import load_checkpoint, save_checkpoint
from .corpus import Windows
from .model import BitNet

__all__ = ["Schedule", "fit"]


@dataclass(frozen=True)
class Schedule:
    """What happens at which step of a run. Shares are of all steps, 0..1."""

    steps: int = 0
    """Number of optimizer steps."""
    batch_tokens: int = 8192
    """Tokens per optimizer step."""
    micro_tokens: int = 4096
    """Tokens per forward pass; gradients of several passes add up to a step."""
    window: int = 256
    """Tokens per training sequence, at most the context length."""
    short_share: float = 0.0
    """Share of the run, from its start, with sequences of half the window: attention costs less there."""
    learning_rate: float = 1.5e-3
    """Peak, after the warm-up."""
    warmup_share: float = 0.03
    """Share with a rising learning rate; afterwards it falls linearly to 0."""
    float_share: float = 0.1
    """Share, from the start, that computes in float before rounding begins (warm start)."""
    weight_decay: float = 0.1
    """In the first half; 0 in the second, when the ternary weights settle (Ma et al., 2024)."""
    keep: float = 1.0
    """Share of each linear layer's input kept by top-k, on every other step of the last part of the run."""
    keep_share: float = 0.5
    """Share of the run, at its end, with top-k steps."""
    distill: float = 0.0
    """Weight of the teacher's distribution against the text itself in the loss."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    """Of the weights, the order of the text and dropout."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise FormatError(f"a run cannot have {self.steps} steps")
        if self.micro_tokens < self.window or self.batch_tokens % self.micro_tokens or self.micro_tokens % self.window:
            raise FormatError("the batch must be a multiple of the micro-batch, and that a multiple of the window")
        if self.short_share and self.window % 2:
            raise FormatError("half of the window must be a whole number of tokens")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        warm = max(1, round(self.warmup_share * self.steps))
        return self.learning_rate * min((step + 1) / warm, (self.steps - step) / max(1, self.steps - warm))

    def decay(self, step: int) -> float:
        """Return the weight decay of a step."""
        return self.weight_decay if step < self.steps / 2 else 0.0

    def strength(self, step: int) -> float:
        """Return how strongly step `step` rounds: 0 or 1."""
        return 0.0 if step < self.float_share * self.steps else 1.0

    def keep_at(self, step: int) -> float:
        """Return the share of inputs kept at a step."""
        return self.keep if step >= (1 - self.keep_share) * self.steps and step % 2 else 1.0

    def length(self, step: int) -> int:
        """Return the sequence length of a step."""
        return self.window // 2 if step < round(self.short_share * self.steps) else self.window

    def first_window(self, step: int) -> int:
        """Return the index of the first window of a step, counted among windows of its length."""
        turn = round(self.short_share * self.steps)
        if step < turn:
            return step * (self.batch_tokens * 2 // self.window)
        return turn * self.batch_tokens // self.window + (step - turn) * (self.batch_tokens // self.window)


def loss_of(model: BitNet, tokens: Tensor, teacher: BitNet | None, distill: float) -> tuple[Tensor, Tensor]:
    """Return the loss to minimise and the cross-entropy with the text, both mean nats per token."""
    logits = model(tokens[:, :-1]).flatten(0, 1)
    text = functional.cross_entropy(logits, tokens[:, 1:].flatten())
    if teacher is None or not distill:
        return text, text.detach()
    with torch.no_grad():
        target = teacher(tokens[:, :-1]).flatten(0, 1).log_softmax(-1)
    divergence = functional.kl_div(logits.log_softmax(-1), target, log_target=True, reduction="batchmean")
    return (1 - distill) * text + distill * divergence, text.detach()


def fit(
    model: BitNet,
    documents: list[Any],
    schedule: Schedule,
    checkpoint: Path,
    *,
    teacher: BitNet | None = None,
    identity: dict[str, Any] | None = None,
    resume: bool = False,
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
    checkpoint : file for the state, written every `checkpoint_seconds` and at the end
    teacher : model over the same vocabulary whose predictions are learned too (knowledge distillation)
    identity : what else a resumed run must have in common with the first part (corpus, shape)
    resume : continue from `checkpoint`
    validate : measures the model, in bits per byte; called every `validate_every` steps and at the end
    report : called after each step with the newest record

    Returns
    -------
    list of dict
        A record per step: step, loss, rate, seconds, tokens; and bits_per_byte where it was measured.

    Raises
    ------
    LowbitError
        If the loss is no longer finite; `checkpoint` then holds the last good state.
    """
    device = model.cos.device
    exponents = model.grad_exponents
    parameters = [p for p in model.parameters() if not any(p is exponent for exponent in exponents)]
    matrices = {"params": [p for p in parameters if p.ndim > 1]}  # the first group; norms never decay
    groups = [matrices, {"params": [p for p in parameters if p.ndim < 2]}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    same = {"schedule": asdict(schedule), **(identity or {})}
    history: list[dict[str, float]] = []
    start = 0
    torch.manual_seed(schedule.seed)
    if resume:
        progress = load_checkpoint(checkpoint, model, optimizer)
        wanted = json.loads(json.dumps(same))
        for name in {**wanted, **progress["same"]}:
            if progress["same"].get(name) != wanted.get(name):
                raise FormatError(f"{checkpoint}: cannot resume, the {name} was {progress['same'].get(name)}")
        start, history = progress["step"], progress["history"]
    windows = {n: Windows(documents, n, schedule.seed) for n in {schedule.length(0), schedule.window}}

    def save(step: int) -> None:
        save_checkpoint(checkpoint, model, optimizer, {"step": step, "same": same, "history": history})

    if not resume:
        save(0)
    model.train()
    saved = time.monotonic()
    for step in range(start, schedule.steps):
        begun = time.monotonic()
        model.quantisation.strength = schedule.strength(step)
        model.quantisation.keep = schedule.keep_at(step)
        optimizer.param_groups[0]["weight_decay"] = schedule.decay(step)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        length, passes = schedule.length(step), schedule.batch_tokens // schedule.micro_tokens
        rows, first, total = schedule.micro_tokens // length, schedule.first_window(step), 0.0
        for i in range(passes):
            tokens = torch.from_numpy(windows[length].batch(first + i * rows, rows)).to(device)
            loss, text = loss_of(model, tokens, teacher, schedule.distill)
            (loss / passes).backward()  # type: ignore[no-untyped-call]
            total += text.item() / passes
        norm = torch.nn.utils.clip_grad_norm_(parameters, schedule.clip)
        if not (math.isfinite(total) and math.isfinite(norm.item())):
            raise LowbitError(
                f"the loss is {total:.3g} and its gradient {norm.item():.3g} at step {step + 1}: "
                f"try a lower learning rate; the last good state is in {checkpoint}"
            )
        optimizer.step()
        for exponent in exponents:
            if exponent.grad is not None:
                exponent.data += (exponent.grad / passes).round()
                exponent.grad = None
        optimizer.zero_grad(set_to_none=True)
        record = {"step": step + 1, "loss": total, "rate": schedule.rate(step), "seconds": time.monotonic() - begun}
        last = step + 1 == schedule.steps
        if validate and (last or (validate_every and (step + 1) % validate_every == 0)):
            model.quantisation.strength, model.quantisation.keep = 1.0, 1.0
            record["bits_per_byte"] = validate()
        history.append(record)
        if last or time.monotonic() - saved > checkpoint_seconds:
            save(step + 1)
            saved = time.monotonic()
        if report:
            report(record)
    model.quantisation.strength, model.quantisation.keep = 1.0, 1.0
    model.eval()
    return history
