"""4-bit training after Sun et al. ("Ultra-Low Precision 4-bit Training of Deep Neural Networks", NeurIPS 2020).

All three matrix products of a linear layer see 4-bit operands: INT4 weights (SAWB), INT4 activations (PACT) and FP4
gradients of radix 4. The products are carried out in float, as in the paper's own experiments, so this shows what such
hardware would learn, not how fast it would be.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LEVELS = 7
"""INT4 without its lowest code: -7..7, so that 0 lies in the middle."""
SAWB = (12.68, -12.80)
"""c0 and c1 of the clipping value c0 * sqrt(E[w^2]) + c1 * E|w| for 4 bits."""
INITIAL_CLIP = 3.0
"""Where activations are clipped before this is learned; they come from a norm, so their mean square is about 1."""
SMALLEST_CLIP = 1e-3
INITIAL_EXPONENT = 16.0
"""Gradients of a mean loss are small; after one step the exponent is as the gradients want it."""

MAGNITUDES = tuple(4.0**n for n in range(-3, 4))
"""FP4 with sign, three bits of exponent and none of mantissa, radix 4: these, their negatives, and 0."""
THRESHOLDS = tuple(m / 1.6 for m in MAGNITUDES)
"""From 4^n / 1.6 on a value becomes 4^n: that is the middle between 4^(n-1) and 4^n."""


def round_fp4(x: Tensor) -> Tensor:
    """Round to the nearest of 0 and +-4^n, n = -3..3; infinite values and NaN stay what they are."""
    table = torch.tensor((0.0, *MAGNITUDES), dtype=x.dtype, device=x.device)
    thresholds = torch.tensor(THRESHOLDS, dtype=x.dtype, device=x.device)
    rounded = table[torch.bucketize(x.abs(), thresholds, right=True)]
    return torch.where(x.isfinite(), rounded.copysign(x), x)


def int4_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round weights to INT4 with a statistics-aware clipping value (SAWB), with a straight-through gradient.

    Returns
    -------
    codes : Tensor, the shape of `weight`, whole numbers in -7..7
    step : Tensor, scalar; ``codes * step`` approximates `weight`
    """
    w = weight.detach()
    clip = SAWB[0] * w.square().mean().sqrt() + SAWB[1] * w.abs().mean()
    step = torch.where(clip > 0, clip, w.abs().max()).clamp(min=1e-8) / LEVELS
    codes = weight / step
    return codes + (codes.round().clamp(-LEVELS, LEVELS) - codes).detach(), step


def pact(x: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
    """Round activations to INT4 within a learned range (PACT, for activations of both signs).

    The gradient passes where ``|x| < clip``, and elsewhere goes to `clip`.

    Returns
    -------
    codes : Tensor, the shape of `x`, whole numbers in -7..7
    step : Tensor, scalar; ``codes * step`` approximates `x`
    """
    limit = clip.clamp(min=SMALLEST_CLIP)
    step = limit.detach() / LEVELS
    codes = torch.minimum(torch.maximum(x, -limit), limit) / step
    return codes + (codes.round() - codes).detach(), step


class FourBitProduct(torch.autograd.Function):
    """Multiply activation codes by weight codes; the gradient is rounded to FP4 on its way to each of them.

    Two-phase rounding: towards the activations it becomes 4^n, towards the weights 2 * 4^n, so that the two products
    do not share their rounding errors. GradScale: `exponent` is the layer's own power of two that brings gradients
    into the range of FP4. What is returned as its "gradient" is how far it should move: the largest gradient is to lie
    between the largest magnitudes of the two phases.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, exponent: Tensor) -> Tensor:
        """Return x @ weight.T for x (tokens, in) and weight (out, in)."""
        ctx.save_for_backward(x, weight, exponent)
        return x @ weight.mT

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of the operands, and the move of the exponent."""
        x, weight, exponent = ctx.saved_tensors
        gradient = gradients[0].float()
        scale = exponent.exp2()
        scaled = gradient * scale
        to_inputs = (round_fp4(scaled) / scale).to(x.dtype)
        to_weights = (round_fp4(scaled / 2) * 2 / scale).to(x.dtype)
        largest = scaled.abs().max()
        move = torch.where(largest > 0, (2 * MAGNITUDES[-1] / largest).log2().floor(), 0.0)
        return to_inputs @ weight, to_weights.mT @ x, move


def four_bit_linear(
    x: Tensor, weights: tuple[Tensor, ...], clip: Tensor, exponents: tuple[Tensor, ...], compute: torch.dtype
) -> Tensor:
    """Apply linear layers that share an input, and concatenate their outputs.

    Parameters
    ----------
    x : Tensor of float32, shape (..., in)
    weights : of each layer, (out, in)
    clip : where the input is clipped, scalar
    exponents : GradScale of each layer, scalars
    compute : dtype of the products; codes are exact in bfloat16

    Returns
    -------
    Tensor of float32, shape (..., sum of out)
    """
    codes, step = pact(x.flatten(0, -2), clip)
    codes = codes.to(compute)
    outputs = []
    for weight, exponent in zip(weights, exponents):
        weight_codes, weight_step = int4_weights(weight)
        product = FourBitProduct.apply(codes, weight_codes.to(compute), exponent)  # type: ignore[no-untyped-call]
        outputs.append(product.float() * (step * weight_step))
    return torch.cat(outputs, -1).view(*x.shape[:-1], -1)
