"""From a model file to a `Model`: what the file holds is found, checked, and packed or left in the file."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

import numpy as np

from . import sparsity as sparsity_settings
from ._kernels import dispatch
from ._kernels.transformer import KV_TYPES, Transformer
from .assets import EMBEDDED_MODEL
from .channels import NO_CHANNELS, ChannelPlan, blocks_that_pay, by_channel
from .config import ModelConfig
from .errors import FormatError, UnsupportedModelError
from .families import find_family
from .formats import open_model
from .formats.base import ModelFile
from .memory import Budget, parse_size
from .model import Model
from .paging import Paging
from .tokenizers import Tokenizer, from_gguf_metadata, load_tokenizer
from .tokenizers.llama2c import tokenizer_beside
from .traps import find_traps
from .weights import FLOAT_WEIGHTS, HEADS, read_weights

DEFAULT_CONTEXT = 8192
"""Most tokens that a model gets room for unless the caller asks for more."""
EXACT_KV_BYTES = 32 << 10
"""Bytes of float32 keys and values per token up to which they are kept so by default."""


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    max_ram: str | int | None = None,
    sparsity: sparsity_settings.Setting = 0.0,
    sparse_prefill: bool = False,
    context: int | None = None,
    kv_type: str = "auto",
    head: str = "auto",
    weights: str = "auto",
) -> Model:
    """Load a model.

    Parameters
    ----------
    path : path, optional
        A GGUF file, a llama2.c checkpoint or a Hugging Face folder; None is the model that comes with lowbit.
    threads : int, optional
        Threads to compute with; None takes the cores that this process may use.
    max_ram : str or int, optional
        Most memory for weights, keys and values, and everything else that the model takes: ``"64MB"``, or bytes.
        What does not fit is read from the file for each token; the text is the same. Without it, all weights stay in
        memory.
    sparsity : float, mapping of str to float, or path
        Share of the inputs of each linear layer to skip, from 0 to less than 1: for each generated token those of the
        smallest magnitudes do not count, which saves time and changes the text. By linear layer: ``{"qkv": 0.4,
        "attn_output": 0.5, "gate_up": 0.4, "ffn_down": 0.6}``. A path is a thresholds file from ``lowbit calibrate``.
    sparse_prefill : bool
        Do the same in prompts. Scores and logits are always those of the sparse model.
    context : int, optional
        Room for this many tokens; None takes the model's own context, but at most 8192, and with `max_ram` what fits
        into an eighth of it.
    kv_type : str
        How keys and values of past tokens are kept: ``f32`` as they are, ``f16`` in half and ``int8`` in a quarter of
        the memory, with small differences. ``auto`` is ``f32`` up to 32 KB per token, and ``f16`` for larger models.
    head : str
        Float embeddings and output heads: ``auto`` keeps large ones in 8 bits (Q8_0), ``file`` as they are in the
        file, ``q8_0`` all of them in 8 bits.
    weights : str
        Float weights of linear layers: ``auto`` packs those that are ternary and keeps other large ones in 8 bits,
        ``file`` takes them as they are in the file.

    Returns
    -------
    Model

    Raises
    ------
    FormatError
        If the file is missing, damaged, or not a model file.
    UnsupportedModelError
        If the file is sound, but lowbit does not know its architecture, tensor types or tokenizer.
    MemoryBudgetError
        If `max_ram` is too little; the message names the smallest that works.
    ValueError
        If a setting is out of range.
    """
    budget = None if max_ram is None else Budget(parse_size(max_ram))
    sparse = sparsity_settings.parse(sparsity)
    if kv_type not in ("auto", *KV_TYPES):
        raise ValueError(f"kv_type must be one of auto, {', '.join(KV_TYPES)}, not {kv_type!r}")
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, not {head!r}")
    if weights not in FLOAT_WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(FLOAT_WEIGHTS)}, not {weights!r}")
    threads = check_threads(threads)
    start = time.perf_counter()
    with dispatch.PlainFloats(), open_model(EMBEDDED_MODEL if path is None else path) as file:
        return _from_file(file, threads, context, kv_type, head, weights, budget, sparse, sparse_prefill, start)


def check_threads(threads: int | None) -> int:
    """Return the number of threads to use; ValueError if it is out of range."""
    if threads is None:
        return min(int(dispatch.cores()), int(dispatch.MAX_THREADS))
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= dispatch.MAX_THREADS:
        raise ValueError(f"threads must be a whole number from 1 to {dispatch.MAX_THREADS}, not {threads!r}")
    return threads


def _from_file(
    file: ModelFile, threads: int, context: int | None, kv_type: str, head: str, weights: str, budget: Budget | None,
    sparse: sparsity_settings.Sparsity, sparse_prefill: bool, start: float,
) -> Model:  # fmt: skip
    """Read a model, and name the file in every complaint."""
    try:
        tokenizer = tokenizer_of(file)  # first, so that a budget can count it
        transformer, config = build(
            file, threads, context, kv_type, head, weights=weights, budget=budget, sparse=sparse
        )
        transformer.sparse_prefill = sparse_prefill
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            raise FormatError(f"{tokenizer.vocab_size} token texts for a vocabulary of {config.vocab_size}")
        description = {**describe(file), "warnings": find_traps(file, config, tokenizer)}
    except (FormatError, UnsupportedModelError) as error:
        if str(error).startswith(str(file.path)):
            raise
        raise type(error)(f"{file.path}: {error}") from None
    plan = None if budget is None else budget.plan
    return Model(transformer, config, tokenizer, description, time.perf_counter() - start, plan)


def build(
    file: ModelFile, threads: int, context: int | None, kv_type: str = "auto", head: str = "auto", batch: int = 256,
    weights: str = "auto", budget: Budget | None = None, sparse: sparsity_settings.Sparsity = sparsity_settings.NONE,
) -> tuple[Transformer, ModelConfig]:  # fmt: skip
    """Pack a file's weights into a transformer, or leave them in the file if there is a budget."""
    family = find_family(file.architecture)
    config = family.config(file.metadata, file.architecture, tied="output.weight" not in file.tensors)
    most = min(config.context_length, DEFAULT_CONTEXT)
    if context is not None and (
        isinstance(context, bool) or not isinstance(context, int) or not 1 <= context <= config.context_length
    ):
        raise ValueError(f"context must be a whole number from 1 to {config.context_length}, not {context!r}")
    if kv_type == "auto":
        kv_type = "f32" if 8 * config.n_layers * config.n_kv_heads * config.head_dim <= EXACT_KV_BYTES else "f16"
    paging = None
    if budget is not None:
        room = max(budget.limit // 16, 1 << 20)
        paging = Paging(file, budget.block_bytes, channel_plan(file, config, sparse, budget), room)
    read = read_weights(file, config, family, threads, head, weights, paging)
    if read.rope_factors:
        config = replace(config, rope_factors=read.rope_factors)
    sparsity_settings.arrange(read.layers, sparse, config.activation, threads)

    def make(context: int, batch: int) -> Transformer:
        return Transformer(
            config, read.layers, read.token_embd, read.output, read.output_norm, context, threads,
            min(batch, context), kv_type, None if paging is None else paging.pager,
        )  # fmt: skip

    if budget is None or paging is None:
        transformer = make(context or most, batch)
    else:
        file.release_all()  # it is closed when loading ends, so what is mapped does not count
        transformer = budget.fit(make, paging, context, most, batch)
    sparsity_settings.apply(transformer, config, sparse, file)
    return transformer, config


def channel_plan(
    file: ModelFile, config: ModelConfig, sparse: sparsity_settings.Sparsity, budget: Budget
) -> ChannelPlan:
    """The linear layers to read by channel: none where all weights fit into the budget as they are."""
    if not sparse or all_fits(file, budget):
        return NO_CHANNELS
    path = file.path
    if hasattr(file, "locate"):  # of several files or a folder, one that holds weights
        path, _ = file.locate(next(name for name, info in file.tensors.items() if len(info.shape) == 2))
    return by_channel(config, sparsity_settings.expected_shares(sparse), blocks_that_pay(os.path.abspath(path)))


def all_fits(file: ModelFile, budget: Budget) -> bool:
    """Tell whether a budget is as large as all tensors of a file."""
    return sum(info.nbytes for info in file.tensors.values()) <= budget.limit


def tokenizer_of(file: ModelFile) -> Tokenizer | None:
    """The tokenizer in the file or folder, or llama2.c's beside it."""
    if "tokenizer.ggml.model" in file.metadata:
        return from_gguf_metadata(file.metadata, file.path)
    if file.format == "huggingface":
        names = ("tokenizer.model", "tokenizer.json")
        return load_tokenizer(file.path) if any(os.path.isfile(os.path.join(file.path, n)) for n in names) else None
    if file.format == "llama2c":
        size = file.metadata["llama.vocab_size"]
        beside = tokenizer_beside(file.path, size)
        return load_tokenizer(beside, vocab_size=size) if beside else None
    return None


def describe(file: ModelFile) -> dict[str, Any]:
    """What a file says about itself, for `Model.info`."""
    types: dict[str, int] = {}
    for info in file.tensors.values():
        types[info.type] = types.get(info.type, 0) + 1
    return {
        "path": str(file.path),
        "format": file.format,
        "architecture": file.architecture,
        "name": file.metadata.get("general.name"),
        "chat_template": file.metadata.get("tokenizer.chat_template"),
        "parameters": sum(int(np.prod(info.shape, dtype=np.int64)) for info in file.tensors.values()),
        "types": types,
        "file_bytes": sum(info.nbytes for info in file.tensors.values()),
    }
