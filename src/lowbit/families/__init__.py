"""Model families: one file each, and one row here."""

from __future__ import annotations

from ..errors import FormatError, UnsupportedModelError
from ..formats.base import ModelFile
from ..plan import ModelPlan
from . import (
    bitnet,
    bitnet_b158,
    deepseek2,
    gemma3,
    gpt_oss,
    hunyuan_dense,
    llama,
    maple,
    minicpm,
    mistral,
    olmoe,
    phi3,
    qwen2,
    qwen2moe,
    qwen3,
    qwen3moe,
    qwen3next,
    qwen35,
    qwen35moe,
    smollm3,
)
from .base import Family

__all__ = ["FAMILIES", "Family", "find_family", "plan_of"]

FAMILIES = (
    llama.FAMILY, bitnet.FAMILY, bitnet_b158.FAMILY, qwen2.FAMILY, qwen3.FAMILY, mistral.FAMILY, smollm3.FAMILY,
    hunyuan_dense.FAMILY, minicpm.FAMILY, gemma3.FAMILY, qwen35.FAMILY, qwen2moe.FAMILY, qwen3moe.FAMILY, olmoe.FAMILY,
    maple.FAMILY, qwen35moe.FAMILY, qwen3next.FAMILY, gpt_oss.FAMILY, deepseek2.FAMILY,
    phi3.FAMILY,
)  # fmt: skip


def find_family(architecture: str) -> Family:
    """Return the family of an architecture; UnsupportedModelError if there is none."""
    for family in FAMILIES:
        if architecture in family.architectures:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.architectures)
    raise UnsupportedModelError(f"architecture {architecture!r} is not known; lowbit runs {known}")


def plan_of(file: ModelFile) -> ModelPlan:
    """Return what a file's model is made of.

    Raises
    ------
    FormatError
        If a key of its metadata is missing, of the wrong type, or out of range.
    UnsupportedModelError
        If its architecture is not known, or asks for what lowbit does not do.
    """
    if not file.tensors:
        raise FormatError("holds no weights; a vocabulary without a model is for --tokenizer")
    return find_family(file.architecture).plan(file.metadata, file.architecture, file.tensors)
