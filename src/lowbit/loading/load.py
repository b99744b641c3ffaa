"""`lowbit.load`: from a model file to a `Model`."""

from __future__ import annotations

import os
import time
from collections.abc import Set
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from .._kernels import dispatch
from .._kernels.decoder import Decoder
from .._kernels.graph import Graph
from .._kernels.kvpool import KV_TYPES, KVPool
from .._kernels.matrix import PackedMatrix
from .._kernels.paging import PagedMatrix
from ..assets import EMBEDDED_MODEL
from ..errors import FormatError, MemoryBudgetError, UnsupportedModelError
from ..families import plan_of
from ..formats import open_model
from ..formats.base import ModelFile
from ..formats.files import named
from ..plan import DeltaNet, ModelPlan
from ..scalars import plain
from ..tokenizers import Tokenizer, from_gguf_metadata, has_vocabulary, load_tokenizer
from ..tokenizers.llama2c import tokenizer_beside
from . import sparsity as sparsity_settings
from .memory import Budget, blocks_of, parse_size
from .packing import FLOAT_WEIGHTS, HEADS, PACKS, check_tensors, kept_as, packed_bytes, read_weights
from .paging import Paging
from .shared import LOADED, packed_from
from .traps import find_traps

if TYPE_CHECKING:
    from ..model import Model

DEFAULT_CONTEXT = 8192
"""Most tokens that a model gets room for unless the caller asks for more."""
BATCH = 256
"""Most rows of a pass."""
EXACT_KV_BYTES = 32 << 10
"""Bytes of float32 keys and values per token up to which they are kept so by default."""


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    max_ram: str | int | None = None,
    sparsity: sparsity_settings.Setting = 0.0,
    sparse_prefill: bool = False,
    context: int | None = None,
    kv_type: str = "auto",
    head: str = "auto",
    weights: str = "auto",
    pack: str = "auto",
    kv_disk: str | os.PathLike[str] | None = None,
    kv_disk_bytes: str | int | None = None,
    draft: str | os.PathLike[str] | None = None,
) -> Model:
    """Load a model.

    Parameters
    ----------
    path : path, optional
        A GGUF file, a llama2.c checkpoint or a Hugging Face folder; or ``hf:owner/name[:file]``, a model of the Hugging
        Face hub, which is fetched unless it is here already (extra ``hub``). None is the model that comes with lowbit.
    tokenizer : path, optional
        A tokenizer file, or a folder with one, that is used in place of the model's own; what `load_tokenizer` reads.
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
        into an eighth of it. A model with LongRoPE takes its long factors if this, or without it the model's own up to
        8192, is more than its original context, and else its short ones, for texts of any length.
    kv_type : str
        How keys and values of past tokens are kept: ``f32`` as they are, ``f16`` in half and ``int8`` in a quarter of
        the memory, with small differences. ``auto`` is ``f32`` up to 32 KB per token, and ``f16`` for larger models.
    head : str
        Float embeddings and output heads: ``auto`` keeps large ones in 8 bits (Q8_0), ``file`` as they are in the
        file, ``q8_0`` all of them in 8 bits.
    weights : str
        Float weights of linear layers: ``auto`` packs those that are ternary and keeps other large ones in 8 bits,
        ``file`` takes them as they are in the file.
    pack : str
        Ternary weights in memory: ``auto`` has four in a byte, ``dense`` five, which takes a fifth less memory; the
        text is the same. docs/performance.md says where this is faster, and where slower.
    kv_disk : path, optional
        Folder to keep keys and values of past tokens in, so that nothing that begins like an earlier text is computed
        again, in this process or a later one; the text is the same. ``"auto"`` is ``lowbit/kv`` in the user's cache
        folder. Any number of models and processes may share one.
    kv_disk_bytes : str or int, optional
        Most that all files in that folder may take, 4GB by default; what was not used for the longest goes first.
    draft : path, optional
        A much smaller model of the same vocabulary, without recurrent layers, that writes ahead; this one checks
        several tokens in one pass. The text is the same, and comes sooner where both agree. It is all in memory, which
        counts in `max_ram`.

    Returns
    -------
    Model

    Raises
    ------
    MissingFileError
        If there is no such file; it is a FileNotFoundError.
    FormatError
        If the file is damaged, or not a model file.
    UnsupportedModelError
        If the file is sound, but lowbit does not know its architecture, tensor types or tokenizer; or if `draft` has
        another vocabulary, or recurrent layers.
    RemoteError
        If it is named ``hf:...``, is not here, and cannot be fetched.
    MemoryBudgetError
        If `max_ram` is too little; the message names the smallest that works.
    LowbitError
        If the folder `kv_disk` cannot be written.
    ValueError
        If a setting is out of range.
    """
    from ..model import Model  # what users hold stands above this room, and begins here

    if path is not None and not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"path must be a str or a path, or None for the embedded model, not {path!r}")
    budget = None if max_ram is None else Budget(parse_size(max_ram))
    sparse = sparsity_settings.parse(sparsity)
    check_forms(kv_type, head, weights, pack, sparse)
    threads, context = check_threads(threads), plain(context)
    folder = None
    if kv_disk is not None or kv_disk_bytes is not None:
        from .kvdisk import KVDisk, fingerprint, kv_folder  # only here, for the time that it takes

        folder = kv_folder(kv_disk, kv_disk_bytes)
    tokenizer = None if tokenizer is None else os.path.normpath(tokenizer)
    thresholds = sparsity if isinstance(sparsity, (str, os.PathLike)) else None
    start = time.perf_counter()
    source = EMBEDDED_MODEL if path is None else path
    with dispatch.PlainFloats(), open_model(source) as file, named(file.path, tokenizer, draft, thresholds):
        plan = plan_of(file)
        reader = tokenizer_of(file, plan, tokenizer)  # first, so that a budget can count it
        small = None if draft is None else load_draft(draft, plan, reader, threads, context, budget)
        decoder, plan = build(
            file, threads, context, kv_type, head, weights=weights, budget=budget, sparse=sparse, share=budget is None,
            pack=pack,
        )  # fmt: skip
        description = {
            **describe(file, decoder.weights.unpacked),
            **longrope(plan, context),
            "warnings": find_traps(file, plan, reader, tokenizer is None),
        }
        if draft is not None:
            description["draft"] = os.fspath(draft)
        decoder.sparse_prefill = sparse_prefill
        if folder is not None:
            skipped = sparsity_settings.details(sparse) if sparse_prefill else None
            model = fingerprint(file, plan, decoder.pool.kv_type, head, weights, skipped)
            name = str(description["name"] or os.path.basename(os.path.normpath(description["path"])))
            decoder.pool.disk = KVDisk(folder, model, name, decoder.pool)
    memory = None if budget is None else budget.plan
    return Model(decoder, plan, reader, description, time.perf_counter() - start, memory, small)


