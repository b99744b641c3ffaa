"""BitNet b1.58 as 1bitLLM published it: SiLU, and RMSNorms before the output and down projections."""

from .base import Family

FAMILY = Family(
    name="bitnet",
    architectures=("bitnet",),
    rope_pairing="halves",
    sub_norms=True,
    activation_quant="token",
    bit_linear=True,
)
