"""Qwen2 and Qwen2.5: a llama whose query, key and value projections have a bias."""

from .base import Family

FAMILY = Family(name="qwen2", architectures=("qwen2",), rope_pairing="halves", attn_bias=True)
