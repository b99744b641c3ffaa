"""A safetensors file that breaks a rule of the format is a FormatError, and costs neither time nor memory."""

from __future__ import annotations

import json
import struct
import tracemalloc

import checkpoints
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from work import LITTLE, Work

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats.safetensors import SafetensorsFile


def tensor(begin=0, end=16, shape=(4,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def raw(header, data=bytes(16), claim=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if claim is None else claim) + header + data


TWICE = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
BAD = {
    "nothing": b"\x00",
    "only a length": struct.pack("<Q", 0),
    "header of no bytes": raw(b"") + bytes(8),
    "header longer than the file": raw({"a": tensor()}, claim=10**6),
    "header longer than anything": raw({"a": tensor()}, claim=2**63),
    "header over the limit": raw(b"{" + b" " * (9 << 20) + b"}"),
    "header that is no JSON": raw(b"{" * 20),
    "header that is no UTF-8": raw(b'{"\xff":1}'),
    "header that does not begin with a brace": raw(b' {"a":1}'),
    "header that is a list": raw(b"[1,2,3,4,5]"),
    "header with trailing text": raw(json.dumps({"a": tensor()}).encode() + b"x"),
    "header nested too deeply": raw(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "header with NaN": raw(b'{"a":NaN,"b":1}'),
    "header with a number of 5000 digits": raw(b'{"a":' + b"9" * 5000 + b"}"),
    "header of brackets": raw(b'{"a":[' + b"[]," * 2_000_000 + b"[]]}"),
    "header of strings": raw(b'{"a":[' + b'"",' * 500_000 + b'""]}'),
    "no tensors": raw({"__metadata__": {}}, b""),
    "metadata that is no object": raw({"__metadata__": [1], "a": tensor()}),
    "metadata with a number": raw({"__metadata__": {"format": 1}, "a": tensor()}),
    "a name twice": raw(TWICE),
    "an empty name": raw({"": tensor()}),
    "a name with a line break": raw({"a\nb": tensor()}),
    "a long name": raw({"a" * 5000: tensor()}),
    "a description that is a list": raw({"a": [1, 2]}),
    "a description without offsets": raw({"a": {"dtype": "F32", "shape": [4]}}),
    "a description with more": raw({"a": {**tensor(), "more": 1}}),
    "a dtype that is a number": raw({"a": {**tensor(), "dtype": 7}}),
    "a shape that is a number": raw({"a": {**tensor(), "shape": 4}}),
    "a shape with text": raw({"a": {**tensor(), "shape": ["4"]}}),
    "a shape with a fraction": raw({"a": {**tensor(), "shape": [4.0]}}),
    "a shape with a truth value": raw({"a": tensor(0, 4, (True,))}, bytes(4)),
    "a dimension of 0": raw({"a": tensor(0, 0, (0, 4)), "b": tensor()}),
    "a negative dimension": raw({"a": tensor(0, 16, (-2, -2))}),
    "too many dimensions": raw({"a": tensor(0, 16, (1,) * 9)}),
    "a shape whose size overflows": raw({"a": tensor(0, 0, (2**32, 2**32, 2**32))}, b""),
    "offsets that are one number": raw({"a": {**tensor(), "data_offsets": [0]}}),
    "offsets that are negative": raw({"a": {**tensor(), "data_offsets": [-16, 0]}}),
    "offsets in the wrong order": raw({"a": {**tensor(), "data_offsets": [16, 0]}}),
    "a size that differs from the shape": raw({"a": tensor(0, 12)}),
    "a gap at the beginning": raw({"a": tensor(4, 20)}, bytes(20)),
    "a gap between tensors": raw({"a": tensor(), "b": tensor(20, 36)}, bytes(36)),
    "an overlap": raw({"a": tensor(), "b": tensor(8, 24)}, bytes(24)),
    "the same bytes twice": raw({"a": tensor(), "b": tensor()}),
    "bytes after the last tensor": raw({"a": tensor()}, bytes(17)),
    "a file cut short": raw({"a": tensor()}, bytes(15)),
    "offsets beyond 64 bits": raw({"a": tensor(2**64, 2**64 + 16)}),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_broken_rules_are_format_errors(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with Work() as work, pytest.raises(FormatError) as caught:
            SafetensorsFile(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 1000 + len(str(path))
    assert work.steps < LITTLE
    assert peak < 2 * len(content) + (32 << 20)


@pytest.mark.parametrize("dtype", ["F8_E5M2", "F4", "C64", "X" * 1000, ""])
def test_unknown_types_are_named_and_refused(tmp_path, dtype):
    path = tmp_path / "new.safetensors"
    path.write_bytes(raw({"a": tensor(dtype=dtype)}))
    with pytest.raises(UnsupportedModelError, match="of type") as caught:
        SafetensorsFile(path)
    assert len(str(caught.value)) < 500


def test_too_many_tensors_are_a_format_error(tmp_path):
    many = {f"t{i}": tensor(4 * i, 4 * i + 4, (1,)) for i in range(20000)}
    path = tmp_path / "many.safetensors"
    path.write_bytes(raw(many, bytes(80000)))
    with pytest.raises(FormatError, match="20000 tensors"):
        SafetensorsFile(path)


def test_tensors_are_read_as_they_were_written(tmp_path):
    arrays = {"b": np.arange(6, dtype="<f4").reshape(2, 3), "a": np.arange(5, dtype=np.uint8), "s": np.array(7, "<i8")}
    kinds = {"b": "F32", "a": "U8", "s": "I64"}
    path = tmp_path / "good.safetensors"
    written = {name: (kinds[name], array.shape, array.tobytes()) for name, array in arrays.items()}
    path.write_bytes(checkpoints.safetensors_bytes(written))
    with SafetensorsFile(path) as file:
        for name, array in arrays.items():
            assert file.tensors[name].shape == array.shape
            assert file.tensors[name].type == kinds[name]
            assert file.read(name).tobytes() == array.tobytes()


def test_headers_may_be_padded_with_spaces_and_in_any_order(tmp_path):
    path = tmp_path / "good.safetensors"
    header = json.dumps({"second": tensor(16, 32), "first": tensor()}).encode() + b"    "
    path.write_bytes(raw(header, bytes(range(32))))
    assert SafetensorsFile(path).read("second").tobytes() == bytes(range(16, 32))


GOOD = checkpoints.safetensors_bytes({"a": ("F32", (2, 2), bytes(16)), "b": ("U8", (3,), b"abc")})


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.integers(0, len(GOOD)))
def test_a_changed_byte_or_a_cut_loads_or_is_refused(tmp_path_factory, position, value, length):
    folder = tmp_path_factory.mktemp("changed")
    changed = bytearray(GOOD)
    changed[position] = value
    for content in (bytes(changed), GOOD[:length]):
        path = folder / "model.safetensors"
        path.write_bytes(content)
        try:
            with SafetensorsFile(path) as file:
                assert sum(len(file.read(name)) for name in file.tensors) <= len(content)
        except (FormatError, UnsupportedModelError):
            pass


def test_metadata_that_are_null_are_none(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw({"__metadata__": None, "a": tensor()}))
    with SafetensorsFile(path) as file:
        assert list(file.tensors) == ["a"]
        assert file.read("a").tobytes() == bytes(16)
