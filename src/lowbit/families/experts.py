"""How metadata becomes the feed-forwards of a model with experts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..errors import FormatError, UnsupportedModelError
from ..plan import Activation, Dense, Experts

MAX_EXPERTS = 1 << 12
MAX_CHOSEN = 64
"""Published models choose up to 22 experts for a token; the scratch memory of a batch grows with them."""
ROWS = 16
"""The matrices of all experts are one, in which each begins with a row group."""
_GATINGS: tuple[Literal["softmax", "sigmoid", "softmax_chosen"] | None, ...] = (
    None, "softmax", "sigmoid", "softmax_chosen",
)  # fmt: skip
"""llama.cpp's numbers; 0 is what the family says."""


@dataclass(frozen=True)
class Routing:
    """What the files of a family with experts do not say."""

    router: Literal["softmax", "sigmoid", "softmax_chosen"] = "softmax"
    normalized: bool = False
    shared_gate: bool = False
    size_key: str = "expert_feed_forward_length"
    clamp: float = 0.0
    """Of gates and what they multiply, if the file does not say; 0 is none."""
    sigmoid_if_biased: bool = False
    """Where the file does not say the router, a bias means that each expert has a probability of its own."""
    softmax_group_best: Literal[1, 2] = 2
    """Groups compete by the sum of so many, their best, if probabilities are of all experts together."""
    usual_groups: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """By number of experts: groups, and those chosen, if the file does not say."""
    biases: bool = False
    """Routers and the projections of experts have biases."""

    def plan(
        self, keys: Any, layers: int, hidden: int, tensors: Collection[str], activation: Activation = "silu",
        norm: str = "ffn_norm",
    ) -> tuple[Dense | Experts, ...]:  # fmt: skip
        """Return the feed-forward of each layer: dense ones first, if the file says so, and then experts.

        Parameters
        ----------
        keys : families.base._Keys
        layers, hidden : int
            Number of layers, and channels of the residual stream.
        tensors : collection of str
            Names of the file's tensors.
        activation : str
            Of the gates.
        norm : str
            Name of the norm before the feed-forward.

        Raises
        ------
        FormatError
            If a key is missing, of the wrong type, out of range, or contradicts another.
        UnsupportedModelError
            If the router, or the size of the experts, is of a kind that lowbit does not run.
        """
        n_dense = keys.whole("leading_dense_block_count", 0, layers, default=0)
        wide = keys.whole("feed_forward_length", 1, 1 << 18) if n_dense else 0
        dense = Dense(wide, activation, norm=norm) if n_dense else None
        experts = replace(self._experts(keys, hidden, tensors), activation=activation, norm=norm)
        return tuple(experts if dense is None or i >= n_dense else dense for i in range(layers))

    def _experts(self, keys: Any, hidden: int, tensors: Collection[str]) -> Experts:
        n = keys.whole("expert_count", 1, MAX_EXPERTS)
        top_k = keys.whole("expert_used_count", 1, min(n, MAX_CHOSEN))
        size = keys.whole(self.size_key, 1, 1 << 18)
        if size % ROWS or hidden % ROWS:
            raise UnsupportedModelError(
                f"experts of {size} channels in a model of {hidden}: not both multiples of {ROWS}"
            )
        usual = (0, 0) if keys.has("expert_group_count") else self.usual_groups.get(n, (0, 0))
        groups = keys.whole("expert_group_count", 0, min(n, MAX_CHOSEN), default=usual[0]) or 1
        top_groups = keys.whole("expert_group_used_count", 0, groups, default=usual[1]) or groups
        if n % groups or (groups > 1 and n < 2 * groups):
            raise FormatError(f"{n} experts do not form {groups} groups of the same size, of two or more each")
        if top_k > top_groups * (n // groups):
            raise FormatError(f"{top_groups} groups of {n // groups} experts are too few to choose {top_k} from")
        gating = keys.whole("expert_gating_func", 0, 1 << 16, default=0)
        if gating >= len(_GATINGS):
            raise UnsupportedModelError(f"experts chosen by the gating function {gating} are not supported")
        shared = keys.whole("expert_shared_feed_forward_length", 0, 1 << 18, default=0)
        shared = shared or size * keys.whole("expert_shared_count", 0, 1 << 10, default=0)
        bias = any(name.endswith(".exp_probs_b.bias") for name in tensors)
        router = _GATINGS[gating] or ("sigmoid" if bias and self.sigmoid_if_biased else self.router)
        if router == "softmax_chosen" and (bias or groups > 1):
            raise UnsupportedModelError(
                "experts chosen by the router's outputs, in groups or with a bias of the choice"
            )
        return Experts(
            n=n,
            top_k=top_k,
            size=size,
            router=router,
            router_bias=self.biases,
            normalized=keys.flag("expert_weights_norm", self.normalized),
            scale=keys.real("expert_weights_scale", 0.0, 1e6, default=0.0) or 1.0,
            groups=groups,
            top_groups=top_groups,
            group_best=self.softmax_group_best if router == "softmax" else 2,
            bias=bias,
            shared=shared,
            shared_gate=bool(shared) and self.shared_gate,
            clamp=keys.real("swiglu_clamp_exp", 0.0, 1e6, default=self.clamp) or math.inf,
            expert_bias=self.biases,
            fused=any(name.endswith(".ffn_gate_up_exps.weight") for name in tensors),
        )
