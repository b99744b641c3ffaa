"""BitNet b1.58 in torch: float master weights, rounded to ternary in the forward pass, with straight-through gradients.

For comparison the same network can be trained in float32, with 8-bit operands, or with 4-bit operands and gradients.

The linear layers multiply integers: activations rounded to int8 per token, weights rounded to {-1, 0, +1} per tensor.
Both fit bfloat16 exactly, so the fast bfloat16 matrix product of new CPUs is no approximation of the operands;
only the rounding of its output differs from the float32 evaluation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import FormatError
from .attention import causal_attention
from .fourbit import INITIAL_CLIP, INITIAL_EXPONENT, four_bit_linear

__all__ = [
    "PRECISIONS",
    "BitNet",
    "BitNetShape",
    "Precision",
    "Quantisation",
    "bit_linear",
    "int8_weights",
    "keep_largest",
    "quantise_activations",
    "ternary",
]

Precision = Literal["ternary", "int8", "int4-fp4", "float32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Of the linear layers: ternary weights with 8-bit activations; 8 bits for both; 4 bits for both and for gradients."""

INITIAL_DEVIATION = 0.04
SCALE_FLOOR = 1e-5  # clamp of mean |W| and of max |x|, as in the BitNet b1.58 checkpoints


@dataclass(frozen=True)
class BitNetShape:
    """Hyper-parameters of a model that can be trained; the names are those of `lowbit.ModelPlan`."""

    vocab_size: int
    hidden_size: int = 256
    intermediate_size: int = 512
    n_layers: int = 8
    n_heads: int = 4
    n_kv_heads: int = 2
    context_length: int = 512
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    activation: Literal["relu2", "silu"] = "relu2"

    def __post_init__(self) -> None:
        if self.hidden_size % self.n_heads or self.n_heads % self.n_kv_heads:
            raise FormatError("the width must be a multiple of the heads, and the heads of the key-value heads")
        if self.head_dim % 2:
            raise FormatError(f"the width per head must be even, not {self.head_dim}")

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.hidden_size // self.n_heads

    @property
    def kv_size(self) -> int:
        """Channels of all key (or value) heads together."""
        return self.n_kv_heads * self.head_dim

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)


@dataclass
class Quantisation:
    """How strongly the forward pass rounds: the trainer turns these during a run."""

    strength: float = 1.0
    """0 computes in float (warm start), 1 as the exported file does; between them a linear mix."""
    keep: float = 1.0
    """Share of the input channels of each linear layer that are kept, largest magnitude first (Q-Sparse)."""
    precision: Precision = "ternary"
    """Of the linear layers; fixed for a run."""


