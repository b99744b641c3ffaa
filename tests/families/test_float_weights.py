"""What becomes of weights without a packed form: ternary floats, large floats, types that are unpacked."""

from __future__ import annotations

import numpy as np
import pytest

import lowbit
from lowbit._kernels.matrix import PackedMatrix
from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize
from lowbit.formats.gguf_writer import GGUFWriter
from lowbit.loading import packing, ternary

SIZES = {"embedding_length": 128, "feed_forward_length": 256, "block_count": 1, "attention.head_count": 4,
         "attention.head_count_kv": 2, "context_length": 64, "vocab_size": 48}  # fmt: skip


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}


def shapes():
    return {
        "attn_q": (128, 128), "attn_k": (64, 128), "attn_v": (64, 128), "attn_output": (128, 128),
        "ffn_gate": (256, 128), "ffn_up": (256, 128), "ffn_down": (128, 256),
    }  # fmt: skip


def write(path, kind="F32", architecture="llama", extra=(), keys=()):
    """Write a random model of one layer; return its path."""
    rng = np.random.default_rng(3)
    with GGUFWriter(path, architecture) as out:
        for key, value in {**SIZES, **dict(keys)}.items():
            out.add_metadata(f"{architecture}.{key}", value, "u32" if isinstance(value, int) else None)
        out.add_metadata(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
        for name in ("token_embd", "output"):
            out.add_tensor(f"{name}.weight", "F32", rng.standard_normal((48, 128)).astype(np.float32))
        for name, size in {"blk.0.attn_norm": 128, "blk.0.ffn_norm": 128, "output_norm": 128, **dict(extra)}.items():
            key = name if name.endswith(".bias") else f"{name}.weight"
            out.add_tensor(key, "F32", 1 + 0.2 * rng.standard_normal(size).astype(np.float32))
        for name, shape in shapes().items():
            out.add_tensor(f"blk.0.{name}.weight", kind, 0.1 * rng.standard_normal(shape).astype(np.float32))
    return path


def close(a, b, share):
    return np.abs(a - b).max() <= share * (a.max() - a.min())


def test_large_floats_are_kept_in_8_bits_unless_told_otherwise(tmp_path, monkeypatch):
    path = write(tmp_path / "model.gguf")
    monkeypatch.setattr(packing, "LARGE_TABLE", 128 * 128)
    rounded, exact = lowbit.load(path), lowbit.load(path, weights="file")
    assert rounded.info()["weight_bytes"] < exact.info()["weight_bytes"] * 0.6
    a, b = exact.logits(range(40)), rounded.logits(range(40))
    assert (a != b).any()
    assert close(a, b, 0.02)


def test_unknown_choices_of_float_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="weights"):
        lowbit.load(write(tmp_path / "model.gguf"), weights="8 bits")


def test_decoded_rows_come_out_where_they_belong(tmp_path):
    path = write(tmp_path / "model.gguf", "IQ4_NL")
    from lowbit.families import plan_of

    with open_model(path) as file:
        [qkv] = packing.read_weights(file, plan_of(file), 1).layers[0]["qkv"]
        names = [f"blk.0.attn_{part}.weight" for part in "qkv"]
        stored = np.concatenate([dequantize("IQ4_NL", file.read(n), file.tensors[n].shape) for n in names])
        assert isinstance(qkv, PackedMatrix)
        assert qkv.format == "iq4"
        assert (qkv.rows(range(256)) == stored).all()


def test_ternary_floats_are_found_with_a_scale_per_block():
    rng = np.random.default_rng(1)
    signs, scales = rng.integers(-1, 2, (40, 600)), rng.uniform(0.1, 1, (40, 3)).astype(np.float32)
    values = (signs * np.repeat(scales, 256, axis=1)[:, :600]).astype(np.float32)
    codes, found = ternary.blockwise_ternary(values)
    assert (codes == signs + 1).all()
    assert (found == scales).all()


