"""A GGUF model in several files, as llama.cpp's ``gguf-split`` writes them: the first has the metadata.

Each file names its number and how many there are (``split.no``, ``split.count``), and the number of tensors in all
(``split.tensors.count``). Where the others lie follows from the name of the first, never from anything in a file.
Facts: llama.cpp `tools/gguf-split/gguf-split.cpp`, `src/llama-model-loader.cpp`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import FormatError, LowbitError
from lowbit.formats.base import Closing, TensorInfo
from lowbit.formats.files import named
from lowbit.formats.gguf import MAX_TENSORS, GGUFFile

MAX_PARTS = 1024
_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")


class SplitGGUF(Closing):
    """An open model in several files (`lowbit.formats.base.ModelFile`).

    Parameters
    ----------
    first : GGUFFile
        The first of them; closed with this one, and at once if the others do not belong to it.

    Raises
    ------
    FormatError
        If it is not the first, a file is missing or damaged, or they do not fit together.
    UnsupportedModelError
        If a file holds a tensor type that lowbit cannot read.
    """

    format = "gguf"

    def __init__(self, first: GGUFFile) -> None:
        self.path = first.path
        self.architecture = first.architecture
        self.metadata = first.metadata
        self.metadata_types = first.metadata_types
        self._files = [first]
        self._of: dict[str, GGUFFile] = {}
        self._tensors: dict[str, TensorInfo] = {}
        self.tensors: Mapping[str, TensorInfo] = self._tensors
        try:
            with named(self.path, str(Path(self.path).parent)):
                self._open_others(first.parts)
        except LowbitError:
            self.close()
            raise

    def _open_others(self, count: int) -> None:
        path = Path(self.path)
        name = _NAME.fullmatch(path.name)
        if count > MAX_PARTS:
            raise FormatError(f"claims to be one of {count} parts, limit {MAX_PARTS}")
        if name is None:
            raise FormatError(f"is one of {count} parts of a model, but its name is not NAME-00001-of-{count:05}.gguf")
        if int(name[3]) != count:
            raise FormatError(f"is one of {count} parts of a model, and its name says {int(name[3])}")
        number = _integer(self._files[0], "split.no", 0)
        first = f"{name[1]}-00001-of-{count:05}.gguf"
        if number != 0 or int(name[2]) != 1:
            raise FormatError(f"is part {number + 1} of {count} of a model; open the first, {first}")
        total = _integer(self._files[0], "split.tensors.count", None)
        if not 0 <= total <= MAX_TENSORS:
            raise FormatError(f"claims {total} tensors in all parts, limit {MAX_TENSORS}")
        self._take(self._files[0], total)

        def folder(path: Path) -> str:
            return os.path.dirname(os.path.realpath(path))

        for i in range(1, count):
            part = path.with_name(f"{name[1]}-{i + 1:05}-of-{count:05}.gguf")
            if not part.exists():
                raise FormatError(f"part {i + 1} of {count} is missing: {part.name}")
            # Where links lead, they must lead where the first one's does: a download cache keeps files elsewhere.
            if folder(part) not in (folder(path), os.path.realpath(path.parent)):
                raise FormatError(f"{part.name} is a link that leads out of the folder")
            self._files.append(GGUFFile(part, part_of=self.architecture))
            self._check(self._files[-1], i, count, total)
            self._take(self._files[-1], total)
        if len(self.tensors) != total:
            raise FormatError(f"its {count} parts have {len(self.tensors)} tensors, expected {total}")

    def _check(self, file: GGUFFile, i: int, count: int, total: int) -> None:
        said = (_integer(file, "split.no", None), file.parts, _integer(file, "split.tensors.count", None))
        if said != (i, count, total) or file.architecture != self.architecture:
            raise FormatError(
                f"{Path(file.path).name} is part {said[0] + 1} of {said[1]} with {said[2]} tensors of the architecture "
                f"{file.architecture!r}, expected part {i + 1} of {count} with {total} of {self.architecture!r}"
            )

    def _take(self, file: GGUFFile, total: int) -> None:
        for name, info in file.tensors.items():
            if name in self.tensors:
                raise FormatError(f"two parts have a tensor {name!r}")
            self._tensors[name] = info
            self._of[name] = file
        if len(self.tensors) > total:
            raise FormatError(f"its parts have more than the {total} tensors that it expects")

    def read(self, name: str) -> np.ndarray:
        """Return the stored bytes of a tensor as a read-only uint8 view of the mapped file."""
        return self._file_of(name).read(name)

    def locate(self, name: str) -> tuple[str, int]:
        """Return the path of the file that holds a tensor, and where in it the tensor begins."""
        return self._file_of(name).locate(name)

    def release(self, name: str) -> None:
        """Tell the system that a tensor's bytes are not needed in memory for now; they can still be read."""
        self._file_of(name).release(name)

    def release_all(self) -> None:
        """The same for all files."""
        for file in self._files:
            file.release_all()

    def close(self) -> None:
        """Let go of all maps."""
        for file in self._files:
            file.close()

    def _file_of(self, name: str) -> GGUFFile:
        if name not in self._of:
            raise FormatError(f"{self.path}: has no tensor {name!r}")
        return self._of[name]


def _integer(file: GGUFFile, key: str, default: int | None) -> int:
    value: Any = file.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise FormatError(f"{Path(file.path).name} has no {key}, or one that is no whole number")
    return value
