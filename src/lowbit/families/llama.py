"""Llama 1, 2, 3 and everything with their architecture: Mistral, Falcon3, Falcon-E, TriLM, and llama2.c's models."""

from .base import Family

FAMILY = Family(name="llama", architectures=("llama",), rope_pairing="adjacent", windows=1)
