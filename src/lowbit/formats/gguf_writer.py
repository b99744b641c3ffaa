"""Writing GGUF version 3 as a stream: the header first, then one tensor at a time, under a temporary name.

The file appears under its own name only when it is complete, so an interrupted conversion leaves no half model behind.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lowbit.errors import FormatError
from lowbit.formats import gguf_spec as spec
from lowbit.quantize import quantize
from lowbit.quantize.ggml_types import refuse_unreadable, tensor_nbytes, type_of
from lowbit.replacing import Replacing

_INTEGERS = {spec.NAMES[number]: np.iinfo(dtype) for number, dtype in spec.DTYPES.items() if dtype.kind in "iu"}
_BY_DTYPE = {dtype: spec.NAMES[number] for number, dtype in spec.DTYPES.items()}


class GGUFWriter:
    """Write one GGUF file.

    Use it as a context manager: leaving the block finishes the file, an exception removes what was written.

    Parameters
    ----------
    path : str or os.PathLike
        Target; an existing file is replaced at the end, in one step.
    architecture : str
        Value of ``general.architecture``.
    alignment : int
        Bytes; a power of two. Tensors start at its multiples.
    """

    def __init__(
        self, path: str | os.PathLike[str], architecture: str, alignment: int = spec.DEFAULT_ALIGNMENT
    ) -> None:
        if not 0 < alignment <= spec.MAX_ALIGNMENT or alignment & (alignment - 1):
            raise ValueError(f"alignment must be a power of two up to {spec.MAX_ALIGNMENT}, not {alignment}")
        self.path = Path(path)
        self.alignment = alignment
        self._output: Replacing | None = None
        self._metadata: dict[str, bytes] = {}
        self._tensors: dict[str, tuple[int, tuple[int, ...], int]] = {}
        """Name -> type number, shape, stored bytes, in file order."""
        self._pending: list[str] = []
        """Names still to be written, in order, once the header is."""
        self._held: dict[str, np.ndarray] = {}
        """Bytes given to `add_tensor`, held until `close`."""
        self.add_metadata("general.architecture", architecture)
        if alignment != spec.DEFAULT_ALIGNMENT:
            self.add_metadata("general.alignment", alignment, "u32")

    def add_metadata(self, key: str, value: Any, type: str | None = None) -> None:  # noqa: A002
        """Add a key.

        Parameters
        ----------
        key : str
        value : bool, int, float, str, bytes, or a list or ndarray of one of them
        type : str, optional
            Stored type of the value, or of the elements of a list: ``u8`` ``i8`` ``u16`` ``i16`` ``u32`` ``i32``
            ``u64`` ``i64`` ``f32`` ``f64`` ``bool`` ``string``. If absent: an ndarray's own; else u32, i32, u64 or
            i64, the first that holds the integer (i32 or i64 in lists); f32; bool; string.

        Raises
        ------
        ValueError
            If the key is empty or there already, or the value does not fit the type.
        """
        self._refuse_after_header()
        if not key or key in self._metadata:
            raise ValueError(f"key {key!r} is empty or there already")
        if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
            value = value.item()
        if isinstance(value, np.ndarray):
            value = value.ravel() if value.dtype.kind in "biuf" else value.ravel().tolist()
        is_array = isinstance(value, (list, tuple, np.ndarray))
        name = type or _infer(key, value)
        number = spec.NUMBERS.get(name, spec.ARRAY)
        if number == spec.ARRAY:
            raise ValueError(f"key {key!r}: unknown value type {name!r}")
        elements = value if is_array else [value]
        head = struct.pack("<iiQ", spec.ARRAY, number, len(elements)) if is_array else struct.pack("<i", number)
        self._metadata[key] = _string(key) + head + _encode(key, elements, name)

    def add_tensor_info(self, name: str, type: str, shape: Sequence[int]) -> None:  # noqa: A002
        """Announce a tensor; its bytes are written after the header, in the order of announcement.

        Parameters
        ----------
        name : str
            Up to 63 bytes.
        type : str
            Name of a ggml type.
        shape : sequence of int
            Row-major: a linear layer is (out, in).

        Raises
        ------
        FormatError
            If the shape does not suit the type.
        UnsupportedModelError
            If no GGUF file holds the type.
        """
        self._refuse_after_header()
        if not 0 < len(name.encode()) <= 63 or name in self._tensors:
            raise ValueError(f"tensor name {name!r} is empty, too long or there already")
        kind = type_of(type)
        refuse_unreadable(kind)
        if kind.number < 0:
            raise FormatError(f"tensor {name!r}: GGUF has no type {type}")
        shape = tuple(int(n) for n in shape)
        try:
            nbytes = tensor_nbytes(kind, shape)
        except FormatError as error:
            raise FormatError(f"tensor {name!r} {error}") from None
        self._tensors[name] = (kind.number, shape, nbytes)

    def add_tensor(self, name: str, type: str, data: Any, shape: Sequence[int] | None = None) -> None:  # noqa: A002
        """Announce a tensor and hold its bytes until `close`, for models that fit into memory.

        Parameters
        ----------
        name, type : str
        data : ndarray of float, or bytes-like
            Without `shape`: values, encoded here with `lowbit.quantize.quantize`. With `shape`: stored bytes.
        shape : sequence of int, optional
            Shape of the tensor whose stored bytes `data` holds.
        """
        if shape is None:
            values = np.asarray(data, np.float32)
            self.add_tensor_info(name, type, values.shape)
            raw = quantize(type, values)
        else:
            self.add_tensor_info(name, type, shape)
            raw = _as_bytes(data)
        try:
            self._check_size(name, raw.nbytes)
        except FormatError:
            del self._tensors[name]
            raise
        self._held[name] = raw

    def write_header(self) -> None:
        """Create the temporary file and write everything but the tensors' bytes."""
        self._refuse_after_header()
        parts = [
            struct.pack("<4sIqq", spec.MAGIC, 3, len(self._tensors), len(self._metadata)),
            *self._metadata.values(),
        ]
        offset = 0
        for name, (number, shape, nbytes) in self._tensors.items():
            parts += [_string(name), struct.pack(f"<I{len(shape)}qiQ", len(shape), *shape[::-1], number, offset)]
            offset = spec.align_up(offset + nbytes, self.alignment)
        header = b"".join(parts)
        self._output = Replacing(self.path)
        self._pending = list(self._tensors)
        self._write_padded(np.frombuffer(header, np.uint8))

    def write_tensor(self, name: str, raw: Any) -> None:
        """Write the bytes of the next announced tensor.

        Parameters
        ----------
        name : str
        raw : bytes-like, or C-contiguous ndarray
            Exactly the stored bytes.

        Raises
        ------
        FormatError
            If the size is not the announced one.
        ValueError
            If another tensor is due, or there is no header yet.
        """
        self._due(name)
        data = _as_bytes(raw)
        self._check_size(name, data.nbytes)
        self._write_padded(data)
        del self._pending[0]

    def write_tensor_parts(self, name: str, parts: Iterable[np.ndarray]) -> None:
        """Write the bytes of the next announced tensor piece by piece, for tensors too large to hold.

        Parameters
        ----------
        name : str
        parts : iterable of C-contiguous ndarray
            Together exactly the stored bytes.

        Raises
        ------
        FormatError
            If the size is not the announced one.
        ValueError
            If another tensor is due, or there is no header yet.
        """
        file = self._due(name)
        nbytes = 0
        for part in parts:
            data = _as_bytes(part)
            nbytes += data.nbytes
            file.write(data.data)
        self._check_size(name, nbytes)
        file.write(bytes(spec.align_up(nbytes, self.alignment) - nbytes))
        del self._pending[0]

    def close(self) -> None:
        """Write what `add_tensor` holds, and give the file its name.

        Raises
        ------
        FormatError
            If bytes of an announced tensor are missing; nothing is left behind then.
        """
        try:
            if self._output is None:
                self.write_header()
            while self._pending and self._pending[0] in self._held:
                self.write_tensor(self._pending[0], self._held.pop(self._pending[0]))
            if self._pending:
                raise FormatError(f"{self.path}: tensor {self._pending[0]!r} was announced but not written")
            assert self._output is not None
            self._output.commit()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Remove what was written."""
        if self._output is not None:
            self._output.abort()

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _refuse_after_header(self) -> None:
        if self._output is not None:
            raise ValueError("the header is written already")

    def _due(self, name: str) -> BinaryIO:
        if self._output is None:
            raise ValueError("write_header comes before write_tensor")
        if not self._pending or self._pending[0] != name:
            raise ValueError(f"tensor {name!r} is not due; next is {self._pending[0] if self._pending else None!r}")
        return self._output.file

    def _check_size(self, name: str, nbytes: int) -> None:
        expected = self._tensors[name][2]
        if nbytes != expected:
            raise FormatError(f"{self.path}: tensor {name!r} has {nbytes} bytes, announced were {expected}")

    def _write_padded(self, data: np.ndarray) -> None:
        assert self._output is not None
        self._output.file.write(data.data)
        self._output.file.write(bytes(spec.align_up(data.nbytes, self.alignment) - data.nbytes))


def _as_bytes(raw: Any) -> np.ndarray:
    if isinstance(raw, np.ndarray):
        return np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
    return np.frombuffer(raw, np.uint8)


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else bytes(text)
    return struct.pack("<Q", len(raw)) + raw


def _infer(key: str, value: Any) -> str:
    if isinstance(value, np.ndarray):
        if value.dtype.newbyteorder("<") not in _BY_DTYPE:
            raise ValueError(f"key {key!r}: GGUF has no values of type {value.dtype}")
        return _BY_DTYPE[value.dtype.newbyteorder("<")]
    elements = value if isinstance(value, (list, tuple)) else [value]
    if not elements:
        raise ValueError(f"key {key!r}: the type of an empty list must be given")
    if all(isinstance(e, (str, bytes)) for e in elements):
        return "string"
    if all(isinstance(e, (bool, np.bool_)) for e in elements):
        return "bool"
    if all(isinstance(e, (int, np.integer)) and not isinstance(e, bool) for e in elements):
        for name in ("u32", "i32", "u64", "i64") if elements is not value else ("i32", "i64", "u64"):
            if all(_INTEGERS[name].min <= e <= _INTEGERS[name].max for e in elements):
                return name
        raise ValueError(f"key {key!r}: integer out of range")
    if all(isinstance(e, (int, float, np.integer, np.floating)) and not isinstance(e, bool) for e in elements):
        return "f32"
    raise ValueError(f"key {key!r}: cannot store {value!r:.60}")


def _encode(key: str, elements: Any, name: str) -> bytes:
    if name == "string":
        if not all(isinstance(e, (str, bytes)) for e in elements):
            raise ValueError(f"key {key!r}: not every value is a string")
        return b"".join(_string(e) for e in elements)
    if name in _INTEGERS:
        low, high, given = _INTEGERS[name].min, _INTEGERS[name].max, np.asarray(elements)
        if given.size and (given.dtype.kind not in "iub" or not low <= int(given.min()) <= int(given.max()) <= high):
            raise ValueError(f"key {key!r}: value does not fit {name}")
    try:
        return np.asarray(elements, spec.DTYPES[spec.NUMBERS[name]]).tobytes()
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"key {key!r}: value does not fit {name}") from None
