"""OLMoE: queries and keys are normalised over all heads together, before RoPE."""

from .base import Family
from .experts import Routing

FAMILY = Family(
    name="olmoe",
    architectures=("olmoe",),
    rope_pairing="halves",
    whole_norm=True,
    experts=Routing(size_key="feed_forward_length"),
)
