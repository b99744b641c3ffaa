"""What in a model file deserves a warning: the file loads, but something in it is guessed, contradicts itself, or is
known to ruin the text elsewhere.

Each check looks at what can be seen from a file, and is one function below. What cannot be seen has none: whether the
rows of queries and keys were permuted (the weights look alike), how packed rows were strided, and whether a missing
output head was lost or is tied to the embedding (`Model.info` says that it is). Weights are looked at in samples: a few
rows of the four smallest ternary tensors, so that a warning costs no time worth mentioning.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import LowbitError
from ..formats.base import ModelFile, TensorInfo
from ..formats.blocks import TERNARY, dequantize, is_ternary, ternary_codes
from ..plan import Attention, ModelPlan
from ..quantize.ggml_types import type_of
from ..tokenizers import Tokenizer
from ..tokenizers.base import END_MARKERS, FILL_IN_MARKERS
from .packing import matrix_shape
from .ternary import blockwise_ternary

SAMPLED_TENSORS = 4
SAMPLED_WEIGHTS = 1 << 16
LOPSIDED = 0.2
"""How far the shares of -1 and +1 may lie apart, as a part of their sum; in trained and random models it is below 0.05.
"""
ENOUGH = 4096
"""Weights other than 0 from which on the shares say something."""
FLOATS = ("F32", "F16", "BF16")
_TERNARY_NAME = re.compile(r"1[._-]58|bitnet|ternary|trilm|falcon-?e\b", re.IGNORECASE)
_FILE_TYPES = {36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4", 40: "Q1_0"}
"""Values of ``general.file_type`` that bitnet.cpp and llama.cpp have given different meanings, as llama.cpp means them.
"""
_FORKS = {
    "I2_S": "36, which is I2_S in bitnet.cpp and a removed type in llama.cpp",
    "Q2_0": "42, which is Q2_0 in llama.cpp, PQ2_0 in files of PrismML and TL2 in bitnet.cpp",
    "PQ2_0": "142, or 42 as Q2_0 in llama.cpp and TL2 in bitnet.cpp",
}


@dataclass(frozen=True)
class _Sample:
    """Some rows of a ternary linear layer."""

    codes: np.ndarray
    """uint8; 0, 1 and 2 are -1, 0 and +1."""
    scales: np.ndarray
    """float32; none is 0."""


@dataclass(frozen=True)
class _Look:
    """All that the checks look at."""

    file: ModelFile
    plan: ModelPlan
    tokenizer: Tokenizer | None
    own_tokenizer: bool
    """The tokenizer is the file's own."""
    samples: list[_Sample]
    floats: np.ndarray | None
    """Some rows of the smallest float linear layer, float32; None if there is none."""

    def types(self) -> set[str]:
        return {info.type for info in self.file.tensors.values()}


def find_traps(file: ModelFile, plan: ModelPlan, tokenizer: Tokenizer | None, own_tokenizer: bool = True) -> list[str]:
    """Look a file over.

    Parameters
    ----------
    file : ModelFile
        Open, and known to load.
    plan : ModelPlan
    tokenizer : Tokenizer, optional
    own_tokenizer : bool
        It is the file's own; otherwise what the file says about tokens does not count.

    Returns
    -------
    list of str
        A sentence for each finding; empty for most files.
    """
    names = (weight.name for weight in plan.weights() if weight.kind == "linear")
    linear = sorted((file.tensors[name] for name in names), key=lambda info: info.nbytes)
    ternary = [info for info in linear if info.type in TERNARY][:SAMPLED_TENSORS]
    floats = next((info for info in linear if info.type in FLOATS), None)
    look = _Look(
        file, plan, tokenizer, own_tokenizer, [s for info in ternary for s in _sample(file, info)],
        None if floats is None else dequantize(floats.type, *_first_rows(file, floats)),
    )  # fmt: skip
    for info in [*ternary, *([floats] if floats else [])]:
        file.release(info.name)
    return [finding for check in _CHECKS for finding in check(look)]


