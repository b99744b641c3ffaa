"""BitNet b1.58 as Microsoft published it (2B-4T): squared ReLU, and RMSNorms before the output and down projections."""

from .base import Family

FAMILY = Family(
    name="bitnet-b1.58",
    architectures=("bitnet-b1.58", "bitnet-25"),
    rope_pairing="halves",
    activation="relu2",
    sub_norms=True,
    activation_quant="token",
    bit_linear=True,
)
