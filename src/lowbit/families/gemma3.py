"""Gemma 3, text only: norms on both sides of attention and feed-forward, and five layers with a window to one without.

Norms are stored with the 1 that Gemma adds to them. The 27B has 62 layers, and a scale of its own.
"""

from .base import Family

FAMILY = Family(
    name="gemma3",
    architectures=("gemma3",),
    rope_pairing="halves",
    activation="gelu",
    qk_norm=True,
    post_norms=True,
    windows=6,
    window_theta=10000.0,
    root_embedding=True,
    layers_of_wide_scale=62,
)