def load_draft(
    path: str | os.PathLike[str], plan: ModelPlan, tokenizer: Tokenizer | None, threads: int, context: int | None,
    budget: Budget | None,
) -> Decoder:  # fmt: skip
    """Load the small model that makes proposals for one of this plan and this tokenizer."""
    with open_model(path) as file, named(file.path):
        own = plan_of(file)
        if state_bytes(own):
            raise UnsupportedModelError(
                f"a model with recurrent layers ({own.family}) cannot be the draft of another: it takes no token back"
            )
        reader = tokenizer_of(file, own)
        _check_same_vocabulary(own, reader, plan, tokenizer)
        decoder, _ = build(file, threads, min(context or DEFAULT_CONTEXT, plan.context_length, own.context_length))
        if budget is not None:
            file.release_all()
            budget.leave_to(decoder)
    return decoder


def _check_same_vocabulary(own: ModelPlan, reader: Tokenizer | None, plan: ModelPlan, other: Tokenizer | None) -> None:
    sizes = own.vocab_size, plan.vocab_size
    if reader is not None and other is not None:
        sizes = reader.vocab_size, other.vocab_size
        for token in range(min(sizes)):
            ours, theirs = reader.piece(token), other.piece(token)
            if ours != theirs:
                raise UnsupportedModelError(
                    f"a draft needs the model's vocabulary, but its token {token} is {ours!r}, the model's {theirs!r}"
                )
    if sizes[0] != sizes[1]:
        raise UnsupportedModelError(
            f"a draft needs the model's vocabulary, but has {sizes[0]} tokens, the model {sizes[1]}"
        )


def check_threads(threads: int | None) -> int:
    """Return the number of threads to use; ValueError if it is out of range."""
    if threads is None:
        return min(int(dispatch.cores()), int(dispatch.MAX_THREADS))
    threads = plain(threads)
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= dispatch.MAX_THREADS:
        raise ValueError(f"threads must be a whole number from 1 to {dispatch.MAX_THREADS}, not {threads!r}")
    return threads


