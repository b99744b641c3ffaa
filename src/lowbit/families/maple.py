"""Maple (20B-A1B): RoPE on half of each head, in layers with a window alone; gates of experts are clamped."""

from .base import Family
from .experts import Routing

FAMILY = Family(
    name="maple",
    architectures=("maple",),
    rope_pairing="halves",
    qk_norm=True,
    windows=4,
    rope_needs_window=True,
    experts=Routing(normalized=True, clamp=7.0),
)
