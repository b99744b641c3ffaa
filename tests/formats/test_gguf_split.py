"""A model in several GGUF files is the model in one; parts that do not fit together are refused in one line."""

from __future__ import annotations

import numpy as np
import pytest

import lowbit
from lowbit.convert import convert
from lowbit.errors import FormatError, LowbitError
from lowbit.formats import open_model
from lowbit.formats.gguf_writer import GGUFWriter
from lowbit.tokenizers import load_tokenizer

N = 3


def small(rng):
    """Tensors and keys of a llama of one layer."""
    shapes = {
        "token_embd": (48, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (32, 32), "blk.0.attn_v": (32, 32), "blk.0.attn_output": (32, 32), "blk.0.ffn_norm": (32,),
        "blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64),
    }  # fmt: skip
    tensors = {f"{name}.weight": rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    keys = {
        "llama.vocab_size": 48, "llama.context_length": 64, "llama.embedding_length": 32, "llama.block_count": 1,
        "llama.feed_forward_length": 64, "llama.attention.head_count": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "b", "\u2581"],
        "tokenizer.ggml.scores": np.zeros(6, np.float32), "tokenizer.ggml.token_type": np.int32([2, 3, 3, 1, 1, 1]),
    }  # fmt: skip
    return tensors, keys


@pytest.fixture
def write(tmp_path):
    """Write the model in parts, some keys or tensors changed; `changes` maps (part, key) to (value, type) or None."""

    def write(changes=(), twice=False, stem="my model v1.0", architecture=None):
        tensors, keys = small(np.random.default_rng(1))
        changes = dict(changes)
        for i in range(N):
            path = tmp_path / f"{stem}-{i + 1:05}-of-{N:05}.gguf"
            out = GGUFWriter(path, "llama" if i == 0 or architecture is None else architecture)
            if i and architecture is None:
                del out._metadata["general.architecture"]  # gguf-split leaves it to the first part
            split = {"split.no": (i, "u16"), "split.count": (N, "u16"), "split.tensors.count": (len(tensors), "i32")}
            given = split | ({key: (value, None) for key, value in keys.items()} if i == 0 else {})
            for key, entry in given.items():
                entry = changes.get((i, key), entry)
                if entry is not None:
                    out.add_metadata(key, *entry)
            for name in [*tensors][i::N]:
                out.add_tensor(name, "F32", tensors[name])
            if twice and i == 2:
                out.add_tensor("token_embd.weight", "F32", tensors["token_embd.weight"])
            out.close()
        with GGUFWriter(tmp_path / "whole.gguf", "llama") as whole:
            for key, value in keys.items():
                whole.add_metadata(key, value)
            for name, values in tensors.items():
                whole.add_tensor(name, "F32", values)
        return tmp_path / f"{stem}-00001-of-{N:05}.gguf"

    return write


def refused(path, *words):
    with pytest.raises(FormatError) as caught:
        open_model(path)
    message = str(caught.value)
    assert message.startswith(str(path.parent))
    assert "\n" not in message
    for word in words:
        assert word in message


def test_several_files_are_one_model(write, tmp_path):
    first = write()
    ids = [1, 3, 4, 40, 7]
    whole, parts = lowbit.load(tmp_path / "whole.gguf", threads=1), lowbit.load(first, threads=1)
    assert (whole.logits(ids) == parts.logits(ids)).all()
    assert whole.info()["parameters"] == parts.info()["parameters"]
    assert load_tokenizer(first).encode("ab") == whole.tokenizer.encode("ab")
    with open_model(first) as file, open_model(tmp_path / "whole.gguf") as one:
        assert file.tensors.keys() == one.tensors.keys()
        for name in one.tensors:
            assert (file.read(name) == one.read(name)).all()
            file.release(name)
        with pytest.raises(FormatError, match="no tensor"):
            file.read("nothing")


def test_weights_are_paged_in_from_the_file_that_has_them(write, tmp_path, stay_in_file):
    convert(write(), tmp_path / "q.gguf", "q8_0")
    with open_model(tmp_path / "q.gguf") as whole:
        tensors = {name: (info, whole.read(name).copy()) for name, info in whole.tensors.items()}
        metadata = {k: (v, whole.metadata_types[k]) for k, v in whole.metadata.items() if k != "general.architecture"}
    for i in range(2):
        with GGUFWriter(tmp_path / f"p-{i + 1:05}-of-00002.gguf", "llama") as out:
            for key, (value, kind) in metadata.items() if i == 0 else ():
                out.add_metadata(key, value, kind)
            for key, value in {"split.no": i, "split.count": 2, "split.tensors.count": len(tensors)}.items():
                out.add_metadata(key, value, "u16")
            for name in [*tensors][i::2]:
                info, raw = tensors[name]
                out.add_tensor(name, info.type, raw, info.shape)
    first = tmp_path / "p-00001-of-00002.gguf"
    with open_model(first) as file:
        assert {file.locate(name)[0] for name in tensors} == {str(first), str(first).replace("p-00001", "p-00002")}
    ids = [1, 3, 4, 40, 7]
    resident = lowbit.load(tmp_path / "q.gguf", threads=1)
    assert (lowbit.load(first, threads=1, max_ram="64MB").logits(ids) == resident.logits(ids)).all()


def test_converting_several_files_gives_one(write, tmp_path):
    convert(write(), tmp_path / "a.gguf", "f16")
    convert(tmp_path / "whole.gguf", tmp_path / "b.gguf", "f16")
    with open_model(tmp_path / "a.gguf") as a, open_model(tmp_path / "b.gguf") as b:
        assert a.metadata.keys() == b.metadata.keys()
        for name in b.tensors:
            assert (a.read(name) == b.read(name)).all()


def test_no_part_is_overwritten_by_what_is_made_of_them(write):
    first = write()
    second = first.with_name(first.name.replace("-00001", "-00002"))
    before = second.read_bytes()
    with pytest.raises(LowbitError, match=f"{second.name}: is a file of the model"):
        convert(first, second, "f16")
    assert second.read_bytes() == before


def test_a_later_part_names_the_first(write):
    first = write()
    refused(first.with_name(first.name.replace("-00001", "-00002")), "general.architecture")
    path = write(architecture="llama")
    refused(path.with_name(path.name.replace("-00001", "-00002")), "part 2 of 3", "open the first", first.name)


def test_a_missing_part_is_named(write):
    first = write()
    first.with_name(first.name.replace("-00001", "-00003")).unlink()
    refused(first, "part 3 of 3 is missing", "-00003-of-00003.gguf")


def test_a_truncated_part_is_named(write):
    first = write()
    second = first.with_name(first.name.replace("-00001", "-00002"))
    second.write_bytes(second.read_bytes()[:-100])
    refused(first, second.name, "truncated")


@pytest.mark.parametrize("name", ["model.gguf", "model-1-of-3.gguf", "-00001-of-00003.gguf", "m-00001-of-00004.gguf"])
def test_a_name_that_does_not_say_which_part_it_is_is_refused(write, name):
    first = write()
    refused(first.rename(first.with_name(name)), "parts of a model")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({(0, "split.count"): (65535, "u16")}, "limit 1024"),
        ({(0, "split.count"): (4, "u16")}, "its name says 3"),
        ({(0, "split.count"): (-3, "i32")}, "no number of files"),
        ({(0, "split.count"): ("3", None)}, "no number of files"),
        ({(0, "split.no"): (1, "u16")}, "part 2 of 3"),
        ({(0, "split.no"): ("x" * 9, None)}, "no split.no"),
        ({(0, "split.tensors.count"): (2**31 - 1, "i32")}, "limit"),
        ({(0, "split.tensors.count"): (-1, "i32")}, "limit"),
        ({(0, "split.tensors.count"): (12, "i32")}, "expected part 2 of 3 with 12"),
        ({(0, "split.tensors.count"): None}, "no split.tensors.count"),
        ({(1, "split.no"): (2, "u16")}, "is part 3 of 3"),
        ({(1, "split.count"): (2, "u16")}, "part 2 of 2"),
        ({(1, "split.tensors.count"): (5, "i32")}, "with 5 tensors"),
        ({(2, "split.count"): None}, "part 3 of 1"),
        ({(2, "split.no"): ([1, 2], "i32")}, "no split.no"),
        ({(i, "split.tensors.count"): (12, "i32") for i in range(3)}, "have 11 tensors, expected 12"),
        ({(i, "split.tensors.count"): (7, "i32") for i in range(3)}, "more than the 7"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(write, changes, words):
    refused(write(changes), words)


def test_a_tensor_in_two_parts_is_refused(write):
    refused(write(twice=True), "two parts have a tensor 'token_embd.weight'")


def test_a_part_of_another_model_is_refused(write):
    refused(write(architecture="qwen2"), "architecture 'qwen2'", "expected part 2 of 3")


def test_no_part_is_read_outside_of_the_folder(write, tmp_path_factory):
    first = write()
    second = first.with_name(first.name.replace("-00001", "-00002"))
    outside = second.rename(tmp_path_factory.mktemp("outside") / "x.gguf")
    second.symlink_to(outside)
    refused(first, second.name, "link that leads out of the folder")


def test_parts_in_a_download_cache_are_found_through_their_links(write, tmp_path_factory):
    first = write()
    cache = tmp_path_factory.mktemp("cache")
    (cache / "snapshots").mkdir()
    (cache / "blobs").mkdir()
    for i in range(1, 4):
        part = first.with_name(first.name.replace("-00001", f"-0000{i}"))
        blob = part.rename(cache / "blobs" / f"hash{i}")
        (cache / "snapshots" / part.name).symlink_to(blob)
    assert len(open_model(cache / "snapshots" / first.name).tensors) == 11
