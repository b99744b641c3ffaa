"""Builds GGUF files field by field, so that a test can make exactly one of them wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
F32_TYPE, F16_TYPE, TQ2_0_TYPE, I2_S_TYPE = 0, 1, 35, 36


def string(text: str | bytes, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def entry(key: str | bytes, value_type: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<i", value_type) + value


def text_entry(key: str, text: str | bytes) -> bytes:
    return entry(key, STRING, string(text))


def u32_entry(key: str, value: int) -> bytes:
    return entry(key, U32, struct.pack("<I", value))


def array_entry(key: str, element_type: int, elements: bytes, count: int) -> bytes:
    return entry(key, ARRAY, struct.pack("<iQ", element_type, count) + elements)


@dataclass
class Tensor:
    """A tensor description; `ne` counts the fastest dimension first, as the file does."""

    name: str | bytes = "t"
    ne: tuple[int, ...] = (4, 2)
    type: int = F32_TYPE
    offset: int | None = None
    data: bytes = bytes(32)
    n_dims: int | None = None

    def described(self, offset: int) -> bytes:
        n_dims = len(self.ne) if self.n_dims is None else self.n_dims
        dims = struct.pack(f"<{len(self.ne)}q", *self.ne)
        place = offset if self.offset is None else self.offset
        return string(self.name) + struct.pack("<I", n_dims) + dims + struct.pack("<iQ", self.type, place)


@dataclass
class File:
    """A GGUF file; every count can be overridden."""

    entries: list[bytes] = field(default_factory=lambda: [text_entry("general.architecture", "llama")])
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_keys: int | None = None
    alignment: int = 32
    padded: bool = True
    """Whether zeros follow the last tensor up to the alignment."""
    tail: bytes = b""

    def build(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.entries) if self.n_keys is None else self.n_keys
        out = self.magic + struct.pack("<Iqq", self.version, n_tensors, n_keys) + b"".join(self.entries)
        offset = 0
        for tensor in self.tensors:
            out += tensor.described(offset)
            offset += self._padding(len(tensor.data)) + len(tensor.data)
        if self.tensors:
            out += bytes(self._padding(len(out)))
        for tensor in self.tensors:
            last = tensor is self.tensors[-1]
            out += tensor.data + bytes(0 if last and not self.padded else self._padding(len(tensor.data)))
        return out + self.tail

    def _padding(self, n_bytes: int) -> int:
        return -n_bytes % self.alignment


ARCHITECTURE = text_entry("general.architecture", "llama")


def tiny() -> bytes:
    """A valid file that has a bit of everything."""
    return File(
        entries=[
            ARCHITECTURE,
            u32_entry("llama.block_count", 1),
            entry("flag", BOOL, b"\x01"),
            entry("eps", F32, struct.pack("<f", 1e-5)),
            array_entry("tokenizer.ggml.tokens", STRING, string("a") + string(b"\xff") + string(""), 3),
            array_entry("tokenizer.ggml.scores", F32, struct.pack("<3f", 0, -1, -2), 3),
        ],
        tensors=[
            Tensor("a", (4, 2), data=struct.pack("<8f", *range(8))),
            Tensor("b", (256,), TQ2_0_TYPE, data=bytes(66)),
            Tensor("c", (128, 2), I2_S_TYPE, data=bytes(96)),
            Tensor("d", (3,), F16_TYPE, data=bytes(6)),
        ],
    ).build()
