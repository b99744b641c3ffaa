"""Qwen1.5 and Qwen2 with experts (A2.7B, 57B-A14B): biases as in Qwen2, and a shared expert with a gate of its own."""

from .base import Family
from .experts import Routing

FAMILY = Family(
    name="qwen2moe",
    architectures=("qwen2moe",),
    rope_pairing="halves",
    attn_bias=True,
    experts=Routing(shared_gate=True),
)
