"""Checkpoints: one NumPy archive, written beside the old one and renamed over it, so one good file always exists."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import FormatError, LowbitError
from .model import BitNet

__all__ = ["load_checkpoint", "save_checkpoint"]

MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(path: Path, model: BitNet, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Write everything that the rest of a run depends on.

    Parameters
    ----------
    path : file to write; replaced in one step
    model, optimizer : the optimizer is AdamW over ``model.parameters()``
    progress : plain values (step, options, loss history)

    Raises
    ------
    LowbitError
        If the file cannot be written, for instance because the disk is full; the old file stays.
    """
    arrays: dict[str, Any] = {"rng": torch.get_rng_state().numpy()}
    if torch.cuda.is_available():
        arrays["rng_cuda"] = torch.cuda.get_rng_state().numpy()
    for name, parameter in model.named_parameters():
        arrays[f"weight/{name}"] = parameter.detach().cpu().numpy()
        for moment in MOMENTS:
            if moment in optimizer.state[parameter]:
                arrays[f"{moment}/{name}"] = optimizer.state[parameter][moment].cpu().numpy()
        if "step" in optimizer.state[parameter]:  # fewer than the run's where a parameter joined later
            arrays[f"updates/{name}"] = optimizer.state[parameter]["step"].cpu().numpy()
    arrays["progress"] = np.frombuffer(json.dumps(progress).encode(), np.uint8)
    temporary = path.with_name(path.name + ".new")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
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


def load_checkpoint(path: Path, model: BitNet, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore model, optimizer and random state, and return the plain values.

    Raises
    ------
    FormatError
        If the file is no checkpoint, or one of a model of another shape.
    """
    progress = read_progress(path)
    with np.load(path, allow_pickle=False) as archive:
        try:
            for name, parameter in model.named_parameters():
                value = torch.from_numpy(archive[f"weight/{name}"])
                if value.shape != parameter.shape:
                    raise FormatError(f"{path}: {name} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
                parameter.data.copy_(value)
                if f"{MOMENTS[0]}/{name}" in archive:
                    updates = archive[f"updates/{name}"] if f"updates/{name}" in archive else progress["step"]
                    state: dict[str, Any] = {"step": torch.tensor(float(updates))}
                    for moment in MOMENTS:
                        state[moment] = torch.from_numpy(archive[f"{moment}/{name}"]).to(parameter.device)
                    optimizer.state[parameter] = state
            torch.set_rng_state(torch.from_numpy(archive["rng"]))
            if torch.cuda.is_available() and "rng_cuda" in archive:
                torch.cuda.set_rng_state(torch.from_numpy(archive["rng_cuda"]))
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{path}: the checkpoint does not fit the model: {error}") from None
    return progress
