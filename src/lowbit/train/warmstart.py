"""Existing ternary models as a starting point (fine-tuning, growing) or as a teacher."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from ..errors import FormatError, UnsupportedModelError
from ..families import plan_of
from ..formats import open_model
from ..formats.blocks import dequantize
from .export import ARCHITECTURES
from .model import INITIAL_DEVIATION, BitNet, BitNetShape

NEW_BLOCK_GAIN = 0.05
"""Size of a new block's output against that of the blocks it comes between: small, so that the model still works."""


def read_model(path: str | Path, compute: torch.dtype = torch.float32) -> BitNet:
    """Read a BitNet GGUF file into a torch model that computes the same.

    Raises
    ------
    FormatError, UnsupportedModelError
        If the file is damaged, or not a BitNet model with tied embeddings.
    """
    with open_model(path) as file:
        if file.architecture not in ARCHITECTURES.values():
            raise UnsupportedModelError(f"{path}: training starts from a BitNet model, not from {file.architecture!r}")
        plan = plan_of(file)
        plain = plan.head_dim * plan.n_heads == plan.hidden_size and plan.rope_dim == plan.head_dim
        if not (plain and plan.tied_embeddings and not (plan.rope_factors or plan.rope_freqs)):
            raise UnsupportedModelError(f"{path}: a model of this shape cannot be trained")
        shape = {name: getattr(plan, name) for name in BitNetShape.__dataclass_fields__}
        for name in ("norm_eps", "rope_theta"):
            shape[name] = float(f"{shape[name]:.6g}")  # stored as float32: 1e-5 comes back as 9.99999975e-06
        model = BitNet(BitNetShape(**shape), compute)
        for name, parameter in model.named_parameters():
            info = file.tensors.get(f"{name}.weight")
            if info is None or info.shape != tuple(parameter.shape):
                raise FormatError(f"{path}: the tensor {name}.weight is missing or has the wrong shape")
            values = torch.from_numpy(dequantize(info.type, file.read(info.name), info.shape).copy())
            if values.ndim == 2 and name != "token_embd":
                values = _masters(values)
            parameter.data.copy_(values)
    return model


def _masters(values: torch.Tensor) -> torch.Tensor:
    """Return weights whose rounding by absmean gives back ternary `values`; masters are returned as they are."""
    largest = values.abs().max()
    used = values != 0
    if not bool((values.abs()[used] == largest).all()):
        return values
    # mean |W| of ternary weights is the scale times the share that is not 0
    return values / used.float().mean().clamp(min=1e-9)


@torch.no_grad()
def grow(model: BitNet, source: BitNet) -> None:
    """Start a model from one with fewer blocks, so that both compute nearly the same.

    The blocks of `source` are spread evenly; new blocks stay random, but add almost nothing at first. The scale of
    each linear layer moves into the norm before it, which leaves all master weights at the size that the learning
    rate is made for.

    Parameters
    ----------
    model : freshly made; overwritten
    source : of the same widths, vocabulary and norm epsilon

    Raises
    ------
    FormatError
        If the two do not fit.
    """
    ours, theirs = asdict(model.shape), asdict(source.shape)
    for name in sorted(theirs.keys() - {"n_layers", "context_length"}):
        if ours[name] != theirs[name]:
            raise FormatError(f"{name} is {ours[name]}, but the model to start from has {theirs[name]}")
    if model.shape.n_layers < source.shape.n_layers:
        raise FormatError(f"the model to start from has more blocks ({source.shape.n_layers}) than the new one")
    model.token_embd.copy_(source.token_embd)
    model.output_norm.copy_(source.output_norm)
    count = source.shape.n_layers
    places = [round(i * model.shape.n_layers / count) for i in range(count)]
    gains: dict[str, list[float]] = {"attn_sub_norm": [], "ffn_sub_norm": []}
    for place, old in zip(places, source.blocks):
        block = model.blocks[place]
        scale = {}
        for name, weight in old.named_parameters():
            if weight.ndim == 2:
                size = weight.abs().mean()
                scale[name] = float(size) / INITIAL_DEVIATION
                block.get_parameter(name).copy_(weight / size * INITIAL_DEVIATION)
        # values and the up projection need no correction: a norm follows them
        block.attn_norm.copy_(old.attn_norm * (scale["attn_q"] * scale["attn_k"]) ** 0.5)
        block.attn_sub_norm.copy_(old.attn_sub_norm * scale["attn_output"])
        block.ffn_norm.copy_(old.ffn_norm * scale["ffn_gate"])
        block.ffn_sub_norm.copy_(old.ffn_sub_norm * scale["ffn_down"])
        for name, sizes in gains.items():
            sizes.append(float(block.get_parameter(name).abs().mean()))
    for place in set(range(model.shape.n_layers)) - set(places):
        for name, sizes in gains.items():
            model.blocks[place].get_parameter(name).fill_(NEW_BLOCK_GAIN * sum(sizes) / len(sizes))
