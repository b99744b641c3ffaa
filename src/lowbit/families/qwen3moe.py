"""Qwen3 with experts (30B-A3B, 235B-A22B, Qwen3-Coder): weights of a token's experts that sum to 1, and no shared one."""

from .base import Family
from .experts import Routing

FAMILY = Family(
    name="qwen3moe",
    architectures=("qwen3moe",),
    rope_pairing="halves",
    qk_norm=True,
    experts=Routing(normalized=True),
)
