"""Breaking valid files in the terms of their format: lengths, counts, offsets, types, and only then bytes.

A file is a tree of fields. `mutate` copies the tree, changes a few fields and writes it: a length that is not touched
still fits what it measures, so that a change deep inside is not hidden by an error before it. Where the choices come
from is the caller's business: hypothesis in the tests, coverage-guided bytes under atheris.
"""

from __future__ import annotations

import copy
import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Below", "Count", "Group", "Number", "Raw", "Sized", "Varint", "mutate", "mutate_json"]

Below = Callable[[int], int]
"""A source of choices: `below(n)` is a whole number from 0 to n - 1."""

EDGES = (0, 1, 2, 3, 4, 7, 8, 31, 32, 63, 64, 127, 128, 255, 256, 1023, 1024, 2**15, 2**16 - 1, 2**16, 2**20, 2**20 + 1,
         2**24, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61, 2**62 + 8, 2**63 - 1, 2**63, 2**64 - 32,
         2**64 - 1)  # fmt: skip
"""Numbers at which programs have gone wrong; small formats keep the low bits."""
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (b"", b"\0", b"\xff", b"\xe2\x96", b"\xed\xa0\x80", b"a", b" ", b"\n", b"<0x-1>", b"<0x41>", b"</s>", b"../x",
         b"%s%n", "\u202e".encode(), "▁".encode(), b"x" * 63, b"x" * 64, b"x" * 5000)  # fmt: skip


@dataclass
class Raw:
    """Bytes that mean nothing more here, or many parts of a group that are not worth a field each."""

    data: bytes
    items: int = 1

    def encode(self) -> bytes:
        return self.data


@dataclass
class Number:
    """A number in one of struct's formats."""

    format: str
    value: float

    def encode(self) -> bytes:
        if self.format[-1] in "efd":
            try:
                return struct.pack(self.format, self.value)
            except OverflowError:
                return struct.pack(self.format, float("inf"))
        size = struct.calcsize(self.format)
        return (int(self.value) % (1 << 8 * size)).to_bytes(size, "little")


@dataclass
class Varint:
    """A number as protobuf writes it."""

    value: float

    def encode(self) -> bytes:
        left, out = int(self.value) % (1 << 64), bytearray()
        while left >= 0x80:
            out.append(left & 0x7F | 0x80)
            left >>= 7
        return bytes([*out, left])


@dataclass
class Group:
    """Fields one behind the other."""

    parts: list[Any]

    def encode(self) -> bytes:
        return b"".join(part.encode() for part in self.parts)


@dataclass
class Sized(Group):
    """Fields behind their length in bytes, or in parts; a wrong length may take the place of the right one."""

    format: str = "<Q"
    """Of struct, or ``varint``."""
    in_bytes: bool = True
    wrong: float | None = None

    def encode(self) -> bytes:
        body = super().encode()
        size = (len(body) if self.in_bytes else _items(self)) if self.wrong is None else self.wrong
        return (Varint(size) if self.format == "varint" else Number(self.format, size)).encode() + body


@dataclass
class Count:
    """How many parts another group has."""

    format: str
    of: Group
    wrong: float | None = field(default=None)

    def encode(self) -> bytes:
        return Number(self.format, _items(self.of) if self.wrong is None else self.wrong).encode()


def _items(group: Group) -> int:
    return sum(getattr(part, "items", 1) for part in group.parts)


def mutate(tree: Group, below: Below) -> bytes:
    """Return the file that a valid tree stands for, changed in a few ways."""
    tree = pickle.loads(pickle.dumps(tree))  # a copy, three times as fast as copy.deepcopy
    for _ in range(1 + below(2) * below(4)):
        nodes = _nodes(tree)
        node = nodes[below(len(nodes))]
        if isinstance(node, (Number, Varint)):
            node.value = _number(node.value, below)
        elif isinstance(node, Raw):
            node.data = _bytes(node.data, below)
        elif isinstance(node, Count) or (isinstance(node, Sized) and below(2)):
            node.wrong = _number(_items(node.of if isinstance(node, Count) else node), below)
        elif node.parts:
            _rearrange(node.parts, below)
    data = tree.encode()
    kind = below(8)
    if kind == 0:
        return data[: below(len(data) + 1)]
    if kind == 1:
        return data + bytes(below(70))
    return data


