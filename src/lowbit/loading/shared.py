"""Packed weights that several models of one file share: they never change, so each file is packed once."""

from __future__ import annotations

import os
import time
from collections.abc import Hashable
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from ..formats.base import ModelFile
from ..plan import ModelPlan

if TYPE_CHECKING:
    from .packing import Weights

LOADED: WeakValueDictionary[Hashable, Weights] = WeakValueDictionary()
"""By what `packed_from` says; a decoder holds what it computes with."""
SETTLED_NS = 1_000_000_000
"""Age from which on a file that is written again has another time of change."""


def packed_from(file: ModelFile, plan: ModelPlan, *settings: object) -> Hashable:
    """Return what packed weights depend on: the very files, the plan and the settings; None if a file is too new."""
    files = []
    for path in files_of(file):
        about = os.stat(path)
        if abs(time.time_ns() - about.st_mtime_ns) < SETTLED_NS:
            return None
        files.append((about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns))
    return tuple(files), repr((plan, settings))


def files_of(file: ModelFile) -> list[str]:
    """Return the paths of the files that hold a model's weights."""
    if hasattr(file, "locate"):
        return sorted({file.locate(name)[0] for name in file.tensors})
    with os.scandir(file.path) as entries:
        return sorted(entry.path for entry in entries if os.path.isfile(entry.path))  # no link to itself
