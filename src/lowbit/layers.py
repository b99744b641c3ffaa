"""The kinds of layers, with their numbers and weights.

A layer has a mixer, which lets tokens look at each other, and a feed-forward, which does not. Each kind of these is a
class here with its numbers as fields, and `parts` lists what it consists of, in the order of the computation. A new
kind is one more such class, beside the kernels that compute it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["norm", "bias", "linear", "router", "embedding", "head", "factors", "recurrence"]
"""What a weight is for: a vector to scale by or to add, rows to multiply with (of a layer, of what chooses experts, of
the output head), rows to look up, divisors of the rotary frequencies, the few numbers of a recurrent mixer."""

Activation = Literal["silu", "relu2", "gelu", "swiglu_oai"]
"""Of a gate: SiLU, squared ReLU, GELU by its approximation with tanh, or gpt-oss's x sigmoid(1.702 x), where what the
gate multiplies has 1 added to it first."""


@dataclass(frozen=True)
class Weight:
    """One tensor of a model."""

    role: str
    """What it does in its layer: ``attn_q``, ``ffn_norm``, ..."""
    name: str
    """Of the tensor in a GGUF file: ``blk.0.attn_q.weight``."""
    shape: tuple[int, ...]
    """Row-major: a linear layer is (out, in), one of experts (n, out, in)."""
    kind: Kind
    layer: int = -1
    """Number of its layer; -1 for those that belong to none."""


@dataclass(frozen=True)
class Linear:
    """Weights that read the same input; their outputs lie side by side."""

    name: str
    """``qkv``, ``attn_output``, ``gate_up`` or ``ffn_down``; where there are experts also ``router``,
    ``expert_gate_up``, ``expert_down``, ``shared_gate``; where attention is latent ``q_b``, ``k_b``, ``v_b``,
    ``kv_b``."""
    weights: tuple[Weight, ...]
    biases: tuple[Weight, ...] = ()
    """Either none, or one for each weight."""
    norms: tuple[Weight, ...] = ()
    """RMSNorms of the input, likewise: each weight reads what its own norm makes of it."""

    @property
    def n_in(self) -> int:
        """Inputs."""
        return self.weights[0].shape[-1]

    @property
    def n_out(self) -> int:
        """Outputs of all weights together; of one expert, or one head."""
        return sum(weight.shape[-2] for weight in self.weights)


class _Layer:
    """Where a layer's weights stand: its number, and the width of the residual stream."""

    def __init__(self, number: int, hidden: int) -> None:
        self.number, self.hidden = number, hidden

    def norm(self, role: str, size: int, tensor: str = "") -> Weight:
        return Weight(role, f"blk.{self.number}.{tensor or role}.weight", (size,), "norm", self.number)

    def linear(
        self, name: str, rows: Mapping[str, int], n_in: int, bias: bool = False, norms: bool = False,
        stack: tuple[int, ...] = (), kind: Kind = "linear",
    ) -> Linear:  # fmt: skip
        """One matrix for each role; `stack`: of so many experts, or heads."""
        block = f"blk.{self.number}."
        return Linear(
            name,
            tuple(Weight(r, f"{block}{r}.weight", (*stack, n, n_in), kind, self.number) for r, n in rows.items()),
            tuple(
                Weight(f"{r}_bias", f"{block}{r}.bias", (*stack, n), "bias", self.number) for r, n in rows.items()
            ) if bias else (),
            tuple(self.norm(f"{r}_norm_in", n_in) for r in rows) if norms else (),
        )  # fmt: skip


Parts = Iterator[Weight | Linear]


@dataclass(frozen=True)
class Rope:
    """Rotary positions."""

    dim: int
    """Channels of a head that are rotated."""
    theta: float = 10000.0
    """Base of the frequencies."""
    pairing: Literal["adjacent", "halves"] = "adjacent"
    """Which channels form a rotated pair: (2j, 2j+1), or (j, j + dim/2)."""
    factors: tuple[float, ...] = ()
    """Divisors of the frequencies, one per pair; empty means all 1."""
    scale: float = 1.0
    """Factor of the cosines and sines, so of the length of rotated queries and keys (the attention factor of
    YaRN and LongRoPE)."""