def _nodes(tree: Any) -> list[Any]:
    found = [tree]
    for part in getattr(tree, "parts", ()):
        found += _nodes(part)
    return found


def _rearrange(parts: list[Any], below: Below) -> None:
    kind, i, j = below(4), below(len(parts)), below(len(parts))
    if kind == 0:
        del parts[i]
    elif kind == 1:
        parts.insert(j, copy.deepcopy(parts[i]))
    elif kind == 2:
        parts[i], parts[j] = parts[j], parts[i]
    else:
        parts[i:i] = [copy.deepcopy(parts[i]) for _ in range(below(40))]


def _number(value: float, below: Below) -> float:
    if isinstance(value, float):
        return FLOATS[below(len(FLOATS))]
    kind = below(4)
    if kind == 0:
        return EDGES[below(len(EDGES))]
    if kind == 1:
        return -EDGES[below(len(EDGES))]
    if kind == 2:
        return value + below(9) - 4
    return value * 2 ** below(8) if below(2) else value // 2 ** below(8)


def _bytes(data: bytes, below: Below) -> bytes:
    kind, at = below(4), below(len(data) + 1)
    if kind == 0:
        return TEXTS[below(len(TEXTS))]
    if kind == 1:
        return data[:at] + TEXTS[below(len(TEXTS))] + data[at:]
    if kind == 2:
        return data[:at]
    return data[:at] + bytes([below(256)]) + data[at + 1 :]


VALUES: tuple[Any, ...] = (None, True, False, 0, 1, -1, 2, 31, 128, 2**20, 2**31, 2**53, 2**63, 2**64, 10**30, 0.5,
                           -0.5, 1e308, "", "a", "../a", "a\nb", "\ud800", "\u202e", "x" * 3000, [], {}, [[]], [None],
                           [0, 0], {"": None}, {"type": "Sequence"})  # fmt: skip
_TWIN = "\0twin"


def mutate_json(value: Any, below: Below) -> bytes:
    """Return the JSON text of a value, changed in a few ways."""
    root = [copy.deepcopy(value)]
    for _ in range(1 + below(2) * below(4)):
        places = _places(root)
        inside, key = places[below(len(places))]
        kind = below(8)
        if kind == 0 and inside is not root:
            del inside[key]
        elif kind == 1:
            others = _places(root)
            where, which = others[below(len(others))]
            inside[key] = copy.deepcopy(where[which])
        elif kind == 2 and isinstance(inside, list):
            inside.insert(key, copy.deepcopy(inside[key]))
        elif kind == 3 and isinstance(inside, dict):
            inside[_other_text(key, below)] = inside.pop(key)
        elif kind == 4 and isinstance(inside, dict):
            inside[key + _TWIN] = copy.deepcopy(inside[key])
        elif kind == 5 and isinstance(inside[key], str):
            inside[key] = _other_text(inside[key], below)
        elif kind == 6 and isinstance(inside[key], (int, float)):
            inside[key] = _number(inside[key], below)
        else:
            inside[key] = copy.deepcopy(VALUES[below(len(VALUES))])
    text = json.dumps(root[0]).replace(json.dumps(_TWIN)[1:-1], "").encode()
    kind = below(12)
    if kind == 0:
        return text[: below(len(text) + 1)]
    if kind == 1:
        return _bytes(text, below)
    if kind == 2:
        return text.replace(b":", b":" + b"[" * 10 ** below(6), 1)
    return text


def _places(inside: Any) -> list[tuple[Any, Any]]:
    keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
    found = [(inside, key) for key in keys]
    for key in keys:
        if isinstance(inside[key], (dict, list)):
            found += _places(inside[key])
    return found


def _other_text(text: str, below: Below) -> str:
    return _bytes(text.encode("utf-8", "surrogatepass"), below).decode("utf-8", "replace")
