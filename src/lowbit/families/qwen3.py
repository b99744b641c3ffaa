"""Qwen3, and Ternary Bonsai made from it: no bias, but an RMSNorm of each query and key head before RoPE."""

from .base import Family

FAMILY = Family(name="qwen3", architectures=("qwen3",), rope_pairing="halves", qk_norm=True)
