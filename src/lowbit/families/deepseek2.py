"""DeepSeek V2, V3 and R1, and what has their shape (Moonlight, Kimi K2): latent attention, and experts in groups.

Published files of V2, V3 and R1 that were made before 2026 do not say how many groups there are: their numbers of
experts do. The layers behind the last that predict further tokens are not used.
"""

from .base import Family
from .experts import Routing

FAMILY = Family(
    name="deepseek2",
    architectures=("deepseek2",),
    rope_pairing="adjacent",
    latent=True,
    experts=Routing(sigmoid_if_biased=True, softmax_group_best=1, usual_groups={160: (8, 3), 256: (8, 4)}),
)
