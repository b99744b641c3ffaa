"""Qwen3.5 and later, dense: three recurrent layers to one of attention, whose heads are gated and rotated in part.

Norms are stored with the 1 that Qwen adds to them. The layers behind the last that predict further tokens are not used.
"""

from .base import Family

FAMILY = Family(
    name="qwen35",
    architectures=("qwen35",),
    rope_pairing="halves",
    qk_norm=True,
    recurrent=True,
    ffn_norm="post_attention_norm",
)
