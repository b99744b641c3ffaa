"""Checkpoints: one NumPy archive, written beside the old one and renamed over it, so one good file always exists."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import FormatError, LowbitError
from ..replacing import Replacing
from .model import BitNet
from .optimizer import Optimizer


def save_checkpoint(path: Path, model: BitNet, optimizer: Optimizer, progress: dict[str, Any]) -> None:
    """Write everything that the rest of a run depends on.

    Parameters
    ----------
    path : file to write; replaced in one step
    model, optimizer : parameters, and what the optimizer keeps of each
    progress : plain values (step, options, loss history)

    Raises
    ------
    LowbitError
        If the file cannot be written, for instance because the disk is full; the old file stays.
    """
    arrays: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        for kind, tensor in {"weight": parameter.data, **optimizer.state[name]}.items():
            if kind == "weight" or progress["step"]:  # before the first step all moments are 0
                arrays[f"{kind}/{name}"] = tensor.cpu().numpy()
    arrays["progress"] = np.frombuffer(json.dumps(progress).encode(), np.uint8)
    try:
        with Replacing(path) as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise LowbitError(f"{path}: cannot write the checkpoint: {error.strerror or error}") from None


def read_progress(path: Path) -> dict[str, Any]:
    """Return the plain values of a checkpoint."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            progress = json.loads(archive["progress"].tobytes())
            if isinstance(progress, dict):
                return progress
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    raise FormatError(f"{path}: not a checkpoint of a training run")


def load_checkpoint(path: Path, model: BitNet, optimizer: Optimizer) -> dict[str, Any]:
    """Restore model and optimizer, and return the plain values.

    Raises
    ------
    FormatError
        If the file is no checkpoint, or one of a model of another shape.
    """
    progress = read_progress(path)
    with np.load(path, allow_pickle=False) as archive:
        try:
            for name, parameter in model.named_parameters():
                for kind, tensor in {"weight": parameter.data, **optimizer.state[name]}.items():
                    stored = kind == "weight" or f"{kind}/{name}" in archive
                    value = torch.from_numpy(archive[f"{kind}/{name}"]) if stored else torch.zeros_like(tensor)
                    if value.shape != tensor.shape:
                        raise FormatError(f"{path}: {name} has shape {tuple(value.shape)}, not {tuple(tensor.shape)}")
                    tensor.copy_(value)
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{path}: the checkpoint does not fit the model: {error}") from None
    return progress
