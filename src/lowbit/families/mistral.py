"""Mistral as newer files name it. Older ones, and 7B, are files of `llama`, which also may have a window."""

from .base import Family

FAMILY = Family(name="mistral", architectures=("mistral3",), rope_pairing="adjacent", windows=1)
