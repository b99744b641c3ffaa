"""Which inputs of the linear layers count: what `sparsity=` may be, and thresholds files.

Top-k: of the n inputs of a linear layer, those of the n - floor(share n) largest magnitudes count, for each token.
That is the form of Q-Sparse (Wang et al., 2024, arXiv 2407.10969). Thresholds: a fixed magnitude per layer from which
on inputs count, as TEAL has it (Liu et al., 2024, arXiv 2408.14690): the quantile of the magnitudes over a text.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Union

import numpy as np

from .._kernels.decoder import Decoder
from .._kernels.matrix import PackedMatrix
from .._kernels.sparse import make_channel_major
from ..errors import FormatError, UnsupportedModelError
from ..formats.base import ModelFile
from ..formats.files import reading
from ..formats.strict_json import MAX_BYTES, parse_object
from ..plan import LINEARS, Linear, ModelPlan
from ..replacing import Replacing

Setting = Union[float, Mapping[str, float], str, "os.PathLike[str]"]
"""A share for all linear layers, a share by name of the layer, or the path of a thresholds file."""
MAGNITUDES = 1 << 16
"""Places of a histogram: the upper 16 bits of a float32, without the sign."""
WORTHWHILE = 1 << 20
"""Weights of a matrix from which on zeros of a squared ReLU are worth the channel-major order."""
SKIPPED = 0.5
"""Share of inputs from which on reading only the others' weights is at least as quick, on the processors measured: see
docs/sparsity.md."""
KIND = "lowbit thresholds"


@dataclass(frozen=True)
class Sparsity:
    """What `parse` made of a setting: shares of the inputs that do not count, or a thresholds file to be read."""

    shares: Mapping[str, float]
    path: str | None = None

    def __bool__(self) -> bool:
        return self.path is not None or any(self.shares.values())


NONE = Sparsity({})


def parse(setting: Setting) -> Sparsity:
    """Check a `sparsity=` argument.

    Raises
    ------
    ValueError
        If a share is not in [0, 1), or a linear layer has another name.
    """
    if isinstance(setting, (str, os.PathLike)):
        return Sparsity({}, os.fspath(setting))
    if isinstance(setting, Mapping):
        for name in setting:
            if name not in LINEARS:
                raise ValueError(f"sparsity is set by {', '.join(LINEARS)}, not {name!r}")
        return Sparsity({name: _share(value) for name, value in setting.items()})
    return Sparsity(dict.fromkeys(LINEARS, _share(setting)))


def expected_shares(sparsity: Sparsity) -> Mapping[str, float]:
    """Return the share of the inputs that will not count, by linear layer: of thresholds, what they were made for."""
    if sparsity.path is None:
        return sparsity.shares
    target = read_content(sparsity.path).get("target")
    known = isinstance(target, (int, float)) and not isinstance(target, bool) and 0 <= target < 1
    return dict.fromkeys(LINEARS, float(target) if known else 0.0)  # type: ignore[arg-type]


def _share(value: Any) -> float:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or not 0.0 <= value < 1.0:  # NaN is not either
        raise ValueError(f"sparsity must be a number from 0 to less than 1, not {value!r}")
    return float(value)


def arrange(layers: list[dict[str, Any]], sparsity: Sparsity, plan: ModelPlan, threads: int) -> None:
    """Make the ternary matrices channel-major that will meet enough zeros; paged ones stay as the file has them.

    Those are the layers of which `sparsity` skips `SKIPPED` or more, and those that meet zeros of their own
    (`meets_zeros`). In the others zeros are multiplied like any other input.
    """
    if sparsity and plan.has_experts:
        raise UnsupportedModelError("sparsity is not supported in models with experts")
    names = {name for name, share in expected_shares(sparsity).items() if share >= SKIPPED}
    for i, layer in enumerate(layers):
        for linear in plan.linears(i):
            for matrix in _ternary(layer.get(linear.name, [])):  # what was taken apart has none
                if linear.name in names or meets_zeros(plan, i, linear):
                    make_channel_major(matrix, threads)


def meets_zeros(plan: ModelPlan, layer: int, linear: Linear) -> bool:
    """Tell whether a linear layer is a large down projection after a squared ReLU, which gives zeros."""
    after = linear.name == "ffn_down" and plan.layers[layer].feed_forward.activation == "relu2"
    return after and linear.n_in * linear.n_out >= WORTHWHILE


def _ternary(matrices: list[Any]) -> list[PackedMatrix]:
    return [matrix for matrix in matrices if isinstance(matrix, PackedMatrix) and matrix.format == "u2"]


def apply(decoder: Decoder, plan: ModelPlan, sparsity: Sparsity, file: ModelFile) -> None:
    """Tell the forward pass which inputs count; FormatError if a thresholds file is not one of this model."""
    if not sparsity:
        return
    if sparsity.path is not None:
        rules = [
            {name: (0, threshold) for name, threshold in layer.items()}
            for layer in read_thresholds(sparsity.path, file, plan.n_layers)
        ]
    else:
        shares = {name: share for name, share in sparsity.shares.items() if share}
        widths = [{linear.name: linear.n_in for linear in plan.linears(i)} for i in range(plan.n_layers)]
        rules = [
            {name: (max(n[name] - int(share * n[name]), 1), 0.0) for name, share in shares.items()} for n in widths
        ]
    decoder.graph.sparsify(rules)


# --- calibration -------------------------------------------------------------------------------------------------


def thresholds_of(counts: Mapping[str, np.ndarray], target: float) -> list[dict[str, float]]:
    """Find the magnitudes below which a share of all inputs lies, per layer and linear layer.

    Parameters
    ----------
    counts : mapping of str to ndarray of uint32, shape (n_layers, 65536)
        As `Decoder.observe` fills them.
    target : float
        Share of the inputs to skip.

    Returns
    -------
    list of dict of str to float
        To the resolution of the histogram, 1/256 of the magnitude. 0 where nothing needs to be skipped.
    """
    result: list[dict[str, float]] = [{} for _ in next(iter(counts.values()))]
    for name, layers in counts.items():
        for layer, row in zip(result, layers, strict=True):
            below = np.cumsum(row, dtype=np.int64)
            place = int(np.searchsorted(below, target * below[-1]))  # the first place that reaches the share
            edge = np.array([min(place + 1, (0xFF << 8) - 1) << 15], np.uint32).view(np.float32)  # its upper edge
            layer[name] = float(edge[0]) if target > 0 else 0.0
    return result


def identity(file: ModelFile) -> str:
    """Return a hash over a model's metadata and the names, types, shapes and first bytes of its tensors."""
    import hashlib  # with it comes OpenSSL, some megabytes that a small machine does without

    digest = hashlib.sha256()
    for key in sorted(file.metadata):
        value = file.metadata[key]
        digest.update(f"{key}={np.asarray(value).tolist() if isinstance(value, np.ndarray) else value!r}\n".encode())
    for name in sorted(file.tensors):
        info = file.tensors[name]
        digest.update(f"{name} {info.type} {info.shape}\n".encode())
        digest.update(np.ascontiguousarray(file.read(name)[:1024]).tobytes())
    return digest.hexdigest()


