"""What a model is made of, said once: the kind of every layer, its numbers, and each weight's name, shape and purpose.

A family (`lowbit.families`) makes a `ModelPlan` from a file's metadata. Loading, conversion, quantisation, sparsity,
the warnings, the benchmark's random models and the reference read it; nobody else knows how a tensor is called. The
kinds of layers stand in `layers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar

from .layers import (
    INPUT_NORM,
    JOINED_HEADS,
    LINEARS,
    Activation,
    Attention,
    DeltaNet,
    Dense,
    Experts,
    Kind,
    LatentAttention,
    LayerPlan,
    Linear,
    Parts,
    Rope,
    Rotation,
    Weight,
)  # fmt: skip

__all__ = [
    "INPUT_NORM", "JOINED_HEADS", "LINEARS", "Activation", "Attention", "DeltaNet", "Dense", "Experts", "Kind",
    "LatentAttention", "LayerPlan", "Linear", "ModelPlan", "Rope", "Rotation", "Weight",
]  # fmt: skip


@dataclass(frozen=True)
class ModelPlan:
    """A decoder-only language model, without its weights."""

    family: str
    """Name of the family that read the file, such as ``llama`` or ``bitnet``."""
    vocab_size: int
    """Number of tokens."""
    hidden_size: int
    """Width of the residual stream, in channels."""
    context_length: int
    """Longest sequence the model was made for, in tokens."""
    layers: tuple[LayerPlan, ...]
    norm_eps: float = 1e-5
    """Epsilon added to the mean square in RMSNorm."""
    tied_embeddings: bool = False
    """The output head is the token embedding."""
    rope_tensor: bool = False
    """The file has a tensor of divisors of the rotary frequencies."""
    original_context: int = 0
    """LongRoPE: it has two of them instead, the first for contexts of up to so many tokens. 0: it has not."""
    activation_quant: Literal["token", "group"] = "group"
    """int8 scale of the input of an integer linear: one per token (BitNet, part of the model),
    or one per weight group of at most 256 channels (an approximation lowbit chooses)."""
    bit_linear: bool = False
    """Float weights of the linear layers are masters of ternary ones: quantised at load, never used as they are."""
    embedding_scale: float = 1.0
    """Factor of the rows of the embedding."""
    residual_scale: float = 1.0
    """Factor of what mixers and feed-forwards add to the residual stream."""
    logit_scale: float = 1.0
    """Factor of the logits."""
    unused_layers: int = 0
    """Layers that the file has behind these, and that nothing reads: they predict tokens further ahead."""
    pooling: Literal["last", "mean", "first"] | None = None
    """What makes one vector of a text, whose length is then made 1; None if the model was not made for that."""

    rotation: Rotation | None = None
    """A Hadamard transform of what some weights read."""

    # --- weights ---

    @property
    def token_embd(self) -> Weight:
        """The embedding."""
        return Weight("token_embd", "token_embd.weight", (self.vocab_size, self.hidden_size), "embedding")

    @property
    def output(self) -> Weight:
        """The output head, which may be the embedding."""
        if self.tied_embeddings:
            return self.token_embd
        return Weight("output", "output.weight", (self.vocab_size, self.hidden_size), "head")

    @property
    def output_norm(self) -> Weight:
        """The last norm."""
        return Weight("output_norm", "output_norm.weight", (self.hidden_size,), "norm")

    @property
    def rope_freqs(self) -> tuple[Weight, ...]:
        """Divisors of the rotary frequencies, if the file has them."""
        roles = ("rope_freqs",) * self.rope_tensor
        if self.original_context:
            roles = ("rope_factors_short", "rope_factors_long")
        return tuple(Weight(role, f"{role}.weight", (self.rope_dim // 2,), "factors") for role in roles)

    def parts(self, layer: int) -> Parts:
        """List a layer's norms and linear layers, in the order of the computation."""
        return self.layers[layer].parts(layer, self.hidden_size)

    def linears(self, layer: int) -> tuple[Linear, ...]:
        """Return the linear layers of a layer."""
        return tuple(part for part in self.parts(layer) if isinstance(part, Linear))

    def weights(self) -> Iterator[Weight]:
        """List all weights, in the order in which files have them."""
        yield self.token_embd
        for layer in range(self.n_layers):
            for part in self.parts(layer):
                yield from (*part.norms, *part.weights, *part.biases) if isinstance(part, Linear) else (part,)
        yield self.output_norm
        if not self.tied_embeddings:
            yield self.output
        yield from self.rope_freqs

    @cached_property
    def by_name(self) -> Mapping[str, Weight]:
        """All weights by the names of their tensors."""
        return {weight.name: weight for weight in self.weights()}

    def is_unused(self, name: str) -> bool:
        """Tell whether a tensor belongs to one of the layers that nothing reads."""
        behind = range(self.n_layers, self.n_layers + self.unused_layers)
        return name.startswith(tuple(f"blk.{i}." for i in behind))

    def is_folded(self, weight: Weight) -> bool:
        """Tell whether a weight reads rotated inputs."""
        return self.rotation is not None and weight.name in self.rotation.folded

    def with_rope_factors(self, factors: tuple[float, ...]) -> ModelPlan:
        """Return the plan with the factors of the file's tensor in every layer."""

        def changed(layer: LayerPlan) -> LayerPlan:
            if isinstance(layer.mixer, DeltaNet) or layer.mixer.rope is None:
                return layer
            return replace(layer, mixer=replace(layer.mixer, rope=replace(layer.mixer.rope, factors=factors)))

        return replace(self, layers=tuple(map(changed, self.layers)))

    @property
    def attentions(self) -> tuple[Attention | LatentAttention, ...]:
        """The mixers that are attention, in the order of their layers."""
        return tuple(layer.mixer for layer in self.layers if not isinstance(layer.mixer, DeltaNet))

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """Rotary positions of the layers that have them."""
        return tuple(mixer.rope for mixer in self.attentions if mixer.rope is not None)

    # --- numbers that all layers share, for those to whom models with other numbers are of no use ---

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward layer, in channels."""
        return _shared(layer.feed_forward.size for layer in self.layers)

    @property
    def activation(self) -> Activation:
        """Gate of the feed-forward layer."""
        return _shared(layer.feed_forward.activation for layer in self.layers)

    @property
    def has_experts(self) -> bool:
        """Whether a router chooses part of the weights for each token."""
        return any(isinstance(layer.feed_forward, Experts) for layer in self.layers)

    @property
    def n_heads(self) -> int:
        """Number of query heads."""
        return _shared(mixer.n_heads for mixer in self.attentions)

    @property
    def n_kv_heads(self) -> int:
        """Number of key and value heads."""
        return _shared(mixer.n_kv_heads for mixer in self.attentions)

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return _shared(mixer.head_dim for mixer in self.attentions)

    @property
    def value_dim(self) -> int:
        """Channels that are kept of a value; 0: it is part of the key."""
        return _shared(mixer.value_dim for mixer in self.attentions)

    @property
    def rope_theta(self) -> float:
        """Base of the rotary frequencies."""
        return _shared(rope.theta for rope in self.ropes)

    @property
    def rope_dim(self) -> int:
        """Channels of a head that are rotated."""
        return _shared(rope.dim for rope in self.ropes)

    @property
    def rope_pairing(self) -> Literal["adjacent", "halves"]:
        """Which channels form a rotated pair."""
        return _shared(rope.pairing for rope in self.ropes)

    @property
    def rope_factors(self) -> tuple[float, ...]:
        """Divisors of the rotary frequencies."""
        return _shared(rope.factors for rope in self.ropes)

    @property
    def rope_scale(self) -> float:
        """Factor of the cosines and sines."""
        return _shared(rope.scale for rope in self.ropes)


_Number = TypeVar("_Number")


def _shared(numbers: Iterable[_Number]) -> _Number:
    first, *others = set(numbers)
    if others:
        raise ValueError("the layers of this model differ: ask each of them")
    return first
