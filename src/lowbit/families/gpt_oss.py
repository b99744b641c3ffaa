"""gpt-oss (20b, 120b): attention with sinks, half of it in a window, and experts that are biased, clamped and gated.

Its YaRN does not round its bounds, and no key of a file can say so.
"""

from .base import Family
from .experts import Routing

FAMILY = Family(
    name="gpt-oss",
    architectures=("gpt-oss",),
    rope_pairing="halves",
    activation="swiglu_oai",
    attn_bias=True,
    output_bias=True,
    sinks=True,
    windows=2,
    yarn_truncate=False,
    ffn_norm="post_attention_norm",
    experts=Routing(router="softmax_chosen", clamp=7.0, biases=True),
)