def _first_rows(file: ModelFile, info: TensorInfo) -> tuple[np.ndarray, tuple[int, int]]:
    """The stored bytes of the first rows of a tensor, and their shape; with the tail, if the type has one."""
    rows, cols = matrix_shape(info)
    tail = type_of(info.type).tail_bytes
    raw = file.read(info.name)
    few = min(rows, max(1, SAMPLED_WEIGHTS // cols))
    part = raw[: (info.nbytes - tail) // rows * few]
    return (np.concatenate([part, raw[-tail:]]) if tail else part), (few, cols)


def _sample(file: ModelFile, info: TensorInfo) -> Iterator[_Sample]:
    raw, shape = _first_rows(file, info)
    if is_ternary(info.type, raw):
        codes, scales = ternary_codes(info.type, raw, shape)
        yield _Sample(codes, scales[scales != 0])


# --- the checks --------------------------------------------------------------------------------------------------


def _scale_direction(look: _Look) -> Iterator[str]:
    """The mean magnitude of a language model's weights is far below 1, so its inverse is above 1."""
    scales = np.concatenate([sample.scales for sample in look.samples] or [np.zeros(0, np.float32)])
    usual = float(np.sort(np.abs(scales))[len(scales) // 2]) if len(scales) else 0.0
    if usual > 1:
        yield (
            f"the scales of the ternary weights are about {usual:.3g}, and below 1 in sound models: "
            "a converter, or quantization_config.linear_class, probably takes the scale for its inverse"
        )


def _code_table(look: _Look) -> Iterator[str]:
    """-1 and +1 are equally frequent; with another table of codes, 0 and one of them are."""
    counts = sum((np.bincount(s.codes.reshape(-1), minlength=3) for s in look.samples), np.zeros(3, np.int64))
    signs = int(counts[0] + counts[2])
    if signs >= ENOUGH and abs(int(counts[2]) - int(counts[0])) > LOPSIDED * signs:
        yield (
            f"{counts[0] / signs:.0%} of the ternary weights other than 0 are -1 and {counts[2] / signs:.0%} are +1, "
            "and both are half of them in sound models: the codes were probably written with another table"
        )


def _gate(look: _Look) -> Iterator[str]:
    """1bitLLM's models have SentencePiece vocabularies; Microsoft's has Llama 3's, and squared ReLU."""
    if look.plan.family == "bitnet" and look.file.metadata.get("tokenizer.ggml.model") == "gpt2":
        yield (
            "the architecture bitnet means a SiLU gate, but the vocabulary is not of its models: Microsoft's "
            "BitNet b1.58 2B4T (architecture bitnet-b1.58, squared ReLU) writes fluent nonsense when it runs as bitnet"
        )


def _splitting(look: _Look) -> Iterator[str]:
    metadata = look.file.metadata
    own = look.own_tokenizer and metadata.get("tokenizer.ggml.model") == "gpt2"
    if own and "tokenizer.ggml.pre" not in metadata:
        rule = "that of Llama 3, which the published BitNet files need" if "bitnet-" in look.plan.family else "default"
        yield f"tokenizer.ggml.pre is missing, so the rule that splits text before merging is a guess: {rule}"


def _masters(look: _Look) -> Iterator[str]:
    if look.floats is None:
        return
    several = blockwise_ternary(look.floats) is None and look.floats.any()
    if several and look.plan.bit_linear:
        yield (
            "the linear weights are float masters of ternary ones; they are rounded as the model defines it when it is "
            "loaded, and a program that runs them as they are gives wrong text"
        )
    elif several and not look.samples and _TERNARY_NAME.search(_name(look.file)):
        yield (
            "the name says ternary, but the linear weights are floats of many magnitudes: if they are masters that "
            "were to be rounded, the file does not say so, and they run as they are"
        )


def _several_scales(look: _Look) -> Iterator[str]:
    magnitudes = [np.abs(sample.scales) for sample in look.samples]
    if not magnitudes and look.floats is not None:
        found = blockwise_ternary(look.floats)
        magnitudes = [] if found is None else [np.abs(found[1][found[1] != 0])]
    if any(len(found) and found.max() > 1.01 * found.min() for found in magnitudes):
        yield (
            "ternary tensors have several scales each; they are kept here, and lost in I2_S and in programs that hold "
            "one per tensor"
        )


def _numbers(look: _Look) -> Iterator[str]:
    if look.file.format != "gguf":
        return
    types = look.types()
    for name in sorted(types & _FORKS.keys()):
        yield f"{name} tensors have the type number {_FORKS[name]}; what decided is which reading fills the file"
    number = look.file.metadata.get("general.file_type")
    if isinstance(number, int) and number in _FILE_TYPES and _FILE_TYPES[number] not in types:
        yield (
            f"general.file_type is {number}, which is {_FILE_TYPES[number]} in llama.cpp, but no tensor has this type; "
            "it was not looked at"
        )


def _head_dim(look: _Look) -> Iterator[str]:
    plan, mixer = look.plan, look.plan.attentions[0]
    # Elsewhere the size of a head is a key that every program reads.
    derived = plan.family in ("llama", "bitnet")
    if derived and isinstance(mixer, Attention) and mixer.head_dim * mixer.n_heads != plan.hidden_size:
        yield (
            f"heads have {mixer.head_dim} channels, and not the {plan.hidden_size / mixer.n_heads:g} that hidden size "
            "over heads gives; a program that derives them reads another model"
        )


def _missing_texts(look: _Look) -> Iterator[str]:
    """Vocabularies are often padded; a tokenizer from elsewhere that is smaller may also be that of another model."""
    tokenizer, size = look.tokenizer, look.plan.vocab_size
    if not look.own_tokenizer and tokenizer is not None and tokenizer.vocab_size < size:
        yield f"the tokenizer has {tokenizer.vocab_size} tokens, and the model {size}: the others have no text"


def _twice_bos(look: _Look) -> Iterator[str]:
    template, tokenizer = look.file.metadata.get("tokenizer.chat_template"), look.tokenizer
    if not isinstance(template, str) or tokenizer is None or tokenizer.bos_id is None or not tokenizer.add_bos:
        return
    if "bos_token" in template or tokenizer.piece(tokenizer.bos_id) in template:
        yield (
            "the chat template writes BOS, and the tokenizer adds one: a conversation gets one here, and may get two "
            "in other programs"
        )


def _unmarked_control(look: _Look) -> Iterator[str]:
    """Names of control tokens that are stored as ordinary tokens: a user who types one would end the turn."""
    types, tokenizer = look.file.metadata.get("tokenizer.ggml.token_type"), look.tokenizer
    if not look.own_tokenizer or tokenizer is None or not isinstance(types, np.ndarray):
        return
    names = [name for name in tokenizer.special_texts() if "|" in name and name in END_MARKERS - FILL_IN_MARKERS]
    ids = [tokenizer.encode(name, add_bos=False, add_eos=False, parse_special=True) for name in names]
    wrong = [name for name, found in zip(names, ids) if found[0] < len(types) and types[found[0]] != 3]
    if wrong:
        yield f"{', '.join(wrong[:4])} {'is' if len(wrong) == 1 else 'are'} not marked as control, and treated as such"


def _positions(look: _Look) -> Iterator[str]:
    plan, metadata = look.plan, look.file.metadata
    scaled = f"{look.file.architecture}.rope.scaling.type" in metadata
    if look.file.format == "gguf" and plan.rope_tensor and not scaled:
        yield (
            "the scaling of positions is in the tensor rope_freqs alone, which divides the frequencies; a program that "
            "leaves it out goes wrong in long texts"
        )
    # Llama 3.1 and later: this base, and a context that needs the scaling.
    llama31 = plan.family == "llama" and plan.rope_theta == 500000.0 and plan.context_length > 100_000
    if llama31 and not plan.rope_factors:
        yield (
            "the context is as long as that of Llama 3.1, whose positions are scaled, but nothing in the file scales "
            "them: an old converter may have lost it"
        )


def _template(look: _Look) -> Iterator[str]:
    source = look.file.metadata.get("tokenizer.chat_template")
    if look.tokenizer is None or not source:
        return
    try:
        from ..chat.templates import find_template  # only here, for the time that it takes

        if find_template(look.file.metadata, look.tokenizer).name != "jinja":
            return
        yield (
            "the chat template is not like any built-in one; it runs in a sandbox, and what it adds to a conversation "
            "is up to its author: read it"
        )
    except LowbitError as error:
        yield f"chat: {error}"


def _name(file: ModelFile) -> str:
    name = file.metadata.get("general.name")
    return f"{os.path.basename(os.path.normpath(file.path))} {name if isinstance(name, str) else ''}"


_CHECKS = (
    _scale_direction,
    _code_table,
    _gate,
    _splitting,
    _masters,
    _several_scales,
    _numbers,
    _head_dim,
    _missing_texts,
    _twice_bos,
    _unmarked_control,
    _positions,
    _template,
)
