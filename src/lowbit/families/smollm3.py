"""SmolLM3: a llama of which every fourth layer has no rotary positions."""

from .base import Family

FAMILY = Family(name="smollm3", architectures=("smollm3",), rope_pairing="adjacent", no_rope_every=4)