@dataclass(frozen=True)
class Attention:
    """A mixer: attention over all earlier tokens, whose query heads share key and value heads in groups."""

    n_heads: int
    n_kv_heads: int
    """Divides `n_heads`."""
    head_dim: int
    """Channels per head; `n_heads * head_dim` may differ from the hidden size."""
    rope: Rope | None
    """None: positions leave no trace in queries and keys."""
    bias: bool = False
    """Query, key and value projections have a bias."""
    qk_norm: bool = False
    """RMSNorm over `head_dim` of each query and key head."""
    sub_norm: bool = False
    """RMSNorm over the concatenated heads, before the output projection."""
    norm_after_rope: bool = False
    """The norm of queries and keys comes after RoPE, not before it."""
    window: int = 0
    """A query sees the keys that are less than this many positions before it; 0: all."""
    scale: float = 0.0
    """Factor of the scores; 0 is 1 / sqrt(head_dim)."""
    post_norm: bool = False
    """RMSNorm of what the output projection gives, before it is added to the residual stream."""
    input_norms: bool = False
    """Each linear layer has an RMSNorm of its input."""
    whole_norm: bool = False
    """RMSNorm over all query heads together, and over all key heads, before RoPE."""
    output_bias: bool = False
    """The output projection has a bias."""
    sinks: bool = False
    """Each query head has one more score, which takes part in the softmax and brings no value."""
    gated: bool = False
    """The query projection has `head_dim` more rows behind those of each head: what the heads give is multiplied by
    the logistic function of these."""
    fused: bool = False
    """Query, key and value projections are one tensor."""

    @property
    def value_dim(self) -> int:
        """Channels that are kept of a value."""
        return self.head_dim

    def parts(self, layer: _Layer) -> Parts:
        """List norms and linear layers in the order of the computation."""
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        yield layer.norm("attn_norm", layer.hidden)
        rows = {"attn_q": 2 * q if self.gated else q, "attn_k": kv, "attn_v": kv}
        rows = {"attn_qkv": sum(rows.values())} if self.fused else rows
        yield layer.linear("qkv", rows, layer.hidden, self.bias, self.input_norms)
        if self.qk_norm or self.whole_norm:
            yield layer.norm("attn_q_norm", q if self.whole_norm else self.head_dim)
            yield layer.norm("attn_k_norm", kv if self.whole_norm else self.head_dim)
        if self.sub_norm:
            yield layer.norm("attn_sub_norm", q)
        if self.sinks:
            yield Weight(
                "attn_sinks", f"blk.{layer.number}.attn_sinks.weight", (self.n_heads,), "bias", layer.number
            )  # fmt: skip
        yield layer.linear("attn_output", {"attn_output": layer.hidden}, q, self.output_bias, self.input_norms)
        if self.post_norm:
            yield layer.norm("attn_post_norm", layer.hidden, "post_attention_norm")


@dataclass(frozen=True)
class LatentAttention:
    """A mixer: attention whose keys and values all heads make of one short vector per token, the latent (DeepSeek).

    A key is what a head's matrix makes of the latent, and beside that rotated channels that all heads share. Kept of a
    token are its latent and these.
    """

    n_heads: int
    rank: int
    """Channels of the latent, which is normalised."""
    nope_dim: int
    """Channels of a query that meet those made of the latent; the rotated ones are beside them."""
    value_size: int
    """Channels that a head makes of the latents that it attends to."""
    rope: Rope
    """Of as many channels as are beside the others."""
    q_rank: int = 0
    """Channels of a vector, normalised too, that the queries are made of; 0: they are made of the layer's input."""
    scale: float = 0.0
    """Factor of the scores; 0 is 1 / sqrt(channels of a query)."""
    joined: bool = False
    """The file has the matrices of a head for keys and for values as one, and the former the other way round."""
    window: int = 0
    """It has none."""
    n_kv_heads: int = 1
    """What is kept is that of one head."""

    @property
    def head_dim(self) -> int:
        """Channels of what stands for a key."""
        return self.rank + self.rope.dim

    @property
    def value_dim(self) -> int:
        """None but those of the key, whose first ones, the latent, stand for the value."""
        return 0

    def parts(self, layer: _Layer) -> Parts:
        """List norms and linear layers in the order of the computation."""
        queries = self.n_heads * (self.nope_dim + self.rope.dim)
        yield layer.norm("attn_norm", layer.hidden)
        rows = {"attn_q_a": self.q_rank} if self.q_rank else {"attn_q": queries}
        yield layer.linear("qkv", {**rows, "attn_kv_a_mqa": self.head_dim}, layer.hidden)
        if self.q_rank:
            yield layer.norm("attn_q_a_norm", self.q_rank)
            yield layer.linear("q_b", {"attn_q_b": queries}, self.q_rank)
        yield layer.norm("attn_kv_a_norm", self.rank)
        if self.joined:
            rows = {"attn_kv_b": self.n_heads * (self.nope_dim + self.value_size)}
            yield layer.linear("kv_b", rows, self.rank)
        else:
            yield layer.linear("k_b", {"attn_k_b": self.rank}, self.nope_dim, stack=(self.n_heads,))
            yield layer.linear("v_b", {"attn_v_b": self.value_size}, self.rank, stack=(self.n_heads,))
        yield layer.linear("attn_output", {"attn_output": layer.hidden}, self.n_heads * self.value_size)


