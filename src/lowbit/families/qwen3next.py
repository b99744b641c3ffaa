"""Qwen3-Next (80B-A3B): `qwen35moe`, whose value heads stand beside those with which they share a key head."""

from dataclasses import replace

from . import qwen35moe

FAMILY = replace(qwen35moe.FAMILY, name="qwen3next", architectures=("qwen3next",), grouped=True)
