"""Phi-3, 3.5 and 4: a llama whose projections of the same input are one tensor; all layers may have a window."""

from .base import Family

FAMILY = Family(name="phi3", architectures=("phi3",), rope_pairing="halves", windows=1, fused=True)
