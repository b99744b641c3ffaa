"""Reading llama2.c checkpoints: the legacy layout (0), float32 (1) and int8 (2).

Nothing in the file describes its tensors, so the header alone fixes every position, and the size it leads to must be
the size of the file. Tensors and metadata get the names they have in a GGUF file of a Llama. llama2.c keeps Meta's
order of query and key rows, rotated in adjacent pairs, as GGUF's `llama` does. Layout facts: karpathy/llama2.c
`export.py`, `run.c`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats.base import TensorInfo
from lowbit.formats.files import named
from lowbit.formats.mapped import MappedFile
from lowbit.quantize.ggml_types import tensor_nbytes

MAGIC = 0x616B3432
HEADER_BYTES = 256
"""Header of versions 1 and 2, padded with zeros; the legacy one is 28 bytes."""

# Upper bounds of the header's numbers, far above every model that was exported: a file without a magic number is
# taken for a legacy checkpoint only if all seven are below them.
MAX_DIM = 1 << 16
MAX_HIDDEN_DIM = 1 << 20
MAX_LAYERS = 1024
MAX_VOCABULARY = 1 << 20
MAX_SEQUENCE = 1 << 24

NORM_EPS = 1e-5
ROPE_THETA = 10000.0
# Both are constants of run.c.


@dataclass(frozen=True)
class _Header:
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int

    @property
    def kv_dim(self) -> int:
        return self.dim // self.n_heads * self.n_kv_heads

    def complaint(self) -> str | None:
        """Return what is impossible about these numbers, or None."""
        for name, limit in (
            ("dim", MAX_DIM),
            ("hidden_dim", MAX_HIDDEN_DIM),
            ("n_layers", MAX_LAYERS),
            ("n_heads", MAX_DIM),
            ("n_kv_heads", MAX_DIM),
            ("vocab_size", MAX_VOCABULARY),
            ("seq_len", MAX_SEQUENCE),
        ):
            if not 1 <= getattr(self, name) <= limit:
                return f"{name} is {getattr(self, name)}, expected 1 to {limit}"
        if self.dim % (2 * self.n_heads):
            return f"dim {self.dim} is not an even head size times {self.n_heads} heads"
        if self.n_heads % self.n_kv_heads:
            return f"{self.n_heads} heads do not share {self.n_kv_heads} key and value heads evenly"
        return None


def _legacy_header(head: bytes) -> tuple[_Header, bool]:
    """Return the numbers of a legacy header, and whether the output layer is shared with the embedding."""
    header = _Header(*struct.unpack_from("<7i", head))
    # The sign of the vocabulary size says whether there is an output layer.
    return replace(header, vocab_size=abs(header.vocab_size)), header.vocab_size > 0


def sniff(head: bytes) -> bool:
    """Say whether the first bytes of a file may be those of a llama2.c checkpoint."""
    if len(head) < 28:
        return False
    return struct.unpack_from("<I", head)[0] == MAGIC or _legacy_header(head)[0].complaint() is None


class Llama2cFile(MappedFile):
    """An open llama2.c checkpoint (`lowbit.formats.base.ModelFile`).

    Raises
    ------
    FormatError
        If the header is impossible, or the file has another size than the header leads to.
    UnsupportedModelError
        If the version is unknown.
    """

    format = "llama2c"
    architecture = "llama"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        with named(self.path):
            self._parse(self._map[:HEADER_BYTES], len(self._map))

    def _parse(self, head: bytes, size: int) -> None:
        if len(head) < 28:
            raise FormatError(f"truncated: {len(head)} bytes hold no header")
        version, group_size = 0, None
        if struct.unpack_from("<I", head)[0] != MAGIC:
            header, shared = _legacy_header(head)
        else:
            if len(head) < HEADER_BYTES:
                raise FormatError(f"truncated: a header has {HEADER_BYTES} bytes, the file {len(head)}")
            version = struct.unpack_from("<i", head, 4)[0]
            if version not in (1, 2):
                raise UnsupportedModelError(f"is version {version} of llama2.c's format; lowbit reads 0, 1 and 2")
            header = _Header(*struct.unpack_from("<7i", head, 8))
            if head[36] > 1:
                raise FormatError(f"the flag for a shared output layer is {head[36]}, expected 0 or 1")
            shared = head[36] == 1
            # Behind the one-byte flag, unaligned.
            group_size = struct.unpack_from("<i", head, 37)[0] if version == 2 else None
        complaint = header.complaint()
        if complaint:
            raise FormatError(f"impossible header: {complaint}")

        metadata: dict[str, Any] = {
            "general.architecture": self.architecture,
            "llama.embedding_length": header.dim,
            "llama.feed_forward_length": header.hidden_dim,
            "llama.block_count": header.n_layers,
            "llama.attention.head_count": header.n_heads,
            "llama.attention.head_count_kv": header.n_kv_heads,
            "llama.attention.layer_norm_rms_epsilon": NORM_EPS,
            "llama.vocab_size": header.vocab_size,
            "llama.context_length": header.seq_len,
            "llama.rope.dimension_count": header.dim // header.n_heads,
            "llama.rope.freq_base": ROPE_THETA,
            "llama2c.version": version,
        }
        if group_size is not None:
            metadata["llama2c.group_size"] = group_size
        self.metadata: Mapping[str, Any] = metadata

        tensors: dict[str, TensorInfo] = {}
        position = HEADER_BYTES if version else 28
        for name, shape in _layout(header, shared, version):
            if name == _ROPE_TABLES:
                position += tensor_nbytes("F32", shape)
                continue
            kind = "Q8_L2C" if version == 2 and len(shape) == 2 else "F32"
            nbytes = tensor_nbytes(kind, shape, group_size if kind == "Q8_L2C" else None)
            tensors[name] = TensorInfo(name, kind, shape, position, nbytes)
            position += nbytes
        if position != size:
            raise FormatError(f"is {size} bytes long, its header leads to {position}")
        self.tensors: Mapping[str, TensorInfo] = tensors


_ROPE_TABLES = "cosines and sines that run.c once read"
_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_FEED_FORWARD = ("ffn_gate", "ffn_down", "ffn_up")


def _layout(header: _Header, shared: bool, version: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors, in the order in which they lie in the file."""
    dim, kv_dim, hidden_dim, embedding = header.dim, header.kv_dim, header.hidden_dim, (header.vocab_size, header.dim)
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (dim,),
        "attn_q": (dim, dim),
        "attn_k": (kv_dim, dim),
        "attn_v": (kv_dim, dim),
        "attn_output": (dim, dim),
        "ffn_norm": (dim,),
        "ffn_gate": (hidden_dim, dim),
        "ffn_down": (dim, hidden_dim),
        "ffn_up": (hidden_dim, dim),
    }

    def of_layers(*kinds: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        return ((f"blk.{layer}.{kind}.weight", shapes[kind]) for kind in kinds for layer in range(header.n_layers))

    if version == 0:
        yield "token_embd.weight", embedding
        yield from of_layers("attn_norm", *_ATTENTION, "ffn_norm", *_FEED_FORWARD)
        yield "output_norm.weight", (dim,)
        yield _ROPE_TABLES, (2, header.seq_len, dim // header.n_heads // 2)
    else:
        yield from of_layers("attn_norm", "ffn_norm")
        yield "output_norm.weight", (dim,)
        yield "token_embd.weight", embedding
        yield from of_layers(*_ATTENTION, *_FEED_FORWARD)
    if not shared:
        yield "output.weight", embedding
