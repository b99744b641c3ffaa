"""What a model file holds and what loading it would take, from its header: no tensor is read but for a few rows."""

from __future__ import annotations

import os
from typing import Any

from .._kernels import dispatch
from ..assets import EMBEDDED_MODEL
from ..families import plan_of
from ..formats import open_model
from ..formats.files import named
from ..plan import DeltaNet, Experts, LatentAttention, ModelPlan
from ..tokenizers import Tokenizer, from_gguf_metadata, has_vocabulary
from .load import (
    BATCH,
    DEFAULT_CONTEXT,
    automatic_kv_type,
    check_threads,
    describe,
    kv_bytes_per_token,
    longrope,
    state_bytes,
    tokenizer_of,
)
from .packing import check_tensors, packed_bytes
from .sparsity import meets_zeros
from .traps import find_traps


def inspect_file(
    path: str | os.PathLike[str] | None = None, tokenizer: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Describe a model file.

    Parameters
    ----------
    path : path, optional
        As for `lowbit.load`.
    tokenizer : path, optional
        As for `lowbit.load`.

    Returns
    -------
    dict
        What `Model.info` returns of the model, loaded with the defaults; and in it ``network`` and ``tokenizer``.
        ``scratch_bytes`` is near the truth, all other sizes are exact. Of a file that holds a vocabulary alone, what
        there is.

    Raises
    ------
    FormatError, UnsupportedModelError
        As `lowbit.load`, but for weights that cannot be.
    """
    tokenizer = None if tokenizer is None else os.path.normpath(tokenizer)
    with open_model(EMBEDDED_MODEL if path is None else path) as file, named(file.path, tokenizer):
        if not file.tensors and tokenizer is None and has_vocabulary(file.metadata):
            alone = "a vocabulary without a model: other commands take it as --tokenizer"
            return {
                **describe(file),
                "tokenizer": _tokens(from_gguf_metadata(file.metadata, file.path)),
                "warnings": [alone],
            }
        plan = plan_of(file)
        reader = tokenizer_of(file, plan, tokenizer)
        check_tensors(file, plan)
        weight_bytes, ternary = packed_bytes(file, plan)
        return {
            **describe(file),
            **longrope(plan, None),
            "family": plan.family,
            "vocab_size": plan.vocab_size,
            "context_length": plan.context_length,
            "layers": plan.n_layers,
            "hidden_size": plan.hidden_size,
            "tied_embeddings": plan.tied_embeddings,
            "network": _network(plan),
            "tokenizer": None if reader is None else _tokens(reader),
            "weight_bytes": weight_bytes,
            "scratch_bytes": _scratch_bytes(plan),
            "kv_bytes_per_token": kv_bytes_per_token(plan, automatic_kv_type(plan)),
            "state_bytes": state_bytes(plan),
            "threads": check_threads(None),
            "skipping": [
                linear.name
                for linear in plan.linears(0)
                if meets_zeros(plan, 0, linear) and all(weight.name in ternary for weight in linear.weights)
            ],
            "isa": dispatch.active(),
            "memory": None,
            "warnings": find_traps(file, plan, reader, tokenizer is None),
        }


def _network(plan: ModelPlan) -> dict[str, int]:
    """How many layers there are of each kind, in words."""
    kinds: dict[str, int] = {}
    for layer in plan.layers:
        mixer, feed_forward = layer.mixer, layer.feed_forward
        if isinstance(mixer, DeltaNet):
            words = f"gated delta net of {mixer.n_value_heads} heads of {mixer.head_dim} on {mixer.n_key_heads}"
        elif isinstance(mixer, LatentAttention):
            words = f"attention of {mixer.n_heads} heads to latents of {mixer.rank} and {mixer.rope.dim} rotated"
        else:
            words = f"attention of {mixer.n_heads} heads of {mixer.head_dim} on {mixer.n_kv_heads}"
            words += f"{f' in a window of {mixer.window}' if mixer.window else ''} for keys and values"
        chosen = f"{feed_forward.top_k} of {feed_forward.n} experts, " if isinstance(feed_forward, Experts) else ""
        words += f" and {chosen}{feed_forward.activation} feed-forward of {feed_forward.size}"
        kinds[words] = kinds.get(words, 0) + 1
    return kinds


def _tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "tokens": tokenizer.vocab_size,
        "bos": tokenizer.bos_id,
        "add_bos": tokenizer.add_bos,
        "ends": sorted(tokenizer.eos_ids),
    }


def _scratch_bytes(plan: ModelPlan) -> int:
    """Activations of a batch of rows, as floats and as int8 with their scales; and the logits of one row."""
    hidden = plan.hidden_size
    linears = [linear for i in range(plan.n_layers) for linear in plan.linears(i)]
    widest_in, widest_out = max(one.n_in for one in linears), max(one.n_out for one in linears)
    heads = max(
        mixer.n_heads * (2 * mixer.head_dim if isinstance(mixer, LatentAttention) else mixer.head_dim)
        for mixer in plan.attentions
    )
    row = 0 if plan.rotation is None else 4 * widest_in
    row += 4 * (hidden + widest_in + max(widest_out, hidden) + max(heads, hidden)) + widest_in + 8 * (widest_in // 32)
    row += max(
        feed_forward.top_k * (5 * hidden + 9 * feed_forward.size) + 8 * feed_forward.n
        if isinstance(feed_forward, Experts) else 0
        for feed_forward in (layer.feed_forward for layer in plan.layers)
    )  # fmt: skip
    return row * min(BATCH, plan.context_length, DEFAULT_CONTEXT) + 4 * plan.vocab_size
