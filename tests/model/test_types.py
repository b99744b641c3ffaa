"""Every tensor type in a whole model, against the oracle on the same stored numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lowbit
from lowbit import MemoryBudgetError, reference
from lowbit._kernels.matrix import UNPACKED_TYPES
from lowbit._kernels.stored import STORED_TYPES
from lowbit.families import plan_of
from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize
from lowbit.formats.gguf_writer import GGUFWriter
from lowbit.loading import memory
from lowbit.loading.inspection import inspect_file
from lowbit.loading.packing import read_weights

IDS = np.random.default_rng(1).integers(0, 64, 12).tolist()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_float_models_follow_the_oracle(isa, write_llama, oracle, kind):
    path = write_llama(kind=kind, hidden=64, wide=80, vocab=64)
    want = reference.forward(*oracle(path), IDS)
    np.testing.assert_allclose(lowbit.load(path).logits(IDS), want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "TQ1_0", "TQ2_0"])
def test_integer_models_follow_the_oracle(isa, write_llama, oracle, kind):
    path = write_llama(kind=kind, hidden=256, wide=512, vocab=64)
    want = reference.forward(*oracle(path), IDS)
    got = lowbit.load(path).logits(IDS)
    # A value that rounds to the other side of a border moves a logit by a few thousandths of the largest.
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()
    assert np.median(np.abs(got - want)) < 2e-3 * np.abs(want).max()


STORED = {
    "Q1_0": ("u2", 128), "Q2_0": ("u2", 64), "PQ2_0": ("u2", 128), "PTQ1_0": ("u2", 128), "STQ1_0": ("u2", 256),
    **{kind: (form, options["group_cols"]) for kind, (form, options) in UNPACKED_TYPES.items()},
    "IQ4_NL": ("iq4", 32), "Q5_0": ("u5", 32), "Q5_1": ("u5m", 32),
}  # fmt: skip


@pytest.fixture
def write_stored(write_llama, monkeypatch):
    """`write_stored(kind, code_3)` writes a random model whose matrices are stored blocks of a type without encoder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "formats"))
    from test_blocks import raw_of

    def write(kind, code_3=False):
        size = {"hidden": 256, "wide": 512, "vocab": 64}
        path = write_llama(**size)
        with open_model(path) as file, GGUFWriter(path.with_name("stored.gguf"), "llama") as out:
            for key, value in file.metadata.items():
                if key.startswith("llama."):
                    out.add_metadata(key, value, "u32" if isinstance(value, int) else None)
            raw = {}
            for i, (name, info) in enumerate(file.tensors.items()):
                stored = kind if len(info.shape) == 2 else "F32"
                out.add_tensor_info(name, stored, info.shape)
                raw[name] = file.read(name) if stored == "F32" else raw_of(kind, info.shape, seed=i)
                if code_3 and stored == kind:
                    raw[name][-1] |= 0xC0
            out.write_header()
            for name, data in raw.items():
                out.write_tensor(name, data)
        return path.with_name("stored.gguf")

    return write


@pytest.mark.parametrize("kind", STORED)
def test_weights_of_types_without_a_kernel_are_kept_exactly(write_stored, kind):
    path = write_stored(kind)
    with open_model(path) as file:
        weights = read_weights(file, plan_of(file), 1)
        for name, matrix in (("token_embd", weights.token_embd), ("blk.1.ffn_down", weights.layers[1]["ffn_down"][0])):
            info = file.tensors[f"{name}.weight"]
            assert (matrix.format, matrix.group_cols) == STORED[kind]
            want = dequantize(kind, file.read(info.name), info.shape)
            assert np.array_equal(matrix.rows(np.arange(info.shape[0])), want)
    model = lowbit.load(path)
    assert (kind in model.info().get("kept_as", {})) == (STORED[kind][0] in ("u2", "u8"))
    assert inspect_file(path)["weight_bytes"] == model.info()["weight_bytes"]
    paged = lowbit.load(path, max_ram="40MB")
    assert np.array_equal(paged.logits(IDS), model.logits(IDS))


@pytest.mark.parametrize("kind", STORED_TYPES)
def test_types_that_are_unpacked_where_they_are_used_stay_in_the_file(write_stored, stay_in_file, monkeypatch, kind):
    path, ids = write_stored(kind), np.resize(IDS, 40)
    model = lowbit.load(path)
    want, first = model.logits(ids), model.logits([3])
    monkeypatch.setattr(memory.Budget, "block_bytes", property(lambda _: 9000, lambda *_: None), raising=False)
    with pytest.raises(MemoryBudgetError) as least:
        lowbit.load(path, max_ram="1MB")
    for budget in (least.value.smallest + (1 << 17), "40MB"):  # nearly nothing stays in memory, all of it
        for threads in (1, 2):
            paged = lowbit.load(path, max_ram=budget, threads=threads)
            pager = paged._decoder.graph.pager
            assert pager.sources == [str(path)], "nothing is packed into a temporary file"
            assert paged.info()["kept_as"] == {kind: "as in the file, unpacked at each use"}
            for _ in range(2):
                assert np.array_equal(paged.logits(ids), want)
                assert np.array_equal(paged.logits([3]), first)
            stats = paged.info()["memory"]
            assert stats["peak_memory"] <= stats["cache_bytes"]
    with open_model(path) as file:
        stored = sum(info.nbytes for info in file.tensors.values() if info.type == kind)
    assert sum(length for _, _, length in (pager.table[block] for block in pager.order)) <= stored


