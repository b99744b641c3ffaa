"""What a family file says, and how metadata becomes a ModelPlan. No family has code of its own."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, Literal, TypeVar

import numpy as np

from ..errors import FormatError, UnsupportedModelError
from ..plan import (
    INPUT_NORM,
    Activation,
    Attention,
    DeltaNet,
    Dense,
    Experts,
    LatentAttention,
    LayerPlan,
    ModelPlan,
    Rope,
)
from .experts import Routing
from .hadamard import PREFIX, rotation_of
from .latent import latent_attention
from .rope import yarn_factors, yarn_magnitude

MAX_LAYERS = 1024
MAX_VOCAB = 1 << 20
MAX_CONTEXT = 1 << 24
MAX_HEAD = 512
"""Published models have heads of up to 256 channels; the tables of rotary positions grow with them."""


@dataclass(frozen=True)
class Family:
    """One model family: what its files do not say."""

    name: str
    architectures: tuple[str, ...]
    """Values of ``general.architecture``."""
    rope_pairing: Literal["adjacent", "halves"]
    activation: Activation = "silu"
    sub_norms: bool = False
    qk_norm: bool = False
    norm_after_rope: bool = False
    post_norms: bool = False
    attn_bias: bool = False
    output_bias: bool = False
    """The output projection has a bias, too."""
    sinks: bool = False
    """Each query head has one more score, without a value."""
    windows: int | None = None
    """Of so many layers in a row all but the last have a window, if the file has one; 1 is all layers. None refuses."""
    window_theta: float | None = None
    """Base of the frequencies where there is a window, if no key says it; None is that of the other layers."""
    no_rope_every: int = 0
    """The last of so many layers in a row has no RoPE."""
    rope_needs_window: bool = False
    """Layers without a window have no RoPE."""
    root_embedding: bool = False
    """The embedding is multiplied by the square root of the hidden size."""
    scales: bool = False
    """The embedding, what is added to the residual stream, and the logits have factors (MiniCPM)."""
    recurrent: bool = False
    """Most layers are recurrent (`DeltaNet`), and the others gate their attention."""
    latent: bool = False
    """All layers have latent attention (`LatentAttention`)."""
    grouped: bool = False
    """Value heads of recurrent layers that share a key head stand side by side."""
    fused: bool = False
    """Query, key and value projections are one tensor, and so are gate and up projection."""
    ffn_norm: str = "ffn_norm"
    """Name of the norm before the feed-forward in a file."""
    yarn_truncate: bool = True
    """Bounds of YaRN are rounded to whole pairs, unless a file says otherwise."""
    layers_of_wide_scale: int = 0
    """Models of so many layers divide scores by the root of hidden size over heads, whatever the heads' size."""
    activation_quant: Literal["token", "group"] = "group"
    bit_linear: bool = False
    """Float weights of the linear layers are masters of ternary ones: quantised at load, never used as they are."""
    whole_norm: bool = False
    experts: Routing | None = None
    """How a family chooses experts, if it has any."""

    def plan(self, metadata: Mapping[str, Any], architecture: str, tensors: Collection[str]) -> ModelPlan:
        """Translate a file's metadata.

        Parameters
        ----------
        metadata : mapping
            With GGUF's key names. ``lowbit.rope_pairing``, ``lowbit.activation_quant``, ``lowbit.bit_linear`` and
            ``rope.scaling.yarn_truncate`` overrule the family, for containers that keep another order of the channels,
            or know how the model was trained.
        architecture : str
            The prefix of the keys.
        tensors : collection of str
            Names of the file's tensors. Without an output head the embedding is it.

        Raises
        ------
        FormatError
            If a key is missing, of the wrong type, or out of range.
        """
        keys = _Keys(metadata, architecture)
        hidden = keys.whole("embedding_length", 1, 1 << 18)
        for key in ("final_logit_softcapping", "attn_logit_softcapping", "attention.temperature_scale"):
            if keys.real(key, 0.0, 1e9, default=0.0):
                raise UnsupportedModelError(f"{architecture}.{key} is not supported")
        further = self.recurrent or self.latent
        unused = keys.whole("nextn_predict_layers", 0, MAX_LAYERS, default=0) if further else 0
        n_layers = keys.whole("block_count", 1 + unused, MAX_LAYERS) - unused
        input_norms = INPUT_NORM in tensors
        original = keys.original_context(tensors)
        if original and (further or self.window_theta):
            raise UnsupportedModelError(f"LongRoPE is not supported in the family {self.name}")
        if self.latent:
            rope = self._rope(keys, keys.whole("rope.dimension_count", 2, MAX_HEAD))
            mixers: Iterator[Attention | LatentAttention | DeltaNet] = repeat(
                latent_attention(keys, rope, tensors), n_layers
            )
        else:
            mixers = self._mixers(keys, self._attention(keys, hidden, n_layers, input_norms), n_layers, tensors)
        if self.experts is None:
            wide = keys.whole("feed_forward_length", 1, 1 << 18)
            dense = Dense(
                wide, self.activation, self.sub_norms, self.post_norms, input_norms, self.ffn_norm, self.fused
            )  # fmt: skip
            feed_forwards: tuple[Dense | Experts, ...] = (dense,) * n_layers
        else:
            feed_forwards = self.experts.plan(keys, n_layers, hidden, tensors, self.activation, self.ffn_norm)
        embedding = math.sqrt(hidden) if self.root_embedding else 1.0
        scales: dict[str, Any] = keys.scales(hidden, n_layers) if self.scales else {"embedding_scale": embedding}
        plan = ModelPlan(
            family=self.name,
            vocab_size=keys.vocabulary(),
            hidden_size=hidden,
            context_length=keys.whole("context_length", 1, MAX_CONTEXT),
            layers=tuple(map(LayerPlan, mixers, feed_forwards)),
            unused_layers=unused,
            norm_eps=keys.real("attention.layer_norm_rms_epsilon", 0.0, 1.0),
            tied_embeddings="output.weight" not in tensors,
            rope_tensor="rope_freqs.weight" in tensors and not original,
            original_context=original,
            activation_quant="token" if input_norms else keys.choice(
                "lowbit.activation_quant", ("token", "group"), self.activation_quant
            ),
            bit_linear=input_norms or bool(metadata.get("lowbit.bit_linear", self.bit_linear)),
            pooling=keys.pooling("last" if input_norms else None),
            **scales,
        )  # fmt: skip
        rotation = rotation_of(_Keys(metadata, PREFIX.removesuffix(".")), architecture, plan)
        return plan if rotation is None else replace(plan, rotation=rotation)

    def _rope(self, keys: _Keys, dim: int) -> Rope:
        """Rotary positions, without scalings."""
        return Rope(
            dim=dim,
            theta=keys.real("rope.freq_base", 1.0, 1e12, default=10000.0),
            pairing=keys.choice("lowbit.rope_pairing", ("adjacent", "halves"), self.rope_pairing),
        )

    def _attention(self, keys: _Keys, hidden: int, n_layers: int, input_norms: bool) -> Attention:
        """Attention as most of the layers have it that are not recurrent."""
        heads = keys.whole("attention.head_count", 1, 1 << 14)
        kv_heads = keys.whole("attention.head_count_kv", 1, heads, default=heads)
        head_dim = keys.whole("attention.key_length", 2, MAX_HEAD, default=hidden // heads)
        if keys.whole("attention.value_length", 1, 1 << 14, default=head_dim) != head_dim:
            raise FormatError("keys and values have different lengths")
        if heads % kv_heads:
            raise FormatError(f"{heads} query heads cannot share {kv_heads} key heads")
        scale = math.sqrt(heads / hidden) if n_layers == self.layers_of_wide_scale else 0.0
        rope = self._rope(keys, keys.rope_dim(head_dim))
        return Attention(
            n_heads=heads,
            n_kv_heads=kv_heads,
            head_dim=head_dim,
            rope=replace(rope, factors=keys.rope_factors(head_dim, self.yarn_truncate), scale=keys.rope_scale()),
            bias=self.attn_bias,
            output_bias=self.output_bias,
            sinks=self.sinks,
            qk_norm=self.qk_norm,
            whole_norm=self.whole_norm,
            sub_norm=self.sub_norms,
            norm_after_rope=self.norm_after_rope,
            scale=keys.real("attention.scale", 0.0, 1e6, default=scale),
            post_norm=self.post_norms,
            input_norms=input_norms,
            gated=self.recurrent,
            fused=self.fused,
        )

    def _mixers(
        self, keys: _Keys, attention: Attention, n_layers: int, tensors: Collection[str]
    ) -> Iterator[Attention | DeltaNet]:
        """The mixer of every layer: recurrent, or attention with a window and another base, or without RoPE."""
        if self.recurrent:
            fused = self.grouped and any(name.endswith(".ssm_in.weight") for name in tensors)
            delta = replace(keys.delta_net(), grouped=self.grouped, fused=fused)
            recurrent = keys.recurrent_layers(n_layers)
            keys.check_sections(attention)
            yield from (delta if recurrent[i] else attention for i in range(n_layers))
            return
        # gpt-oss is never without: a file that does not say how long it is would be run with another
        window = keys.whole("attention.sliding_window", 0, MAX_CONTEXT, default=None if self.sinks else 0)
        period = self.windows
        if period is None and 0 < window < keys.whole("context_length", 1, MAX_CONTEXT):
            raise FormatError(f"attention in a sliding window is not supported in the family {self.name}")
        windowed = keys.pattern("attention.sliding_window_pattern", n_layers, period or 1)
        assert attention.rope is not None
        theta = keys.real("rope.freq_base_swa", 1.0, 1e12, default=self.window_theta or attention.rope.theta)
        near = attention
        if window and period is not None:
            rope = attention.rope if theta == attention.rope.theta else replace(attention.rope, theta=theta)
            # scaling is for what lies further back than a window
            rope = replace(rope, factors=(), scale=1.0) if self.window_theta else rope
            near = replace(attention, window=window, rope=rope)
        for i in range(n_layers):
            mixer = near if windowed[i] else attention
            without = (self.no_rope_every and (i + 1) % self.no_rope_every == 0) or (
                self.rope_needs_window and not windowed[i]
            )
            yield replace(mixer, rope=None) if without else mixer


def _shown(value: Any) -> str:
    """A value from a file for an error message: one line, of bounded length."""
    if isinstance(value, (list, np.ndarray)):
        return f"an array of {len(value)}"
    return repr(value[:80] if isinstance(value, str) else value)


_Choice = TypeVar("_Choice", bound=str)


class _Keys:
    """Typed access to the keys of one architecture, with the range of every number."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.metadata = metadata
        self.prefix = architecture + "."

    def _get(self, key: str, default: Any) -> Any:
        value = self.metadata.get(self.prefix + key, default)
        if isinstance(value, np.ndarray) and value.ndim == 1 and len(value) and (value == value[0]).all():
            value = value[0]  # per layer, and all alike
        if value is None:
            raise FormatError(f"the key {self.prefix + key} is missing")
        return value

    def has(self, key: str) -> bool:
        """Whether the file says it."""
        return self.prefix + key in self.metadata

    def whole(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
            raise FormatError(f"{self.prefix + key} is {_shown(value)}, not a whole number from {low} to {high}")
        return int(value)

    def real(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not low <= value <= high:
            raise FormatError(f"{self.prefix + key} is {_shown(value)}, not a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(self.prefix + key, default)
        if not isinstance(value, (bool, np.bool_)):
            raise FormatError(f"{self.prefix + key} is {_shown(value)}, not true or false")
        return bool(value)

    def pattern(self, key: str, n_layers: int, period: int) -> list[bool]:
        """Which layers have a window: the file says each, or says of how many in a row the last has none."""
        value = self.metadata.get(self.prefix + key, period)
        if isinstance(value, (list, np.ndarray)):
            flags = np.asarray(value)
            if flags.shape != (n_layers,) or flags.dtype != np.bool_:
                raise FormatError(f"{self.prefix + key} is {_shown(value)}, not {n_layers} truth values")
            return [bool(flag) for flag in flags]
        period = self.whole(key, 1, MAX_LAYERS, default=period)
        return [period == 1 or (i + 1) % period != 0 for i in range(n_layers)]

    def delta_net(self) -> DeltaNet:
        """The numbers of the recurrent layers."""
        heads = self.whole("ssm.time_step_rank", 1, 1 << 14)
        key_heads = self.whole("ssm.group_count", 1, heads)
        size = self.whole("ssm.state_size", 1, MAX_HEAD)
        if heads % key_heads:
            raise FormatError(f"{heads} value heads cannot share {key_heads} key heads")
        if self.whole("ssm.inner_size", 1, 1 << 24) != heads * size:
            raise FormatError(f"{self.prefix}ssm.inner_size is not that of {heads} heads of {size}")
        return DeltaNet(key_heads, heads, size, self.whole("ssm.conv_kernel", 1, 64))

    def recurrent_layers(self, n_layers: int) -> list[bool]:
        """Which layers are recurrent: the file says each, or every how many one is not."""
        key, interval = "attention.recurrent_layers", self.whole("full_attention_interval", 1, MAX_LAYERS, default=4)
        flags = [(i + 1) % interval != 0 for i in range(n_layers)]
        value = self.metadata.get(self.prefix + key)
        if value is not None:
            given = np.asarray(value)
            if given.ndim != 1 or len(given) < n_layers or given.dtype != np.bool_:
                raise FormatError(f"{self.prefix + key} is {_shown(value)}, not {n_layers} truth values")
            flags = [bool(flag) for flag in given[:n_layers]]
        if all(flags):
            raise UnsupportedModelError("a model without a layer of full attention is not supported")
        return flags

    def check_sections(self, attention: Attention) -> None:
        """Refuse sections of the rotary pairs that would not rotate a text as without sections."""
        value = self.metadata.get(self.prefix + "rope.dimension_sections")
        if value is None:
            return
        sections = np.asarray(value)
        if sections.shape not in ((3,), (4,)) or sections.dtype.kind not in "iu" or (sections < 0).any():
            raise FormatError(f"{self.prefix}rope.dimension_sections is {_shown(value)}, not four whole numbers")
        total = int(sections.sum())
        assert attention.rope is not None
        for pair in range(attention.rope.dim // 2):
            if not total or pair % total >= 3 * int(sections[pair % total % 3]):
                raise UnsupportedModelError("rotary sections that leave out a pair of channels are not supported")

    def scales(self, hidden: int, n_layers: int) -> dict[str, float]:
        """MiniCPM's factors; files without the keys are of models that had these."""
        return {
            "embedding_scale": self.real("embedding_scale", 1e-6, 1e6, default=12.0),
            "residual_scale": self.real("residual_scale", 1e-6, 1e6, default=1.4 / math.sqrt(n_layers)),
            "logit_scale": 1.0 / self.real("logit_scale", 1e-6, 1e6, default=hidden / 256),
        }

    def pooling(self, default: Literal["last", "mean", "first"] | None) -> Literal["last", "mean", "first"] | None:
        """How one vector is made of a text; llama.cpp's numbers."""
        kinds: tuple[Literal["last", "mean", "first"] | None, ...] = (None, "mean", "first", "last")
        if self.prefix + "pooling_type" not in self.metadata:
            return default
        kind = self.whole("pooling_type", 0, 1 << 31)
        if kind >= len(kinds):
            raise UnsupportedModelError(f"pooling of type {kind} is not supported")
        return kinds[kind]

    def vocabulary(self) -> int:
        if self.prefix + "vocab_size" not in self.metadata:
            tokens = self.metadata.get("tokenizer.ggml.tokens")  # makes a list of all of them
            if isinstance(tokens, list):
                return len(tokens)
        return self.whole("vocab_size", 1, MAX_VOCAB)

    def choice(self, key: str, choices: tuple[_Choice, ...], default: _Choice) -> _Choice:
        value = self.metadata.get(key, default)
        for choice in choices:
            if isinstance(value, str) and value == choice:
                return choice
        raise FormatError(f"{key} is {_shown(value)}, not one of {', '.join(map(str, choices))}")

    def rope_dim(self, head_dim: int) -> int:
        """Rotated channels; a file that says 0 has them in the layers with a window."""
        swa = self.prefix + "rope.dimension_count_swa" in self.metadata
        key = "rope.dimension_count" + "_swa" * (swa and self.metadata.get(self.prefix + "rope.dimension_count") == 0)
        return self.whole(key, 2, head_dim, default=head_dim)

    def original_context(self, tensors: Collection[str]) -> int:
        """Tokens up to which LongRoPE's short factors hold, 0 without it; llama.cpp's files of Phi-3 have no type."""
        kind = self.metadata.get(self.prefix + "rope.scaling.type")
        if kind is None and any(f"rope_factors_{which}.weight" in tensors for which in ("short", "long")):
            kind = "longrope"
        if not isinstance(kind, str) or kind != "longrope":
            return 0
        whole = self.whole("context_length", 1, MAX_CONTEXT)
        return self.whole("rope.scaling.original_context_length", 1, MAX_CONTEXT, default=whole)

    def rope_factors(self, head_dim: int, truncate: bool = True) -> tuple[float, ...]:
        """RoPE factors of linear scaling and YaRN; others are refused, since ignoring them would ruin the text."""
        kind = self.metadata.get(self.prefix + "rope.scaling.type", "none")
        if not isinstance(kind, str) or kind not in ("none", "linear", "yarn", "longrope"):
            raise FormatError(f"RoPE scaling of type {_shown(kind)} is not supported")
        factor = self.real("rope.scaling.factor", 1e-6, 1e6, default=None if kind == "yarn" else 1.0)
        rope_dim = self.rope_dim(head_dim)
        if kind == "none" or math.isclose(factor, 1.0):
            return ()
        if kind == "longrope":
            raise UnsupportedModelError("LongRoPE with a factor of all frequencies is not supported")
        if kind == "linear":
            return (factor,) * (rope_dim // 2)
        return yarn_factors(
            rope_dim,
            self.real("rope.freq_base", 1.0001, 1e12, default=10000.0),
            factor,
            self.whole("rope.scaling.original_context_length", 1, MAX_CONTEXT),
            self.real("rope.scaling.yarn_beta_fast", 1e-3, 1e6, default=32.0),
            self.real("rope.scaling.yarn_beta_slow", 1e-3, 1e6, default=1.0),
            self.flag("rope.scaling.yarn_truncate", truncate),
        )

    def rope_scale(self) -> float:
        """Factor of cosines and sines; under YaRN a file holds it as a share of the one that YaRN itself proposes."""
        factor = self.real("rope.scaling.attn_factor", 1e-6, 1e6, default=1.0)
        if self.metadata.get(self.prefix + "rope.scaling.type") == "yarn":
            factor *= yarn_magnitude(self.real("rope.scaling.factor", 1e-6, 1e6))
        return factor
