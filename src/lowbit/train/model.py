"""BitNet b1.58 in torch: float master weights, rounded to ternary in the forward pass, with straight-through gradients.

For comparison the same network can be trained in float32, with 8-bit operands, or with 4-bit operands and gradients.

The linear layers multiply integers: activations rounded to int8 per token, weights rounded to {-1, 0, +1} per tensor.
Both fit bfloat16 exactly, so the fast bfloat16 matrix product of new CPUs is no approximation of the operands;
only the rounding of its output differs from the float32 evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import FormatError
from .attention import causal_attention
from .corpus import IGNORED
from .fourbit import INITIAL_CLIP, INITIAL_EXPONENT, four_bit_linear

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


@dataclass
class Quantisation:
    """How the forward pass rounds: the trainer turns these during a run."""

    on: bool = True
    """False computes in float (warm start), True as the exported file does."""
    keep: float = 1.0
    """Share of the input channels of each linear layer that are kept, largest magnitude first (Q-Sparse)."""
    precision: Precision = "ternary"
    """Of the linear layers; fixed for a run."""


def ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight matrix to {-1, 0, +1} times one scale.

    Parameters
    ----------
    weight : Tensor of float32

    Returns
    -------
    codes : Tensor of float32, the shape of `weight`
    scale : Tensor of float32, scalar
        max(mean |W|, 1e-5), as in BitNet b1.58 (Ma et al., 2024).
    """
    scale = weight.detach().abs().mean().clamp(min=SCALE_FLOOR)
    return (weight.detach() / scale).round().clamp(-1, 1), scale


def int8_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight matrix to -127..127 times one scale (absmax); arguments and results as in `ternary`."""
    scale = weight.detach().abs().max().clamp(min=SCALE_FLOOR) / 127
    return (weight.detach() / scale).round(), scale


def quantise_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each token to int8 with its own scale (absmax, half to even).

    Returns
    -------
    codes : Tensor of float32, the shape of `x`, whole numbers in -127..127
    scale : Tensor of float32, shape (..., 1); ``codes * scale`` approximates `x`
    """
    scale = x.detach().abs().amax(-1, keepdim=True).clamp(min=SCALE_FLOOR) / 127
    return (x.detach() / scale).round(), scale


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


class Rounded(NamedTuple):
    """The weights of linear layers that share an input, as the products of one step read them."""

    matrix: Tensor
    """Rounded weights in the type of the products, (sum of out, in); the gradient of the weights arrives here."""
    codes: Tensor | None = None
    """Their whole numbers: int8 where the processor multiplies bytes, else in the type of the products."""
    scales: Tensor | None = None
    """float32, (sum of out)"""


def multiplies_bytes(compute: torch.dtype) -> bool:
    """Tell whether products of int8 codes are faster than those of bfloat16 codes, which give the same."""
    support = getattr(torch.cpu, "_is_vnni_supported", None)
    return compute == torch.bfloat16 and bool(support and support())


def round_weights(weights: Sequence[Tensor], quantisation: Quantisation, compute: torch.dtype) -> Rounded:
    """Round the weights of linear layers that share an input, with straight-through gradients."""
    if not quantisation.on or quantisation.precision == "float32":
        return Rounded(torch.cat([weight.to(compute) for weight in weights]))
    one = int8_weights if quantisation.precision == "int8" else ternary
    codes, scales = zip(*map(one, weights), strict=True)
    straight = [weight + (c * scale - weight).detach() for weight, c, scale in zip(weights, codes, scales, strict=True)]
    as_bytes = weights[0].device.type == "cpu" and multiplies_bytes(compute)
    return Rounded(
        torch.cat([matrix.to(compute) for matrix in straight]),
        torch.cat([c.to(torch.int8 if as_bytes else compute) for c in codes]),
        torch.cat([scale.expand(c.shape[0]) for c, scale in zip(codes, scales, strict=True)]),
    )


