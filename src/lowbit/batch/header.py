"""The first line of an output file: which model, version and settings its answers come from."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from .._kernels.kvpool import KV_TYPES
from ..errors import LowbitError, one_line
from ..formats import open_model
from ..loading.kvdisk import sample
from ..loading.shared import files_of
from ..serve.settings import Settings

if TYPE_CHECKING:
    from ..model import Model


def header_of(model: Model, settings: Settings, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return all that the answers depend on beside the lines.

    Parameters
    ----------
    model : Model
    settings : Settings
    seed : int
    options : dict
        Those of `lowbit.load`. Threads and memory do not count, for no answer depends on them.

    Returns
    -------
    dict
        ``version``, ``model`` with name and digest, and ``settings``, all of it JSON.
    """
    info = model.info()
    kept = ("sparsity", "sparse_prefill", "head")
    return {
        "version": settings.version,
        "model": {
            "name": info["name"] or os.path.basename(os.path.normpath(info["path"])),
            "digest": _digest(str(info["path"]), options.get("tokenizer")),
        },
        "settings": {
            "seed": seed,
            "sampling": {name: list(v) if isinstance(v, tuple) else v for name, v in settings.sampling.items()},
            "context": model.context,
            "kv_type": next(name for name, kind in KV_TYPES.items() if kind == model._decoder.pool.kv_type),
            "pooling": settings.pooling,
            "reasoning": settings.reasoning,
            "date": settings.today,
            **{name: _content(options.get(name)) for name in kept},
            "chat_template": _content(settings.chat_template),
            "names": list(settings.aliases),
        },
    }


def _digest(path: str, tokenizer: str | None) -> str:
    """Return what stands for the weights and the tokenizer: a copy elsewhere is the same model."""
    digest = blake2b(digest_size=16)
    with open_model(path) as file:
        paths = files_of(file)
    if tokenizer is not None:
        paths += [tokenizer] if os.path.isfile(tokenizer) else [e.path for e in os.scandir(tokenizer) if e.is_file()]
    for one in paths:
        sample(one, digest)
    return digest.hexdigest()


def _content(value: Any) -> Any:
    """Return a setting; of one that names a file what is in it."""
    if isinstance(value, str) and os.path.isfile(value):
        with open(value, "rb") as file:
            return blake2b(file.read(), digest_size=16).hexdigest()
    return value


def common_header(found: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return the header that all nodes have.

    Parameters
    ----------
    found : sequence of (str, dict)
        Names of nodes, with the header of each, or an ``error``.

    Raises
    ------
    LowbitError
        If one, which is named, has an error, or another header than most.
    """
    for name, header in found:
        if "error" in header:
            raise LowbitError(f"node {name}: {header['error']}")
    usual = Counter(repr(header) for _, header in found).most_common(1)[0][0]
    common = next(header for _, header in found if repr(header) == usual)
    for name, header in found:
        differing = [key for key in common if header.get(key) != common[key]]
        if differing:
            raise LowbitError(f"node {name} has another {' and '.join(differing)} than the others: "
                              f"{one_line(header[differing[0]])}")  # fmt: skip
    return common


def check_header(path: str, found: bytes, wanted: dict[str, Any]) -> None:
    """Raise a LowbitError that says what differs, if a file's first line is not `wanted`."""
    try:
        header = json.loads(found)["lowbit_batch"]
        differing = list(_differing(json.loads(json.dumps(wanted)), header))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise LowbitError(f"{path} is there already, and is no output of lowbit batch") from None
    if differing:
        raise LowbitError(f"{path} has answers of another run: {'; '.join(differing)}. Name another output, or give "
                          "the settings of that run")  # fmt: skip


def _differing(wanted: dict[str, Any], found: dict[str, Any], at: str = "") -> list[str]:
    parts: list[str] = []
    for name in dict.fromkeys([*wanted, *found]):
        ours, theirs = wanted.get(name), found.get(name)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            parts += _differing(ours, theirs, f"{at}{name} ")
        elif ours != theirs:
            parts.append(
                f"{at}{name} was {one_line(json.dumps(theirs))[:60]}, and is {one_line(json.dumps(ours))[:60]}"
            )
    return parts
