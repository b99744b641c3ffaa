"""MiniCPM 1, 2 and 4: a llama with factors of the embedding, of what layers add, and of the logits."""

from .base import Family

FAMILY = Family(name="minicpm", architectures=("minicpm",), rope_pairing="adjacent", scales=True)
