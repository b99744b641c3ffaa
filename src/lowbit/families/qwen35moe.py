"""Qwen3.5 and later with experts (35B-A3B, 122B-A10B, 397B-A17B): the layers of `qwen35`, and a shared expert."""

from dataclasses import replace

from . import qwen35
from .experts import Routing

FAMILY = replace(
    qwen35.FAMILY,
    name="qwen35moe",
    architectures=("qwen35moe",),
    experts=Routing(normalized=True, shared_gate=True),
)
