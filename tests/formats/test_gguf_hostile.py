"""Every way of breaking a GGUF file that loaders have fallen for ends in one clear error."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc

import gguf_craft as craft
import numpy as np
import pytest
from gguf_craft import ARCHITECTURE, ARRAY, STRING, U8, U32, U64, File, Tensor, array_entry, entry, string, text_entry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from work import LITTLE, Work

from lowbit.errors import FormatError, UnsupportedModelError
from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize
from lowbit.formats.gguf import GGUFFile
from lowbit.quantize.ggml_types import tensor_nbytes

HUGE = 2**63 - 1


def alignment(value: int) -> bytes:
    return craft.u32_entry("general.alignment", value)


HOSTILE = {
    "no tensor count": b"GGUF\x03\x00\x00\x00",
    "negative tensor count": File(n_tensors=-1).build(),
    "huge tensor count": File(n_tensors=HUGE).build(),
    "tensor count that wraps in 64 bits": File(n_tensors=2**58).build(),
    "more tensors than bytes": File(n_tensors=16000).build(),
    "negative key count": File(n_keys=-1).build(),
    "huge key count": File(n_keys=HUGE).build(),
    "more keys than bytes": File(n_keys=8000).build(),
    "one key too many": File(n_keys=2, tail=bytes(20)).build(),
    "no architecture": File(entries=[]).build(),
    "architecture is a number": File(entries=[craft.u32_entry("general.architecture", 1)]).build(),
    "architecture is an array": File(entries=[array_entry("general.architecture", STRING, string("llama"), 1)]).build(),
    "architecture is not text": File(entries=[text_entry("general.architecture", b"\xff\xfe")]).build(),
    "architecture is a control character": File(entries=[text_entry("general.architecture", "\x1b[2J")]).build(),
    "empty key": File(entries=[ARCHITECTURE, text_entry("", "x")]).build(),
    "key twice": File(entries=[ARCHITECTURE, text_entry("k", "x"), text_entry("k", "y")]).build(),
    "key is not UTF-8": File(entries=[ARCHITECTURE, entry(b"\xc3\x28", U8, b"\x01")]).build(),
    "key longer than the file": File(entries=[ARCHITECTURE, string("k", 60000) + bytes(20)]).build(),
    "key of 2**64 - 1 bytes": File(entries=[ARCHITECTURE, string("k", 2**64 - 1) + bytes(20)]).build(),
    "key over the limit": File(entries=[ARCHITECTURE, entry("k" * 65536, U8, b"\x01")]).build(),
    "string longer than the file": File(entries=[ARCHITECTURE, entry("k", STRING, string("x", 10**6))]).build(),
    "string of 2**64 - 1 bytes": File(entries=[ARCHITECTURE, entry("k", STRING, string("x", 2**64 - 1))]).build(),
    "unknown value type": File(entries=[ARCHITECTURE, entry("k", 13, bytes(8))]).build(),
    "negative value type": File(entries=[ARCHITECTURE, entry("k", -1, bytes(8))]).build(),
    "unknown element type": File(entries=[ARCHITECTURE, array_entry("k", 13, bytes(8), 1)]).build(),
    "nested array": File(entries=[ARCHITECTURE, array_entry("k", ARRAY, bytes(32), 1)]).build(),
    "array of 2**63 numbers": File(entries=[ARCHITECTURE, array_entry("k", U32, b"", 2**63)]).build(),
    "array of 2**63 strings": File(entries=[ARCHITECTURE, array_entry("k", STRING, b"", 2**63)]).build(),
    "array size that wraps in 64 bits": File(entries=[ARCHITECTURE, array_entry("k", U64, bytes(8), 2**61)]).build(),
    "array longer than the file": File(entries=[ARCHITECTURE, array_entry("k", U32, bytes(12), 4)]).build(),
    "string in an array longer than the file": File(
        entries=[ARCHITECTURE, array_entry("k", STRING, string("a", 900) + string("b"), 2)]
    ).build(),
    "string in an array of 2**64 - 8 bytes": File(
        entries=[ARCHITECTURE, array_entry("k", STRING, string("a", 2**64 - 8) + string("b"), 2)]
    ).build(),
    "alignment 0": File(entries=[ARCHITECTURE, alignment(0)]).build(),
    "alignment 48": File(entries=[ARCHITECTURE, alignment(48)]).build(),
    "alignment 2**31": File(entries=[ARCHITECTURE, alignment(2**31)]).build(),
    "alignment is a string": File(entries=[ARCHITECTURE, text_entry("general.alignment", "32")]).build(),
    "alignment is u64": File(entries=[ARCHITECTURE, entry("general.alignment", U64, struct.pack("<Q", 32))]).build(),
    "tensor name empty": File(tensors=[Tensor("")]).build(),
    "tensor name of 64 bytes": File(tensors=[Tensor("n" * 64)]).build(),
    "tensor name not UTF-8": File(tensors=[Tensor(b"\xff")]).build(),
    "tensor name with a line break": File(tensors=[Tensor("a\nb")]).build(),
    "tensor name twice": File(tensors=[Tensor("a"), Tensor("a")]).build(),
    "no dimensions": File(tensors=[Tensor(ne=(), n_dims=0)]).build(),
    "five dimensions": File(tensors=[Tensor(ne=(1, 1, 1, 1, 8))]).build(),
    "2**32 - 1 dimensions": File(tensors=[Tensor(n_dims=2**32 - 1)]).build(),
    "zero dimension": File(tensors=[Tensor(ne=(0, 8))]).build(),
    "negative dimension": File(tensors=[Tensor(ne=(-4, -2))]).build(),
    "product of dimensions over 2**63": File(tensors=[Tensor(ne=(2**32, 2**31))]).build(),
    "product of dimensions that wraps to 8": File(tensors=[Tensor(ne=(2**62 + 2, 4))]).build(),
    "byte size that wraps to 32": File(tensors=[Tensor(ne=(2**62 + 8,))]).build(),
    "row that is no whole block": File(tensors=[Tensor(ne=(255,), type=35, data=bytes(66))]).build(),
    "I2_S row of 64": File(tensors=[Tensor(ne=(64, 2), type=36, data=bytes(64))]).build(),
    "I2_S without its tail": File(tensors=[Tensor(ne=(128,), type=36, data=bytes(32))], padded=False).build(),
    "type out of range": File(tensors=[Tensor(type=2**31 - 1)]).build(),
    "negative type": File(tensors=[Tensor(type=-1)]).build(),
    "offset of the first tensor is not 0": File(tensors=[Tensor(offset=32)], tail=bytes(64)).build(),
    "offset is 2**64 - 32": File(tensors=[Tensor(offset=2**64 - 32)]).build(),
    "tensors overlap": File(tensors=[Tensor("a"), Tensor("b", offset=0)]).build(),
    "hole between tensors": File(tensors=[Tensor("a"), Tensor("b", offset=64)], tail=bytes(64)).build(),
    "unaligned offset": File(tensors=[Tensor("a"), Tensor("b", offset=33)], tail=bytes(64)).build(),
    "tensor longer than the file": File(tensors=[Tensor(ne=(1000, 1000))]).build(),
    "last tensor one byte short": File(tensors=[Tensor(data=bytes(31))], padded=False).build(),
    "no data at all": File(tensors=[Tensor(data=b"")]).build(),
}


@pytest.fixture
def write(tmp_path):
    def write(content: bytes, name: str = "model.gguf") -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    return write


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_file_is_one_line_that_names_the_file(write, content):
    path = write(content)
    with Work() as work, pytest.raises(FormatError) as caught:
        open_model(path)
    assert work.steps < LITTLE
    assert str(caught.value).startswith(path + ":")
    assert "\n" not in str(caught.value)


def test_the_builder_makes_sound_files(write):
    model = open_model(write(craft.tiny()))
    assert [(t.type, t.shape) for t in model.tensors.values()] == [
        ("F32", (2, 4)),
        ("TQ2_0", (256,)),
        ("I2_S", (2, 128)),
        ("F16", (3,)),
    ]
    assert dequantize("F32", model.read("a"), (2, 4)).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert model.metadata["tokenizer.ggml.tokens"] == [b"a", b"\xff", b""]
    assert model.metadata["tokenizer.ggml.scores"].tolist() == [0, -1, -2]
    assert model.metadata["flag"] is True
    assert model.architecture == "llama"


UNSUPPORTED = {
    "version 1": (File(version=1).build(), "version 1"),
    "version 4": (File(version=4).build(), "version 4"),
    "big-endian": (File(version=3 << 24).build(), "big-endian"),
    "unknown type": (File(tensors=[Tensor(type=200)]).build(), "200"),
    "removed type": (File(tensors=[Tensor(type=4)]).build(), "Q4_2"),
    "TL1": (File(tensors=[Tensor(type=38)]).build(), "TL1"),
    "I8_S": (File(tensors=[Tensor(type=37)]).build(), "I8_S"),
    "TL2 by the older number": (
        File(entries=[text_entry("general.architecture", "bitnet")], tensors=[Tensor(type=39)]).build(),
        "TL2",
    ),
    "removed IQ4_NL_4_4, known by its sizes": (
        File(tensors=[Tensor("a", (128,), 36, data=bytes(72)), Tensor("b")]).build(),
        "IQ4_NL_4_4",
    ),
}


@pytest.mark.parametrize(("content", "reason"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_known_but_unsupported_files_say_why(write, content, reason):
    path = write(content)
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        open_model(path)
    assert path in str(caught.value)


def test_number_39_is_mxfp4_where_its_sizes_tile_the_file(write):
    content = File(tensors=[Tensor("a", (32,), 39, data=bytes(17)), Tensor("b")]).build()
    assert open_model(write(content)).tensors["a"].type == "MXFP4"


@pytest.mark.parametrize(("kind", "elements", "nbytes"), [("Q2_0", 64, 18), ("PQ2_0", 128, 34), ("STQ1_0", 256, 42)])
@pytest.mark.parametrize("last", [False, True])
def test_number_42_is_the_type_whose_sizes_tile_the_file(write, kind, elements, nbytes, last):
    tensor = Tensor("a", (256, 64), 42, data=bytes(64 * 256 // elements * nbytes))
    tensors = [Tensor("b"), tensor] if last else [tensor, Tensor("b", (8,), data=bytes(32))]
    assert open_model(write(File(tensors=tensors).build())).tensors["a"].type == kind


def test_number_36_is_i2_s_in_a_llama_too(write):
    content = File(tensors=[Tensor("a", (128,), 36, data=bytes(64))]).build()
    assert open_model(write(content)).tensors["a"].type == "I2_S"


def test_last_tensor_needs_no_padding(write):
    content = File(tensors=[Tensor(ne=(3,), data=bytes(12))], padded=False).build()
    assert open_model(write(content)).read("t").size == 12


def test_alignment_of_the_file_is_followed(write):
    tensors = [Tensor("a", (3,), data=bytes(12)), Tensor("b")]
    for value in (1, 64, 65536):
        content = File(entries=[ARCHITECTURE, alignment(value)], tensors=tensors, alignment=value).build()
        assert open_model(write(content)).tensors["b"].offset % value == 0


def test_code_3_and_infinite_scales_in_a_file_are_refused(write):
    for data, complaint in ((b"\x03" + bytes(65), "code"), (bytes(64) + b"\x00\x7c", "scale")):
        model = open_model(write(File(tensors=[Tensor("w", (256,), 35, data=data)]).build()))
        with pytest.raises(FormatError, match=complaint):
            dequantize("TQ2_0", model.read("w"), (256,))


def test_truncation_at_every_length_is_refused(write):
    content = craft.tiny()
    last_byte = open_model(write(content)).tensors["d"]
    for length in range(last_byte.offset + last_byte.nbytes):
        with pytest.raises(FormatError):
            open_model(write(content[:length]))


def consume(path: str) -> None:
    """Touch everything a file offers."""
    model = GGUFFile(path)
    for key in model.metadata:
        assert model.metadata[key] is not None
    for name, info in model.tensors.items():
        assert model.read(name).nbytes == info.nbytes == tensor_nbytes(info.type, info.shape)
        dequantize(info.type, model.read(name), info.shape)


@given(edits=st.lists(st.tuples(st.integers(0, len(craft.tiny()) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_bytes_load_or_raise_on_purpose(tmp_path, edits):
    content = bytearray(craft.tiny())
    for position, value in edits:
        content[position] = value
    path = tmp_path / "mutated.gguf"
    path.write_bytes(content)
    with contextlib.suppress(FormatError, UnsupportedModelError):
        consume(str(path))


@given(body=st.binary(max_size=200))
@settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_behind_a_header_load_or_raise_on_purpose(tmp_path, body):
    path = tmp_path / "random.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + struct.pack("<qq", 0, 1) + body)
    with pytest.raises((FormatError, UnsupportedModelError)):
        consume(str(path))


LARGE = {
    # Each is valid up to its last bytes, and as large as the limits allow.
    "many short strings": lambda: File(
        entries=[ARCHITECTURE, array_entry("k", STRING, string("ab") * 2**20, 2**20), string("")]
    ),
    "too many strings": lambda: File(entries=[ARCHITECTURE, array_entry("k", STRING, bytes(8 * 3 * 2**20), 3 * 2**20)]),
    "many keys": lambda: File(entries=[ARCHITECTURE, *(entry(f"{i}", U8, b"\x01") for i in range(8190)), string("")]),
    "many tensors": lambda: File(tensors=[Tensor(f"{i}", (1,), data=b"") for i in range(16384)]),
    "long string": lambda: File(entries=[ARCHITECTURE, text_entry("k", "x" * 20_000_000), string("")]),
}


@pytest.mark.measured
@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE.keys())
def test_large_hostile_headers_cost_little_work_and_memory(write, make):
    content = make().build()
    path = write(content)
    with Work() as work, pytest.raises(FormatError):
        open_model(path)
    assert work.steps < LITTLE
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            open_model(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A Python object per tiny entry is larger than the entry; the limits on their number keep that to a few MiB.
    assert peak < 2 * len(content) + (4 << 20)


def test_views_outlive_the_file(write):
    model = GGUFFile(write(craft.tiny()))
    view = model.read("a")
    model.close()
    assert view.view("<f4").tolist() == list(range(8))
    assert model.metadata["tokenizer.ggml.scores"].tolist() == [0, -1, -2]
    with pytest.raises(ValueError, match="closed"):
        model.read("a")


def test_views_are_read_only_and_not_copies(write):
    model = GGUFFile(write(craft.tiny()))
    view = model.read("a")
    assert not view.flags.writeable
    assert np.shares_memory(view, model.read("a"))


def test_unknown_tensor_name_is_a_format_error(write):
    with pytest.raises(FormatError, match="no tensor 'x'"):
        GGUFFile(write(craft.tiny())).read("x")
