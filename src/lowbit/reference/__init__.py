"""NumPy oracle of every kernel and of the whole forward pass, written to be read.

Nothing here is fast and nothing here shares code with the kernels. Read it in this order:

1. `quantization`: floats to int8 and ternary codes, exact integer products, linear layers;
2. `layers`: normalisation, rotary positions, attention, gates, selection of the largest channels;
3. `experts`: which of many feed-forwards a token takes;
4. `model`: the forward pass, and what follows from it (greedy text, loss);
5. `sampling`: from logits to the probabilities that the next token is drawn from;
6. `hadamard`: rotated activations.

All arithmetic is float64 except where a result has to be reproduced bit by bit; those few lines are float32 and say so.
"""

from .experts import expert_feed_forward, route
from .layers import attention, gated_feed_forward, gelu, relu2, rms_norm, rope, silu, softmax, sparsify, top_k
from .model import forward, greedy, hidden_states, nats_per_token
from .quantization import (
    FloatLinear,
    IntLinear,
    Linear,
    TernaryLinear,
    int_matmul,
    quantize_activations,
    quantize_weights_absmean,
    ternary_matmul,
)
from .sampling import sample_distribution

__all__ = [
    "FloatLinear",
    "IntLinear",
    "Linear",
    "TernaryLinear",
    "attention",
    "expert_feed_forward",
    "forward",
    "gated_feed_forward",
    "gelu",
    "greedy",
    "hidden_states",
    "int_matmul",
    "nats_per_token",
    "quantize_activations",
    "quantize_weights_absmean",
    "relu2",
    "rms_norm",
    "rope",
    "route",
    "sample_distribution",
    "silu",
    "softmax",
    "sparsify",
    "ternary_matmul",
    "top_k",
]