@pytest.mark.parametrize("row", [0, 39])
def test_one_other_magnitude_or_infinity_makes_weights_no_ternary_ones(row):
    for wrong in (0.25, np.inf, np.nan):
        values = np.where(np.arange(512) % 3, 0.5, -0.5).astype(np.float32) * np.ones((40, 1), np.float32)
        values[row, 300] = wrong
        assert ternary.blockwise_ternary(values) is None
    assert ternary.blockwise_ternary(np.zeros((4, 256), np.float32)) is None


@pytest.mark.parametrize(
    ("architecture", "extra", "keys"),
    [
        ("qwen2", {"blk.0.attn_q.bias": 128, "blk.0.attn_k.bias": 64, "blk.0.attn_v.bias": 64}, {}),
        ("qwen3", {"blk.0.attn_q_norm": 32, "blk.0.attn_k_norm": 32}, {}),
        ("qwen3", {"blk.0.attn_q_norm": 32, "blk.0.attn_k_norm": 32}, YARN),
    ],
)
def test_qwen_in_gguf_runs_as_the_oracle_does(tmp_path, architecture, extra, keys):
    from lowbit import reference
    from lowbit.families import plan_of

    path = write(tmp_path / "model.gguf", architecture=architecture, extra=extra, keys=keys)
    with open_model(path) as file:
        config = plan_of(file)
        roles = {
            name.removesuffix(".weight").replace(".bias", "_bias"): dequantize(info.type, file.read(name), info.shape)
            for name, info in file.tensors.items()
        }
        expected = reference.forward(config, roles, range(40))
    assert config.rope_pairing == "halves"
    assert close(expected, lowbit.load(path, head="file").logits(range(40)), 1e-5)


def test_a_window_is_refused_in_families_of_which_none_is_known(tmp_path):
    qwen3 = {"architecture": "qwen3", "extra": {"blk.0.attn_q_norm": 32, "blk.0.attn_k_norm": 32}}
    with pytest.raises(lowbit.FormatError, match="window"):
        lowbit.load(write(tmp_path / "a.gguf", keys={"attention.sliding_window": 32}, **qwen3))
    lowbit.load(write(tmp_path / "b.gguf", keys={"attention.sliding_window": 64}, **qwen3))


def test_a_window_in_a_llama_hides_what_is_further_back(tmp_path):
    model = lowbit.load(write(tmp_path / "a.gguf", keys={"attention.sliding_window": 8}))
    all_of_them = lowbit.load(write(tmp_path / "b.gguf"))
    ids = np.random.default_rng(4).integers(0, 48, 40)
    changed = np.concatenate([(ids[:12] + 1) % 48, ids[12:]])
    assert np.array_equal(model.logits(ids[:8]), all_of_them.logits(ids[:8]))
    assert np.array_equal(model.logits(ids)[19:], model.logits(changed)[19:])  # one layer sees 8 tokens
    assert (model.logits(ids)[:19] != model.logits(changed)[:19]).any(1).all()
    assert (all_of_them.logits(ids) != all_of_them.logits(changed)).any(1).all()


def test_yarn_in_gguf_changes_frequencies_and_lengths(tmp_path):
    from lowbit.families.rope import yarn_factors

    config = lowbit.load(write(tmp_path / "a.gguf", keys=YARN)).config
    assert config.rope_factors == yarn_factors(32, 10000.0, 4.0, 16)
    assert config.rope_factors[0] == 1.0
    assert config.rope_factors[-1] == 4.0
    assert config.rope_scale == pytest.approx(0.1 * np.log(4.0) + 1)
    keys = {**YARN, "rope.scaling.attn_factor": 0.5}
    halved = lowbit.load(write(tmp_path / "b.gguf", keys=keys)).config
    assert halved.rope_scale == pytest.approx(0.5 * config.rope_scale)
    keys["rope.scaling.attn_factor"] = 0.0
    with pytest.raises(lowbit.FormatError, match="attn_factor"):
        lowbit.load(write(tmp_path / "c.gguf", keys=keys))