@dataclass(frozen=True)
class DeltaNet:
    """A recurrent mixer: a short convolution, and a matrix per head that follows the gated delta rule."""

    n_key_heads: int
    n_value_heads: int
    """A multiple of `n_key_heads`."""
    head_dim: int
    """Channels of each key and of each value."""
    taps: int
    """Tokens that the convolution sees, the current one among them."""
    grouped: bool = False
    """Value head h reads key head h div (`n_value_heads / n_key_heads`), and not h mod `n_key_heads`. Then learning
    rates and decays are one tensor, in which each key head has the rates of its value heads and then their decays."""
    fused: bool = False
    """Queries, keys, values and gates are one tensor likewise: each key head has its own, in this order."""

    @property
    def value_size(self) -> int:
        """Channels of all values."""
        return self.n_value_heads * self.head_dim

    @property
    def channels(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.n_key_heads * self.head_dim + self.value_size

    def parts(self, layer: _Layer) -> Parts:
        """List norms, linear layers and the numbers between them in the order of the computation."""
        heads, block = self.n_value_heads, f"blk.{layer.number}."

        def numbers(role: str, name: str, *shape: int) -> Weight:
            return Weight(role, block + name, shape, "recurrence", layer.number)

        yield layer.norm("attn_norm", layer.hidden)
        rows = {"attn_qkv": self.channels, "attn_gate": self.value_size}
        rows = {"ssm_in": sum(rows.values())} if self.fused else rows
        rows |= {"ssm_ba": 2 * heads} if self.grouped else {"ssm_alpha": heads, "ssm_beta": heads}
        yield layer.linear("qkv", rows, layer.hidden)
        yield numbers("ssm_conv1d", "ssm_conv1d.weight", self.channels, self.taps)
        yield numbers("ssm_dt", "ssm_dt.bias", heads)
        yield numbers("ssm_a", "ssm_a", heads)
        yield layer.norm("ssm_norm", self.head_dim)
        yield layer.linear("attn_output", {"ssm_out": layer.hidden}, self.value_size)


@dataclass(frozen=True)
class Dense:
    """A gated feed-forward: down(activation(gate(x)) * up(x))."""

    size: int
    """Channels between the two projections."""
    activation: Activation = "silu"
    sub_norm: bool = False
    """RMSNorm over the gated channels, before the down projection."""
    post_norm: bool = False
    """RMSNorm of what the down projection gives, before it is added to the residual stream."""
    input_norms: bool = False
    """Each linear layer has an RMSNorm of its input."""
    norm: str = "ffn_norm"
    """Name of the norm before it in a file."""
    fused: bool = False
    """Gate and up projection are one tensor, in this order."""

    def parts(self, layer: _Layer) -> Parts:
        """List norms and linear layers in the order of the computation."""
        yield layer.norm("ffn_norm", layer.hidden, self.norm)
        rows = {"ffn_up": 2 * self.size} if self.fused else {"ffn_gate": self.size, "ffn_up": self.size}
        yield layer.linear("gate_up", rows, layer.hidden, norms=self.input_norms)
        if self.sub_norm:
            yield layer.norm("ffn_sub_norm", self.size)
        yield layer.linear("ffn_down", {"ffn_down": layer.hidden}, self.size, norms=self.input_norms)
        if self.post_norm:
            yield layer.norm("ffn_post_norm", layer.hidden, "post_ffw_norm")


@dataclass(frozen=True)
class Experts:
    """A feed-forward of many gated ones, of which a router chooses a few for each token.

    The router gives each expert a probability. The `top_k` most likely ones work, and their results are added up,
    weighted by their probabilities, the most likely first; of equal ones the lower number goes first. What the shared
    expert says, which works for every token, is added last.
    """

    n: int
    """How many there are."""
    top_k: int
    """How many work for a token."""
    size: int
    """Channels between the two projections of an expert."""
    router: Literal["softmax", "sigmoid", "softmax_chosen"] = "softmax"
    """What makes probabilities of the router's outputs: over all experts, of each alone, or over those that were
    chosen, which then are those with the largest outputs."""
    router_bias: bool = False
    """The router has a bias, which is part of its outputs."""
    normalized: bool = False
    """The weights of a token's experts are divided by their sum."""
    scale: float = 1.0
    """Factor of the weights."""
    groups: int = 1
    """Runs of neighbours that compete first. Divides `n`."""
    top_groups: int = 1
    """Groups whose experts may be chosen."""
    group_best: Literal[1, 2] = 2
    """Groups compete by the sum of so many, their best."""
    bias: bool = False
    """Added to the probabilities when experts are chosen, and not when they are weighted."""
    shared: int = 0
    """Channels of the shared expert; 0 if there is none."""
    shared_gate: bool = False
    """The shared expert's result is multiplied by a sigmoid of one more output."""
    clamp: float = math.inf
    """Gates are at most this large, and what they multiply is at most this far from 0."""
    fused: bool = False
    """Gate and up projection are one tensor."""
    expert_bias: bool = False
    """The projections of experts have biases."""
    activation: Activation = "silu"
    norm: str = "ffn_norm"
    """Name of the norm before it in a file."""

    def parts(self, layer: _Layer) -> Parts:
        """List norms and linear layers in the order of the computation."""
        yield layer.norm("ffn_norm", layer.hidden, self.norm)
        yield layer.linear("router", {"ffn_gate_inp": self.n}, layer.hidden, self.router_bias, kind="router")
        if self.bias:
            yield Weight("exp_probs_b_bias", f"blk.{layer.number}.exp_probs_b.bias", (self.n,), "bias", layer.number)
        rows = {"ffn_gate_up_exps": 2 * self.size} if self.fused else {
            "ffn_gate_exps": self.size, "ffn_up_exps": self.size,
        }  # fmt: skip
        yield layer.linear("expert_gate_up", rows, layer.hidden, self.expert_bias, stack=(self.n,))
        rows = {"ffn_down_exps": layer.hidden}
        yield layer.linear("expert_down", rows, self.size, self.expert_bias, stack=(self.n,))
        if self.shared:
            if self.shared_gate:
                yield layer.linear("shared_gate", {"ffn_gate_inp_shexp": 1}, layer.hidden, kind="router")
            yield layer.linear("gate_up", {"ffn_gate_shexp": self.shared, "ffn_up_shexp": self.shared}, layer.hidden)
            yield layer.linear("ffn_down", {"ffn_down_shexp": layer.hidden}, self.shared)


@dataclass(frozen=True)
class LayerPlan:
    """One layer: x += mixer(x), then x += feed_forward(x)."""

    mixer: Attention | LatentAttention | DeltaNet
    feed_forward: Dense | Experts

    def parts(self, number: int, hidden: int) -> Parts:
        """List norms and linear layers in the order of the computation."""
        layer = _Layer(number, hidden)
        yield from self.mixer.parts(layer)
        yield from self.feed_forward.parts(layer)


@dataclass(frozen=True)
class Rotation:
    """A Hadamard transform of what some weights read: each run of `block` channels of x becomes H (signs * x).

    H[r, c] = (-1)**popcount(r & c) / sqrt(block). The weights in the file have it in them, so that a product is what it
    would be without either.
    """

    block: int
    """A power of two that divides the width of each input."""
    signs: Mapping[int, bytes]
    """-1 or 1 for each channel, as int8, by width; empty if all are 1."""
    folded: frozenset[str]
    """Names of the tensors that read such inputs."""
    latent: bool = False
    """What is looked up in the embedding is signs * (H row)."""
    grouped: bool = False
    """Before that, the value heads of a `DeltaNet` are put beside those of the same key head."""

    def factors(self, width: int) -> list[float]:
        """Return what the channels are multiplied by, before sums and differences alone make the transform."""
        root = 1 / math.sqrt(self.block)
        if not self.signs:
            return [root] * width
        return [root * sign for sign in memoryview(self.signs[width]).cast("b")]


INPUT_NORM = "blk.0.attn_q_norm_in.weight"
"""A tensor of models whose linear layers have an RMSNorm of their input: no key says so."""
JOINED_HEADS = "blk.0.attn_kv_b.weight"
"""A tensor of models whose latent attention has the matrices of a head as one: no key says that either."""
LINEARS = tuple(
    part.name
    for part in LayerPlan(Attention(1, 1, 2, Rope(2)), Dense(1)).parts(0, 1)
    if isinstance(part, Linear)
)  # fmt: skip
"""Names of all linear layers there are; the first two are what a mixer reads its input with, and what it ends with."""