def write_thresholds(
    path: str | os.PathLike[str], file: ModelFile, target: float, tokens: int, layers: list[dict[str, float]]
) -> None:
    """Write a thresholds file: JSON with the model's identity, and for each layer the thresholds by linear layer."""
    content = {"kind": KIND, "model": identity(file), "target": target, "tokens": tokens, "layers": layers}
    with Replacing(path) as out:
        out.write(json.dumps(content, indent=1).encode() + b"\n")


def read_content(path: str) -> dict[str, Any]:
    """Read a thresholds file of any model; FormatError if it is none."""
    with reading(path), open(path, "rb") as source:
        content = parse_object(source.read(MAX_BYTES + 1), path)
    if content.get("kind") != KIND:
        raise FormatError(f"{path}: not a thresholds file of lowbit")
    return content


def details(sparsity: Sparsity) -> object:
    """Return all that a setting says, the content of its file as well, with an unambiguous `repr`."""
    return sorted(sparsity.shares.items()), None if sparsity.path is None else read_content(sparsity.path)


def read_thresholds(path: str, file: ModelFile, n_layers: int) -> list[dict[str, float]]:
    """Read a thresholds file of this model.

    Raises
    ------
    FormatError
        If it is missing, damaged, or belongs to another model.
    """
    content = read_content(path)
    if content.get("model") != identity(file):
        raise FormatError(f"{path}: the thresholds belong to another model than {file.path}")
    layers = content.get("layers")
    if not isinstance(layers, list) or len(layers) != n_layers:
        raise FormatError(f"{path}: thresholds for {n_layers} layers are needed")
    for layer in layers:
        if not isinstance(layer, dict) or not set(layer) <= set(LINEARS):
            raise FormatError(f"{path}: a layer does not give thresholds by {', '.join(LINEARS)}")
        for value in layer.values():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise FormatError(f"{path}: a threshold is {value!r}, not a number from 0 on")
    return layers
