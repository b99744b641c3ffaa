"""Qwen3 with experts (30B-A3B, 235B-A22B, Qwen3-Coder): a token's weights of experts sum to 1, and none is shared."""

from .base import Family
from .experts import Routing

FAMILY = Family(
    name="qwen3moe",
    architectures=("qwen3moe",),
    rope_pairing="halves",
    qk_norm=True,
    experts=Routing(normalized=True),
)
