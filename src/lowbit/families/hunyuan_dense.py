"""Hunyuan, the dense ones: like Qwen3, but queries and keys are normalised after their rotation."""

from .base import Family

FAMILY = Family(
    name="hunyuan-dense", architectures=("hunyuan-dense",), rope_pairing="halves", qk_norm=True, norm_after_rope=True
)