@pytest.mark.parametrize("kind", [kind for kind, (form, group) in STORED.items() if form == "u2"])
def test_ternary_types_are_kept_exactly_with_five_to_a_byte(write_stored, kind):
    path = write_stored(kind)
    with open_model(path) as file:
        matrix = read_weights(file, plan_of(file), 1, pack="dense").layers[1]["ffn_down"][0]
        assert (matrix.format, matrix.group_cols) == ("t5" if STORED[kind][1] >= 128 else "u2", STORED[kind][1])
        info = file.tensors["blk.1.ffn_down.weight"]
        want = dequantize(kind, file.read(info.name), info.shape)
        assert np.array_equal(matrix.rows(np.arange(info.shape[0])), want)
    model = lowbit.load(path)
    assert np.array_equal(lowbit.load(path, pack="dense").logits(IDS), model.logits(IDS))


@pytest.mark.parametrize(("kind", "group"), [("Q2_0", 64), ("PQ2_0", 128)])
def test_twice_the_scale_is_kept_exactly_in_4_bits(write_stored, kind, group):
    path = write_stored(kind, code_3=True)
    with open_model(path) as file:
        matrix = read_weights(file, plan_of(file), 1).layers[0]["ffn_down"][0]
        info = file.tensors["blk.0.ffn_down.weight"]
        assert (matrix.format, matrix.group_cols) == ("u4", group)
        want = dequantize(kind, file.read(info.name), info.shape)
        assert abs(want[-1, -1]) == 2 * np.unique(np.abs(want[-1, -group:-1]))[-1]
        assert np.array_equal(matrix.rows(np.arange(info.shape[0])), want)
    assert np.isfinite(lowbit.load(path).logits(IDS)).all()


@pytest.mark.parametrize("group", [4, 8])
def test_groups_of_llama2_c_that_go_on_in_the_next_row_keep_their_scales(tmp_path, monkeypatch, group):
    """Rows of 12 hold one and a half groups of 8, as the 172 of stories260K do."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "formats"))
    from test_llama2c import checkpoint

    path = tmp_path / "model.bin"
    content, expected = checkpoint(2, shared=True, group=group)
    path.write_bytes(content)
    with open_model(path) as file:
        layer = read_weights(file, plan_of(file), 1).layers[1]
        for role in ("attn_output", "ffn_down"):
            want = expected[f"blk.1.{role}.weight"]
            assert np.array_equal(layer[role][0].rows(np.arange(len(want))), want)
    model = lowbit.load(path)
    assert np.array_equal(lowbit.load(path, max_ram="40MB").logits([1, 2, 3]), model.logits([1, 2, 3]))


def test_a_head_in_8_bits_is_that_of_a_q8_0_file(isa, write_llama, oracle):
    path = write_llama(hidden=64, wide=80, vocab=64)
    config, weights = oracle(path)
    table = weights["token_embd"]
    scales = (np.abs(table.reshape(64, -1, 32)).max(2) / 127).astype(np.float16).astype(np.float64)
    codes = np.rint(table.reshape(64, -1, 32) * 127 / np.abs(table.reshape(64, -1, 32)).max(2, keepdims=True))
    rounded = reference.IntLinear(codes.reshape(table.shape).astype(np.int8), scales)
    want = reference.forward(config, {**weights, "token_embd": rounded}, IDS)
    got = lowbit.load(path, head="q8_0").logits(IDS)
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()
    assert np.median(np.abs(got - want)) < 1e-5 * np.abs(want).max()
    assert np.array_equal(lowbit.load(path, head="file").logits(IDS), lowbit.load(path).logits(IDS))


@pytest.mark.parametrize(
    ("shapes", "keys", "sizes"),
    [
        ({}, {}, {"hidden": 96, "wide": 16, "heads": 4, "kv_heads": 1}),
        (
            {
                "blk.0.attn_q.weight": (6, 128),
                "blk.0.attn_k.weight": (2, 128),
                "blk.0.attn_v.weight": (2, 128),
                "blk.0.attn_output.weight": (128, 6),
            },
            {"attention.key_length": 2, "attention.value_length": 2},
            {"hidden": 128, "wide": 16, "heads": 3, "kv_heads": 1},
        ),
        (
            {
                "blk.0.attn_q.weight": (120, 16),
                "blk.0.attn_k.weight": (40, 16),
                "blk.0.attn_v.weight": (40, 16),
                "blk.0.attn_output.weight": (16, 120),
            },
            {"attention.key_length": 40, "attention.value_length": 40},
            {"hidden": 16, "wide": 16, "heads": 3, "kv_heads": 1},
        ),
        ({}, {}, {"hidden": 34, "wide": 333, "heads": 1, "kv_heads": 1, "vocab": 65}),
        ({}, {"rope.dimension_count": 4}, {"hidden": 30, "wide": 7, "heads": 3, "kv_heads": 3, "vocab": 101}),
    ],
    ids=["narrow feed-forward", "narrow heads", "wide heads", "wide feed-forward", "odd sizes"],
)
def test_any_proportions_follow_the_oracle_and_stay_in_their_memory(
    isa, write_llama, oracle, guards, shapes, keys, sizes
):
    path = write_llama(shapes=shapes, keys=keys, **{"vocab": 64, **sizes})
    want = reference.forward(*oracle(path), IDS)
    model = lowbit.load(path, context=len(IDS))  # as much scratch memory as the tokens need, and no more
    error = np.abs(model.logits(IDS) - want) / np.abs(want).max()
    assert np.median(error) < 1e-6
    assert error.max() < 1e-3  # scores of hundreds, whose rounding errors softmax turns into those of weights
    assert guards.blocks
    assert guards.intact()