def ternary(weight: Tensor, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Round a weight matrix to {-1, 0, +1} times one scale, with a straight-through gradient.

    Parameters
    ----------
    weight : Tensor of float32
    strength : share of the rounding that is applied, 0..1

    Returns
    -------
    codes : Tensor of float32, the shape of `weight`
    scale : Tensor of float32, scalar
        max(mean |W|, 1e-5), as in BitNet b1.58 (Ma et al., 2024).
    """
    scale = weight.detach().abs().mean().clamp(min=SCALE_FLOOR)
    codes = weight / scale
    return codes + strength * (codes.round().clamp(-1, 1) - codes).detach(), scale


def int8_weights(weight: Tensor, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Round a weight matrix to -127..127 times one scale (absmax), with a straight-through gradient.

    Parameters
    ----------
    weight : Tensor of float32
    strength : share of the rounding that is applied, 0..1

    Returns
    -------
    codes : Tensor of float32, the shape of `weight`
    scale : Tensor of float32, scalar
    """
    scale = weight.detach().abs().max().clamp(min=SCALE_FLOOR) / 127
    codes = weight / scale
    return codes + strength * (codes.round() - codes).detach(), scale


def quantise_activations(x: Tensor, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Round each token to int8 with its own scale (absmax, half to even), with a straight-through gradient.

    Returns
    -------
    codes : Tensor of float32, the shape of `x`, whole numbers in -127..127 at strength 1
    scale : Tensor of float32, shape (..., 1); ``codes * scale`` approximates `x`
    """
    scale = x.detach().abs().amax(-1, keepdim=True).clamp(min=SCALE_FLOOR) / 127
    codes = x / scale
    return codes + strength * (codes.round() - codes).detach(), scale


def keep_largest(x: Tensor, keep: float) -> Tensor:
    """Zero all but the largest magnitudes of each token; the gradient ignores the mask (Q-Sparse, arXiv 2407.10969).

    The threshold is found by bisection, 8 comparisons of the whole row, since sorting is slow on a CPU; so magnitudes
    closer than 1/256 of the largest are not told apart, and the share kept can be a little above `keep`.
    """
    size = x.detach().abs()
    wanted = keep * x.shape[-1]
    low = torch.zeros_like(size[..., :1])
    high = size.amax(-1, keepdim=True)
    for _ in range(8):
        middle = (low + high) / 2
        enough = (size >= middle).sum(-1, keepdim=True) >= wanted
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return x + torch.where(size >= low, 0.0, -x).detach()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def bit_linear(x: Tensor, weights: tuple[Tensor, ...], quantisation: Quantisation, compute: torch.dtype) -> Tensor:
    """Apply bias-free linear layers that share an input and concatenate their outputs, float32 (..., sum of out).

    The product is of the integer codes; both scales multiply afterwards, so `compute` may be bfloat16.
    """
    round_weights = int8_weights if quantisation.precision == "int8" else ternary
    codes, scale = quantise_activations(x, quantisation.strength)
    rounded = [round_weights(weight, quantisation.strength) for weight in weights]
    matrix = torch.cat([weight.to(compute) for weight, _ in rounded])
    scales = torch.cat([weight_scale.expand(weight.shape[0]) for weight, weight_scale in rounded])
    return functional.linear(codes.to(compute), matrix).float() * (scale * scales)


INPUTS = (("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))
"""The linear layers of a block, those together that read the same input."""
MATRICES = tuple(name for names in INPUTS for name in names)


class Block(nn.Module):
    """One transformer block; its parameters carry the names of the GGUF tensors."""

    attn_q: nn.Parameter
    attn_k: nn.Parameter
    attn_v: nn.Parameter
    attn_output: nn.Parameter
    ffn_gate: nn.Parameter
    ffn_up: nn.Parameter
    ffn_down: nn.Parameter
    attn_norm: nn.Parameter
    attn_sub_norm: nn.Parameter
    ffn_norm: nn.Parameter
    ffn_sub_norm: nn.Parameter

    def __init__(self, shape: BitNetShape, quantisation: Quantisation, compute: torch.dtype, dropout: float) -> None:
        super().__init__()
        self.shape, self.quantisation, self.compute, self.dropout = shape, quantisation, compute, dropout
        d, f, kv = shape.hidden_size, shape.intermediate_size, shape.kv_size
        matrices = {"attn_q": (d, d), "attn_k": (kv, d), "attn_v": (kv, d), "attn_output": (d, d)}
        matrices |= {"ffn_gate": (f, d), "ffn_up": (f, d), "ffn_down": (d, f)}
        for name, size in matrices.items():
            self.register_parameter(name, nn.Parameter(torch.randn(size) * INITIAL_DEVIATION))
        for name, width in {"attn_norm": d, "attn_sub_norm": d, "ffn_norm": d, "ffn_sub_norm": f}.items():
            self.register_parameter(name, nn.Parameter(torch.ones(width)))
        if quantisation.precision == "int4-fp4":
            self.input_clip = nn.Parameter(torch.full((len(INPUTS),), INITIAL_CLIP))
            self.grad_exponent = nn.Parameter(torch.full((len(matrices),), INITIAL_EXPONENT))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Update the residual stream, float32 (batch, time, hidden)."""
        shape = self.shape
        batch, time, _ = x.shape
        normed = rms_norm(x, self.attn_norm, shape.norm_eps)
        heads = self._linear(normed, 0)
        heads = heads.view(batch, time, shape.n_heads + 2 * shape.n_kv_heads, shape.head_dim)
        turned, v = torch.split(heads, [shape.n_heads + shape.n_kv_heads, shape.n_kv_heads], 2)
        q, k = torch.split(rotate(turned, cos, sin), [shape.n_heads, shape.n_kv_heads], 2)
        mixed = causal_attention(q, k, v, self.compute)
        mixed = rms_norm(mixed, self.attn_sub_norm, shape.norm_eps)
        x = x + self._drop(self._linear(mixed, 1))
        normed = rms_norm(x, self.ffn_norm, shape.norm_eps)
        gate, up = self._linear(normed, 2).chunk(2, -1)
        gate = gate.relu().square() if shape.activation == "relu2" else functional.silu(gate)
        inner = rms_norm(gate * up, self.ffn_sub_norm, shape.norm_eps)
        return x + self._drop(self._linear(inner, 3))

    def _linear(self, x: Tensor, which: int) -> Tensor:
        """Apply the linear layers of one entry of `INPUTS`; outputs side by side."""
        quantisation, names = self.quantisation, INPUTS[which]
        weights = tuple(getattr(self, name) for name in names)
        if quantisation.keep < 1:
            x = keep_largest(x, quantisation.keep)
        if quantisation.precision in ("ternary", "int8"):
            return bit_linear(x, weights, quantisation, self.compute)
        if quantisation.precision == "float32" or not quantisation.strength:
            return functional.linear(x.to(self.compute), torch.cat(weights).to(self.compute)).float()
        exponents = tuple(self.grad_exponent[MATRICES.index(name)] for name in names)
        return four_bit_linear(x, weights, self.input_clip[which], exponents, self.compute)

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training) if self.dropout else x


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to (batch, time, heads, head_dim): channel j turns with channel j + head_dim/2."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class BitNet(nn.Module):
    """A BitNet b1.58 language model (sub-norms, gated feed-forward layer, tied embeddings, rotary positions).

    ``dict(model.named_parameters())`` plus ``.weight`` gives the names of the GGUF tensors; 4-bit training adds an
    ``input_clip`` and a ``grad_exponent`` to each block.

    Parameters
    ----------
    shape : BitNetShape
    compute : dtype of the matrix products
    dropout : share of the residual updates that is dropped in training
    precision : of the linear layers, one of `PRECISIONS`
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        shape: BitNetShape,
        compute: torch.dtype = torch.float32,
        dropout: float = 0.0,
        precision: Precision = "ternary",
    ) -> None:
        super().__init__()
        self.shape, self.compute = shape, compute
        self.quantisation = Quantisation(precision=precision)
        self.token_embd = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_size) * INITIAL_DEVIATION)
        self.blk = nn.ModuleList(Block(shape, self.quantisation, compute, dropout) for _ in range(shape.n_layers))
        self.output_norm = nn.Parameter(torch.ones(shape.hidden_size))
        half = shape.head_dim // 2
        frequency = shape.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(shape.context_length, dtype=torch.float64)[:, None, None] * frequency
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    @property
    def grad_exponents(self) -> list[nn.Parameter]:
        """The exponents of 4-bit training's gradient scales; none otherwise. They follow a rule of their own."""
        return [p for name, p in self.named_parameters() if name.endswith("grad_exponent")]

    @property
    def blocks(self) -> list[Block]:
        """The transformer blocks in order."""
        return list(self.blk)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits, float32 (batch, time, vocab), for token ids (batch, time)."""
        time = tokens.shape[1]
        x = functional.embedding(tokens, self.token_embd)
        cos, sin = self.cos[:time], self.sin[:time]
        for block in self.blocks:
            x = block(x, cos, sin)
        x = rms_norm(x, self.output_norm, self.shape.norm_eps)
        return functional.linear(x.to(self.compute), self.token_embd.to(self.compute)).float()

    def compile(self) -> None:
        """Fuse the arithmetic between the matrix products with torch.compile; all blocks share one compilation."""
        for block in self.blocks:
            block.compile(dynamic=False)