class CodeProduct(torch.autograd.Function):
    """The product of int8 activations and rounded weights. Gradients pass the rounding as if it were not there.

    Forward, whole numbers are multiplied, which is exact in int8 and in float32. Backward both operands stand for
    what they were rounded to, in the type of the products.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        numbers, scale = quantise_activations(x)
        ctx.save_for_backward((numbers * scale).to(matrix.dtype), matrix)
        ctx.dtype = x.dtype
        if codes.dtype == torch.int8:
            sums = torch._int_mm(numbers.to(torch.int8), codes.t())
        else:
            sums = functional.linear(numbers.to(codes.dtype), codes)
        return (sums.float() * scale * scales).to(matrix.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, matrix = ctx.saved_tensors
        return (gradient @ matrix).to(ctx.dtype), gradient.t() @ x, None, None


def bit_linear(x: Tensor, weights: Rounded) -> Tensor:
    """Apply bias-free linear layers that share an input; outputs side by side, in the type of the products."""
    rows = x.flatten(0, -2)
    if weights.codes is None:
        product = functional.linear(rows.to(weights.matrix.dtype), weights.matrix)
    else:
        product = CodeProduct.apply(rows, *weights)  # type: ignore[no-untyped-call]
    return product.view(*x.shape[:-1], -1)


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

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, first: Tensor | None, weights: Sequence[Rounded]) -> Tensor:
        """Update the residual stream, float32 (batch, time, hidden); `first` as in `causal_attention`."""
        shape = self.shape
        batch, time, _ = x.shape
        normed = rms_norm(x, self.attn_norm, shape.norm_eps)
        heads = self._linear(normed, 0, weights)
        heads = heads.view(batch, time, shape.n_heads + 2 * shape.n_kv_heads, shape.head_dim)
        turned, v = torch.split(heads, [shape.n_heads + shape.n_kv_heads, shape.n_kv_heads], 2)
        q, k = torch.split(rotate(turned, cos, sin), [shape.n_heads, shape.n_kv_heads], 2)
        mixed = causal_attention(q, k, v, first)
        mixed = rms_norm(mixed.float(), self.attn_sub_norm, shape.norm_eps)
        x = x + self._drop(self._linear(mixed, 1, weights))
        normed = rms_norm(x, self.ffn_norm, shape.norm_eps)
        gate, up = self._linear(normed, 2, weights).float().chunk(2, -1)
        gate = gate.relu().square() if shape.activation == "relu2" else functional.silu(gate)
        inner = rms_norm(gate * up, self.ffn_sub_norm, shape.norm_eps)
        return x + self._drop(self._linear(inner, 3, weights))

    def round_weights(self) -> list[Rounded]:
        """Round the weights of each entry of `INPUTS`, but for 4-bit training, which rounds in its products."""
        if self.quantisation.precision == "int4-fp4":
            return []
        return [round_weights(self.matrices(which), self.quantisation, self.compute) for which in range(len(INPUTS))]

    def matrices(self, which: int) -> list[nn.Parameter]:
        """Return the float weights of one entry of `INPUTS`."""
        return [getattr(self, name) for name in INPUTS[which]]

    def _linear(self, x: Tensor, which: int, weights: Sequence[Rounded]) -> Tensor:
        """Apply the linear layers of one entry of `INPUTS`; outputs side by side."""
        quantisation = self.quantisation
        if quantisation.keep < 1:
            x = keep_largest(x, quantisation.keep)
        if weights:
            return bit_linear(x, weights[which])
        own = tuple(self.matrices(which))
        if not quantisation.on:
            return functional.linear(x.to(self.compute), torch.cat(own).to(self.compute)).float()
        exponents = tuple(self.grad_exponent[MATRICES.index(name)] for name in INPUTS[which])
        return four_bit_linear(x, own, self.input_clip[which], exponents, self.compute)

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training) if self.dropout else x


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to (batch, time, heads, head_dim): channel j turns with channel j + head_dim/2."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def _heard(gradient: Tensor) -> None:
    """Do nothing, in Python: between two calls of it Ctrl-C is not heard while gradients are computed."""


def text_loss(x: Tensor, norm: Tensor, head: Tensor, targets: Tensor, eps: float) -> Tensor:
    """Return the cross-entropy of the output head with the targets, a sum in nats; a target below 0 does not count."""
    logits = functional.linear(rms_norm(x, norm, eps).to(head.dtype), head).float()
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


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
        self.text_loss = text_loss
        self.token_embd = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_size) * INITIAL_DEVIATION)
        self.blk = nn.ModuleList(Block(shape, self.quantisation, compute, dropout) for _ in range(shape.n_layers))
        self.output_norm = nn.Parameter(torch.ones(shape.hidden_size))
        half = shape.head_dim // 2
        frequency = shape.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(shape.context_length, dtype=torch.float64)[:, None, None] * frequency
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    @property
    def blocks(self) -> list[Block]:
        """The transformer blocks in order."""
        return list(self.blk)  # type: ignore[arg-type]

    def round_weights(self) -> list[list[Rounded]]:
        """Round all weights of linear layers, once for any number of passes."""
        return [block.round_weights() for block in self.blocks]

    def hidden(
        self, tokens: Tensor, first: Tensor | None = None, weights: Sequence[Sequence[Rounded]] | None = None
    ) -> Tensor:
        """Return the residual stream before the last norm, float32 (batch, time, hidden)."""
        time = tokens.shape[1]
        x = functional.embedding(tokens, self.token_embd)
        cos, sin = self.cos[:time], self.sin[:time]
        for block, own in zip(self.blocks, self.round_weights() if weights is None else weights, strict=True):
            x = block(x, cos, sin, first, own)
            if x.requires_grad:
                x.register_hook(_heard)
        return x

    def forward(
        self, tokens: Tensor, first: Tensor | None = None, weights: Sequence[Sequence[Rounded]] | None = None
    ) -> Tensor:
        """Return logits, float32 (batch, time, vocab).

        Parameters
        ----------
        tokens : Tensor of int64, shape (batch, time)
        first : Tensor of int, shape (batch, time), optional
            Place of the first token that each token may look at, where rows hold several documents.
        weights : optional
            Of `round_weights`, where several passes share them.
        """
        x = rms_norm(self.hidden(tokens, first, weights), self.output_norm, self.shape.norm_eps)
        return functional.linear(x.to(self.compute), self.token_embd.to(self.compute)).float()

    def loss(
        self, tokens: Tensor, targets: Tensor, first: Tensor, weights: Sequence[Sequence[Rounded]], asked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of the cross-entropy with the targets in nats, and that of the targets `asked` alone.

        A target of `IGNORED` does not count.
        """
        x = self.hidden(tokens, first, weights)
        head = self.token_embd.to(self.compute)
        text = self.text_loss(x, self.output_norm, head, targets, self.shape.norm_eps)
        # seldom more than one in a hundred, and never as many as the last time: not worth compiling
        return text, text_loss(x[asked][None], self.output_norm, head, targets[asked][None], self.shape.norm_eps)

    def compile(self) -> None:
        """Fuse the arithmetic between the matrix products with torch.compile; all blocks share one compilation."""
        for block in self.blocks:
            block.compile(dynamic=False)
        self.text_loss = torch.compile(text_loss, dynamic=False)
