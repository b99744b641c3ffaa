"""The keys `prism.hadamard.*`, by which a file says that its weights read rotated activations.

Skipping what is not known here would give fluent nonsense, so all of it is refused by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedModelError
from ..plan import ModelPlan, Rotation

PREFIX = "prism.hadamard."
OTHERS = ("onebit.hadamard",)
"""Keys of transforms that lowbit does not know."""
KEYS = (
    "version", "tied_output", "block_size", "transform", "axis", "sign_mode", "sign_widths", "sign_values",
    "weight_names", "inverse_weight_names", "gdn_v_grouped",
)  # fmt: skip
ARCHITECTURES = ("llama", "qwen3", "qwen3moe", "qwen35", "qwen35moe")
MAX_BLOCK = 1 << 16
EMBEDDING = "token_embd.weight"


def rotation_of(keys: Any, architecture: str, plan: ModelPlan) -> Rotation | None:
    """Read which weights read rotated inputs, and how these are rotated; None if the file says nothing of it.

    Parameters
    ----------
    keys : families.base._Keys
        With the prefix `PREFIX`.
    architecture : str
    plan : ModelPlan
        What else the file says.

    Raises
    ------
    FormatError
        If a key is missing, of the wrong type, out of range, or contradicts another or the tensors.
    UnsupportedModelError
        If it is a transform that lowbit does not know, or of weights for which it has none.
    """
    found = [key for key in keys.metadata if key.startswith((PREFIX, *OTHERS))]
    if not found:
        return None
    for key in found:
        if key.removeprefix(PREFIX) not in KEYS:
            raise UnsupportedModelError(f"{key[:60]!r}: this Hadamard transform of weights is not supported")
    if PREFIX + "version" not in found:
        raise UnsupportedModelError(f"{found[0][:60]!r}: a Hadamard transform without a version is not supported")
    version = keys.whole("version", 0, 1 << 32)
    if version not in (1, 2):
        raise UnsupportedModelError(f"{PREFIX}version: version {version} of the Hadamard transform is not supported")
    if architecture not in ARCHITECTURES or any(part.norms for part in plan.linears(0)):
        raise UnsupportedModelError(f"{PREFIX}version: weights of {architecture} that are rotated are not supported")
    _only(keys, "transform", "normalized-sylvester-walsh-hadamard")
    _only(keys, "axis", "input-last-dimension")
    block = keys.whole("block_size", 1, MAX_BLOCK)
    if block & (block - 1):
        raise FormatError(f"{PREFIX}block_size is {block}, not a power of two")
    folded, latent = _names(keys, "weight_names"), _names(keys, "inverse_weight_names")
    if not folded:
        raise FormatError(f"{PREFIX}weight_names is empty")
    if latent not in ([], [EMBEDDING]):
        raise UnsupportedModelError(f"{PREFIX}inverse_weight_names: more than the embedding is not supported")
    tied = keys.flag("tied_output", False)
    if tied != (version == 2) or (tied and not (latent and plan.tied_embeddings)):
        raise FormatError(f"{PREFIX}tied_output contradicts the version, or what there is of embedding and head")
    if latent and not tied and (plan.tied_embeddings or EMBEDDING in folded):
        raise FormatError(f"{PREFIX}inverse_weight_names: the embedding is an output head, too")
    signs = _signs(keys, block)
    for name in folded:
        _check(plan, name, tied)
    names = {*folded, EMBEDDING} if tied else set(folded)
    for name in (*names, *latent):
        width = plan.by_name[name].shape[-1] if name in plan.by_name else block  # of a layer that nothing reads
        if width % block or (signs and name in plan.by_name and width not in signs):
            raise FormatError(f"{PREFIX}block_size and sign_widths do not fit the {width} inputs of {name}")
    return Rotation(block, signs, frozenset(names), bool(latent), keys.flag("gdn_v_grouped", False))


def _only(keys: Any, key: str, known: str) -> None:
    if _text(keys, key) != known:
        raise UnsupportedModelError(f"{PREFIX}{key}: a Hadamard transform other than {known} is not supported")


def _text(keys: Any, key: str) -> str:
    value = keys.metadata.get(PREFIX + key)
    if not isinstance(value, str):
        raise FormatError(f"{PREFIX}{key} is not a text")
    return value


def _names(keys: Any, key: str) -> list[str]:
    """Names of tensors, each once; none if there is no such key."""
    value = keys.metadata.get(PREFIX + key, [])
    if not isinstance(value, list) or not all(isinstance(name, (bytes, str)) for name in value):
        raise FormatError(f"{PREFIX}{key} is not an array of names")
    names = [name if isinstance(name, str) else name.decode("utf-8", "replace") for name in value]
    if len(set(names)) != len(names):
        raise FormatError(f"{PREFIX}{key} has a name twice")
    return names


def _check(plan: ModelPlan, name: str, tied: bool) -> None:
    """Refuse the name of a tensor whose input cannot be rotated."""
    weight = plan.by_name.get(name)
    if weight is None and not plan.is_unused(name):
        raise FormatError(f"{PREFIX}weight_names: there is no tensor {name[:60]!r}")
    if weight is None or (tied and name == EMBEDDING):
        return
    if weight.kind not in ("linear", "head") or weight.role.endswith("_exps"):
        raise UnsupportedModelError(f"{PREFIX}weight_names: rotated inputs of {name} are not supported")


def _signs(keys: Any, block: int) -> dict[int, bytes]:
    """The signs of the channels, by width; empty if all are 1."""
    mode = _text(keys, "sign_mode")
    widths, values = (keys.metadata.get(PREFIX + key, []) for key in ("sign_widths", "sign_values"))
    if mode not in ("identity", "explicit"):
        raise UnsupportedModelError(f"{PREFIX}sign_mode: signs other than identity and explicit are not supported")
    if mode == "identity":
        if np.size(widths) or np.size(values):
            raise FormatError(f"{PREFIX}sign_mode is identity, but there are signs")
        return {}
    for key, array in (("sign_widths", widths), ("sign_values", values)):
        if np.ndim(array) != 1 or not len(array) or np.asarray(array).dtype.kind not in "iu":
            raise FormatError(f"{PREFIX}{key} is not an array of whole numbers")
    sizes = [int(width) for width in widths]
    if any(width < 1 or width % block for width in sizes) or len(set(sizes)) != len(sizes):
        raise FormatError(f"{PREFIX}sign_widths are not different multiples of the block of {block}")
    values = np.asarray(values)
    if sum(sizes) != len(values) or not ((values == 1) | (values == -1)).all():
        raise FormatError(f"{PREFIX}sign_values are not {sum(sizes)} times -1 or 1")
    signs, at = {}, 0
    for width in sizes:
        signs[width] = values[at : at + width].astype(np.int8).tobytes()
        at += width
    return signs
