"""From the trained model to a GGUF file that lowbit, llama.cpp or bitnet.cpp can run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..errors import FormatError
from ..formats.gguf_writer import GGUFWriter
from .fourbit import int4_weights
from .model import BitNet, int8_weights, ternary

ARCHITECTURES = {"relu2": "bitnet-b1.58", "silu": "bitnet"}
"""``general.architecture`` by the gate of the feed-forward layer: Microsoft's BitNet b1.58, and 1bitLLM's."""
ROW_MULTIPLE = {"TQ2_0": 256, "TQ1_0": 256, "I2_S": 128}
LINEAR_TYPES = {"int8": "Q8_0", "int4-fp4": "Q4_0"}
TRAINING_ONLY = ("input_clip", "grad_exponent")
"""Parameters of 4-bit training that the finished model does without: lowbit quantises activations to 8 bits."""
EMBEDDING_BLOCK = 32


def check_exportable(model: BitNet, ternary_type: str) -> None:
    """Refuse, before any training, a shape that the type of the linear layers cannot store."""
    if model.quantisation.precision != "ternary":
        for width in (model.shape.hidden_size, model.shape.intermediate_size):
            if width % EMBEDDING_BLOCK:
                raise FormatError(f"4 and 8 bits are stored in rows of whole {EMBEDDING_BLOCK}s: {width} is none")
        return
    multiple = ROW_MULTIPLE.get(ternary_type)
    if multiple is None:
        raise FormatError(f"ternary weights are stored as {', '.join(ROW_MULTIPLE)}, not as {ternary_type}")
    for what, width in (("hidden", model.shape.hidden_size), ("feed-forward", model.shape.intermediate_size)):
        if width % multiple:
            raise FormatError(f"{ternary_type} stores rows of whole {multiple}s: the {what} size {width} is none")


@torch.no_grad()
def write_gguf(
    path: str | os.PathLike[str],
    model: BitNet,
    vocabulary: Mapping[str, Any],
    *,
    name: str,
    ternary_type: str = "TQ2_0",
    embedding_type: str = "Q8_0",
) -> None:
    """Write the model as it computes at full quantisation.

    Parameters
    ----------
    path : target; replaced when complete
    model : trained model
    vocabulary : ``tokenizer.ggml.*`` keys
    name : ``general.name``
    ternary_type : type of ternary linear layers: ``TQ2_0``, ``TQ1_0`` or ``I2_S``. Those of a model in int8 become
        Q8_0, in int4-fp4 Q4_0, both with the one scale of the tensor in every block, and in float32 F32.
    embedding_type : type of the embeddings, which are the output head too: ``Q8_0``, ``Q4_0``, ``F16`` or ``F32``

    Raises
    ------
    FormatError
        If the sizes of the model do not suit the types.
    """
    check_exportable(model, ternary_type)
    shape = model.shape
    architecture = ARCHITECTURES[shape.activation]
    with GGUFWriter(path, architecture) as writer:
        writer.add_metadata("general.name", name)
        numbers = {
            "vocab_size": shape.vocab_size,
            "context_length": shape.context_length,
            "embedding_length": shape.hidden_size,
            "block_count": shape.n_layers,
            "feed_forward_length": shape.intermediate_size,
            "attention.head_count": shape.n_heads,
            "attention.head_count_kv": shape.n_kv_heads,
            "attention.layer_norm_rms_epsilon": shape.norm_eps,
            "rope.dimension_count": shape.head_dim,
            "rope.freq_base": shape.rope_theta,
        }
        for key, value in numbers.items():
            writer.add_metadata(f"{architecture}.{key}", value)
        precision = model.quantisation.precision
        if precision == "float32":
            writer.add_metadata("lowbit.bit_linear", False)
        for key, value in vocabulary.items():
            writer.add_metadata(key, value)
        for key, parameter in model.named_parameters():
            if key.rpartition(".")[2] in TRAINING_ONLY:
                continue
            values, stored_shape = parameter.detach().float().cpu(), None
            data, kind = values.numpy(), "F32"
            if key == "token_embd":
                kind = embedding_type
            elif values.ndim == 2 and precision == "ternary":
                codes, scale = ternary(values)
                data, kind = (codes * scale).numpy(), ternary_type
            elif values.ndim == 2 and precision != "float32":
                kind = LINEAR_TYPES[precision]
                codes, scale = (int8_weights if precision == "int8" else int4_weights)(values)
                data, stored_shape = (
                    pack_blocks(kind, codes.round().numpy().astype(np.int8), scale.item()),
                    values.shape,
                )
            writer.add_tensor(f"{key}.weight", kind, np.ascontiguousarray(data), stored_shape)


def pack_blocks(kind: str, codes: np.ndarray, scale: float) -> np.ndarray:
    """Store codes as Q8_0 or Q4_0 blocks that all have the same scale: int8 (rows, cols) -> uint8."""
    blocks = codes.reshape(-1, EMBEDDING_BLOCK)
    stored: np.ndarray = blocks.view(np.uint8)
    if kind == "Q4_0":
        nibbles: np.ndarray = (blocks + 8).astype(np.uint8)
        stored = nibbles[:, :16] | nibbles[:, 16:] << 4
    scales = np.full((len(blocks), 1), scale, "<f2").view(np.uint8)
    return np.concatenate([scales, stored], axis=1).reshape(-1)
