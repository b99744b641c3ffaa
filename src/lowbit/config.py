"""What a model is, as numbers: the one description that all families are translated into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ModelConfig"]


@dataclass(frozen=True)
class ModelConfig:
    """Hyper-parameters of a decoder-only transformer.

    A family (`lowbit.families`) fills this in from a file's metadata; the forward pass reads nothing else.
    """

    family: str
    """Name of the family that read the file, such as ``llama`` or ``bitnet``."""
    vocab_size: int
    """Number of tokens."""
    hidden_size: int
    """Width of the residual stream, in channels."""
    intermediate_size: int
    """Width of the feed-forward layer, in channels."""
    n_layers: int
    """Number of transformer blocks."""
    n_heads: int
    """Number of query heads."""
    n_kv_heads: int
    """Number of key and value heads; divides `n_heads`."""
    head_dim: int
    """Channels per head; `n_heads * head_dim` may differ from `hidden_size`."""
    context_length: int
    """Longest sequence the model was made for, in tokens."""
    norm_eps: float = 1e-5
    """Epsilon added to the mean square in RMSNorm."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_dim: int = 0
    """Channels of a head that are rotated; 0 means all of them."""
    rope_pairing: Literal["adjacent", "halves"] = "adjacent"
    """Which channels form a rotated pair: (2j, 2j+1), or (j, j + rope_dim/2)."""
    rope_factors: tuple[float, ...] = ()
    """Divisors of the rotary frequencies, one per pair; empty means all 1."""
    rope_scale: float = 1.0
    """Factor of the cosines and sines, so of the length of rotated queries and keys (YaRN's attention factor)."""
    activation: Literal["silu", "relu2"] = "silu"
    """Gate of the feed-forward layer: SiLU, or squared ReLU."""
    attn_sub_norm: bool = False
    """RMSNorm over the concatenated heads, before the output projection."""
    ffn_sub_norm: bool = False
    """RMSNorm over the gated feed-forward channels, before the down projection."""
    qk_norm: bool = False
    """RMSNorm over `head_dim` of each query and key head, before RoPE."""
    attn_bias: bool = False
    """Query, key and value projections have a bias."""
    tied_embeddings: bool = False
    """The output head is the token embedding."""
    activation_quant: Literal["token", "group"] = "group"
    """int8 scale of the input of an integer linear: one per token (BitNet, part of the model),
    or one per weight group of at most 256 channels (an approximation lowbit chooses)."""
