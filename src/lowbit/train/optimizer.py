"""AdamW, and Muon for the matrices of linear layers: one parameter at a time, so that processes can share the work."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

from .model import BitNet

OptimizerName = Literal["adamw", "muon"]
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)

BETAS = (0.9, 0.95)
MOMENTUM = 0.95
ADAM_SHARE = 0.5
"""Of Muon's learning rate, for the parameters that AdamW updates beside it."""
MATCH_ADAM = 0.2
"""Typical size of one number of an AdamW update; Muon's are scaled to it (Liu et al., 2025, arXiv 2502.16982)."""
NEWTON_SCHULZ = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
)
"""a, b, c of each round of X <- a X + b X X'X + c X (X'X)^2, which brings all singular values near 1."""


def orthogonalise(matrix: Tensor, compute: torch.dtype = torch.bfloat16) -> Tensor:
    """Return the nearest matrix whose singular values are all about 1, float32 (Jordan et al., 2024, Muon)."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    x = (wide / (wide.norm() * 1.01 + 1e-12)).to(compute)
    for a, b, c in NEWTON_SCHULZ:
        square = x @ x.t()
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    result = x.float()
    return result if wide is matrix else result.t()


class Optimizer:
    """Updates the parameters of a model from gradients that are given one by one.

    Parameters
    ----------
    model : BitNet
    name : ``muon`` updates the matrices of linear layers by Muon and all else by AdamW
    ema : decay of the running mean of the parameters, 0 for none
    """

    def __init__(self, model: BitNet, name: OptimizerName = "adamw", ema: float = 0.0) -> None:
        self.parameters = dict(model.named_parameters())
        self.compute = model.compute
        self.ema = ema
        self.moves = {n for n in self.parameters if n.endswith("grad_exponent")}
        """Exponents of 4-bit training's gradient scales; they follow a rule of their own."""
        self.matrices = (
            {n for n, p in self.parameters.items() if p.ndim == 2 and n.startswith("blk.")} if name == "muon" else set()
        )
        self.with_muon = name == "muon"
        self.state: dict[str, dict[str, Tensor]] = {}
        for n, parameter in self.parameters.items():
            kinds = () if n in self.moves else ("momentum",) if n in self.matrices else ("exp_avg", "exp_avg_sq")
            self.state[n] = {kind: torch.zeros_like(parameter.data) for kind in kinds}
            if ema:
                self.state[n]["mean"] = parameter.data.clone()

    def share_memory(self) -> None:
        """Let processes that are forked from now on see the same parameters and state."""
        for name, parameter in self.parameters.items():
            parameter.data = parameter.data.share_memory_()  # type: ignore[no-untyped-call]
            for tensor in self.state[name].values():
                tensor.share_memory_()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, name: str, gradient: Tensor, step: int, rate: float, decay: float) -> None:
        """Take one step.

        Parameters
        ----------
        name : of the parameter
        gradient : float32; of a `grad_exponent` how far it should move
        step : number of the step, from 0
        rate : learning rate
        decay : weight decay, for matrices only
        """
        parameter, state = self.parameters[name].data, self.state[name]
        if name in self.moves:
            parameter += gradient.round()
        elif name in self.matrices:
            state["momentum"].mul_(MOMENTUM).add_(gradient)
            change = orthogonalise(gradient.add(state["momentum"], alpha=MOMENTUM), self.compute)
            parameter.mul_(1 - rate * decay)
            parameter.add_(change, alpha=-rate * MATCH_ADAM * math.sqrt(max(parameter.shape)))
        else:
            rate *= ADAM_SHARE if self.with_muon else 1.0
            first, second = state["exp_avg"], state["exp_avg_sq"]
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            if parameter.ndim > 1:
                parameter.mul_(1 - rate * decay)
            size = (second / (1 - BETAS[1] ** (step + 1))).sqrt_().add_(1e-8)
            parameter.addcdiv_(first, size, value=-rate / (1 - BETAS[0] ** (step + 1)))
        if self.ema:
            # as young as the run at first, so that the random start is forgotten
            state["mean"].lerp_(parameter, max(1 - self.ema, 1 / (step + 1)))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model compute with the running means of its parameters for a while."""
        own = {name: p.data for name, p in self.parameters.items()}
        for name, mean in self.means().items():
            self.parameters[name].data = mean
        try:
            yield
        finally:
            for name, data in own.items():
                self.parameters[name].data = data

    def means(self) -> dict[str, Tensor]:
        """Return the running means of all parameters, or the parameters where there are none."""
        return {n: self.state[n].get("mean", p.data) for n, p in self.parameters.items()}