def kv_bytes_per_token(plan: ModelPlan, kv_type: str) -> int:
    """Return the memory of a token's keys and values in all layers."""
    element = {"f32": 4, "f16": 2, "int8": 1}[kv_type]
    total = 0
    for mixer in plan.attentions:
        values = -(-mixer.value_dim // 16) * 16  # lie in whole vectors
        scales = (8 if values else 4) if kv_type == "int8" else 0
        total += mixer.n_kv_heads * (element * (mixer.head_dim + values) + scales)
    return total


def state_bytes(plan: ModelPlan) -> int:
    """Return the memory of the recurrent layers' state, for one sequence."""
    floats = 0
    for layer in plan.layers:
        if isinstance(d := layer.mixer, DeltaNet):
            window, row = (d.taps - 1) * d.channels, -(-d.head_dim // 16) * 16  # in whole vectors
            floats += -(-window // 16) * 16 + d.n_value_heads * d.head_dim * row
    return 4 * floats


def automatic_kv_type(plan: ModelPlan) -> str:
    """Return what ``kv_type="auto"`` is for a model."""
    numbers = sum(mixer.n_kv_heads * (mixer.head_dim + mixer.value_dim) for mixer in plan.attentions)
    return "f32" if 4 * numbers <= EXACT_KV_BYTES else "f16"


def check_forms(
    kv_type: str = "auto", head: str = "auto", weights: str = "auto", pack: str = "auto",
    sparse: sparsity_settings.Sparsity = sparsity_settings.NONE,
) -> None:  # fmt: skip
    """Raise ValueError for a form that keys, values or weights cannot have in memory."""
    if kv_type not in ("auto", *KV_TYPES):
        raise ValueError(f"kv_type must be one of auto, {', '.join(KV_TYPES)}, not {kv_type!r}")
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, not {head!r}")
    if weights not in FLOAT_WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(FLOAT_WEIGHTS)}, not {weights!r}")
    if pack not in PACKS:
        raise ValueError(f"pack must be one of {', '.join(PACKS)}, not {pack!r}")
    if pack == "dense" and sparse:
        raise ValueError("pack must be auto where inputs are skipped: sparse products read weights in another order")


def build(
    file: ModelFile, threads: int, context: int | None, kv_type: str = "auto", head: str = "auto", batch: int = BATCH,
    weights: str = "auto", budget: Budget | None = None, sparse: sparsity_settings.Sparsity = sparsity_settings.NONE,
    share: bool = False, pack: str = "auto", paged: bool = False,
) -> tuple[Decoder, ModelPlan]:  # fmt: skip
    """Pack a file's weights for a decoder, or leave them in the file if a budget has no room for all, or with `paged`.

    With `share`, what another decoder of the same file holds is taken; for files whose tensors are those on the disk.
    """
    plan = plan_of(file)
    most = min(plan.context_length, DEFAULT_CONTEXT)
    if context is not None and (
        isinstance(context, bool) or not isinstance(context, int) or not 1 <= context <= plan.context_length
    ):
        raise ValueError(f"context must be a whole number from 1 to {plan.context_length}, not {context!r}")
    check_tensors(file, plan)
    kv_type = automatic_kv_type(plan) if kv_type == "auto" else kv_type
    paging = None
    if budget is not None and (paged or not budget.holds(packed_bytes(file, plan, head, weights, True, pack)[0])):
        stored = sum(info.nbytes for info in file.tensors.values())
        paging = Paging(file, budget.block_bytes, threads, budget.exceeded_by(stored))
    key = packed_from(file, plan, head, weights, pack, sparsity_settings.details(sparse)) if share else None
    read = LOADED.get(key)
    if read is None:
        with dispatch.Arena():
            read = read_weights(file, plan, threads, head, weights, paging, pack)
            sparsity_settings.arrange(read.layers, sparse, plan, threads)
        if key is not None:
            LOADED[key] = read
    if read.rope_factors:
        plan = plan.with_rope_factors(read.rope_factors[is_long(plan, context)])

    def make(context: int, batch: int) -> Decoder:
        graph = Graph(
            plan, read.layers, read.token_embd, read.output, read.output_norm, context, threads,
            None if paging is None else paging.pager,
        )  # fmt: skip
        pool = KVPool(
            len(plan.attentions), plan.n_kv_heads, plan.head_dim, kv_type, graph.state_bytes, plan.value_dim
        )  # fmt: skip
        return Decoder(graph, pool, threads, min(batch, context))

    decoder = None
    if budget is None:
        decoder = make(context or most, batch)
        decoder.pool.resize(None, blocks_of(decoder))
        if dispatch.active() in SLOW_SETS and is_worth_shortening(read.output, plan):
            decoder.shorten(read.output)
    else:
        file.release_all()  # it is closed when loading ends, so what is mapped does not count
        try:
            decoder = budget.fit(make, paging, context, most, batch)
        except MemoryBudgetError:
            if paging is not None:
                raise
    if decoder is None:  # the weights have room, but not all that is beside them
        del make, read
        return build(file, threads, context, kv_type, head, batch, weights, budget, sparse, share, pack, paged=True)
    decoder.weights = read
    sparsity_settings.apply(decoder, plan, sparse, file)
    return decoder, plan


def is_long(plan: ModelPlan, context: int | None) -> bool:
    """Whether a model loaded for so many tokens takes LongRoPE's long factors.

    Decided by what was asked for and not by what `max_ram` leaves of it, nor by a text: so both change nothing.
    """
    return 0 < plan.original_context < (context or min(plan.context_length, DEFAULT_CONTEXT))


def longrope(plan: ModelPlan, context: int | None) -> dict[str, Any]:
    """What `Model.info` says of LongRoPE; nothing of models without."""
    if not plan.original_context:
        return {}
    factors = "long" if is_long(plan, context) else "short"
    return {"longrope": {"factors": factors, "original_context": plan.original_context}}


SLOW_SETS = ("mmx",)
"""Instruction sets on which arithmetic costs more than a byte of memory for each weight of the head."""

LARGE_HEAD, HUGE_HEAD = 1 << 22, 1 << 25
"""Weights from which on a head has a `Shortlist`, and from which on that would take too much memory."""


def is_worth_shortening(head: PackedMatrix | PagedMatrix, plan: ModelPlan) -> TypeGuard[PackedMatrix]:
    """Whether a head can have a `Shortlist`, and is of a size for which it pays."""
    rows, columns = head.shape
    fits = isinstance(head, PackedMatrix) and head.format == "u8" and columns % 8 == 0 and columns <= 8192
    return fits and plan.logit_scale == 1 and LARGE_HEAD <= rows * columns <= HUGE_HEAD


def tokenizer_of(file: ModelFile, plan: ModelPlan, path: str | None = None) -> Tokenizer | None:
    """Return the tokenizer at `path`; without one that of the file or folder, or llama2.c's beside it.

    Raises
    ------
    FormatError
        If it has more tokens than the model.
    """
    if path is not None:
        tokenizer = load_tokenizer(path)
        if tokenizer.vocab_size > plan.vocab_size:
            raise FormatError(f"{path}: holds {tokenizer.vocab_size} tokens, but the model has {plan.vocab_size}")
        return tokenizer
    own = _own_tokenizer(file)
    if own is not None and own.vocab_size > plan.vocab_size:
        raise FormatError(f"{own.vocab_size} token texts for a vocabulary of {plan.vocab_size}")
    return own


def _own_tokenizer(file: ModelFile) -> Tokenizer | None:
    if has_vocabulary(file.metadata):
        return from_gguf_metadata(file.metadata, file.path)
    if file.format == "huggingface":
        names = ("tokenizer.model", "tokenizer.json")
        return load_tokenizer(file.path) if any(os.path.isfile(os.path.join(file.path, n)) for n in names) else None
    if file.format == "llama2c":
        size = file.metadata["llama.vocab_size"]
        beside = tokenizer_beside(file.path, size)
        return load_tokenizer(beside, vocab_size=size) if beside else None
    return None


def describe(file: ModelFile, unpacked: Set[str] = frozenset()) -> dict[str, Any]:
    """What a file says about itself, for `Model.info`; and the types that are unpacked at each use."""
    types: dict[str, int] = {}
    for info in file.tensors.values():
        types[info.type] = types.get(info.type, 0) + 1
    kept = {kind: words for kind in types if (words := kept_as(kind))}
    kept |= dict.fromkeys(unpacked, "as in the file, unpacked at each use")
    return {
        "path": str(file.path),
        "format": file.format,
        "architecture": file.architecture,
        "name": file.metadata.get("general.name"),
        "chat_template": file.metadata.get("tokenizer.chat_template"),
        "parameters": sum(int(np.prod(info.shape, dtype=np.int64)) for info in file.tensors.values()),
        "types": types,
        **({"kept_as": kept} if kept else {}),
        "file_bytes": sum(info.nbytes for info in file.tensors.values()),
    }
