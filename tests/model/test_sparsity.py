"""Activation sparsity: the sparse model is the oracle's, settings are checked, and thresholds belong to their model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import lowbit
from lowbit import FormatError, reference
from lowbit.cli import main
from lowbit.convert.calibration import calibrate
from lowbit.formats import open_model
from lowbit.loading import sparsity as sparsity_settings
from lowbit.loading.sparsity import MAGNITUDES, thresholds_of
from lowbit.plan import LINEARS

SHARES = {"qkv": 0.25, "attn_output": 0.5, "gate_up": 0.4, "ffn_down": 0.6}


def bits(array):
    return array.view(np.uint32)


def reference_weights(path):
    with open_model(path) as file:
        return {
            name.removesuffix(".weight"): file.read(name).view(np.float32).reshape(info.shape).copy()
            for name, info in file.tensors.items()
        }


@pytest.fixture
def small(write_llama):
    """A ternary llama without a tokenizer, wide enough for tiles of several lines."""
    return write_llama(kind="TQ2_0", hidden=512, wide=768, vocab=300, heads=8, kv_heads=4, keys={"context_length": 128})


IDS = np.random.default_rng(3).integers(0, 300, 40).tolist()


# --- what is computed ---


@pytest.mark.parametrize("sparsity", [0.5, SHARES, {"ffn_down": 0.9}])
def test_sparse_logits_equal_the_oracles(test_data, golden, sparsity):
    path = test_data / "models/stories260K.bin"
    shares = sparsity if isinstance(sparsity, dict) else dict.fromkeys(LINEARS, sparsity)
    model = lowbit.load(path, sparsity=sparsity)
    want = reference.forward(model.config, reference_weights(path), golden["prompt_ids"], shares)
    got = model.logits(golden["prompt_ids"])
    assert np.abs(got - want).max() < 2e-3
    assert np.abs(lowbit.load(path).logits(golden["prompt_ids"]) - want).max() > 0.1


def test_no_sparsity_is_the_dense_model(small):
    want = lowbit.load(small).logits(IDS)
    for sparsity in (0.0, {}, {"qkv": 0.0}):
        model = lowbit.load(small, sparsity=sparsity)
        assert np.array_equal(bits(model.logits(IDS)), bits(want))
        assert model.info()["weight_bytes"] == lowbit.load(small).info()["weight_bytes"]


def test_channel_major_weights_give_the_bits_of_row_groups(small):
    """So small a share drops nothing, but the weights are arranged for sparse products."""
    dense, sparse = lowbit.load(small), lowbit.load(small, sparsity=1e-9)
    assert np.array_equal(bits(sparse.logits(IDS)), bits(dense.logits(IDS)))
    assert sparse.generate(IDS, temperature=0, max_tokens=20).tokens == (
        dense.generate(IDS, temperature=0, max_tokens=20).tokens
    )


def test_weights_are_skipped_where_enough_inputs_do_not_count(small):
    """The rule is a number, so that the same file is the same in memory at every load."""
    assert lowbit.load(small).info()["skipping"] == []
    model = lowbit.load(small, sparsity=SHARES)
    assert set(model.info()["skipping"]) == {
        name for name, share in SHARES.items() if share >= sparsity_settings.SKIPPED
    }


def test_skipping_none_of_the_inputs_changes_nothing(small):
    assert np.array_equal(bits(lowbit.load(small, sparsity=1e-9).logits(IDS)), bits(lowbit.load(small).logits(IDS)))


def test_scores_leave_no_trace_in_what_others_know_of_the_same_tokens(small):
    """A scored text is computed as made tokens are, a prompt is not: their keys and values differ."""
    ids = [*IDS, *IDS[::-1]]  # more than a block
    used, fresh = (lowbit.load(small, sparsity=0.5) for _ in range(2))
    used.logits(ids)
    assert np.array_equal(bits(used.embed([ids])), bits(fresh.embed([ids])))
    assert used.generate(ids, max_tokens=9, seed=1).tokens == fresh.generate(ids, max_tokens=9, seed=1).tokens
    assert np.array_equal(bits(used.logits(ids)), bits(fresh.logits(ids)))


def test_zeros_of_a_squared_relu_are_skipped_without_a_trace(write_llama, monkeypatch):
    norms = {"blk.0.attn_sub_norm.weight": (512,), "blk.0.ffn_sub_norm.weight": (768,)}
    size = {"hidden": 512, "wide": 768, "vocab": 300, "heads": 8, "kv_heads": 4}
    path = write_llama("bitnet-b1.58", shapes=norms, kind="TQ2_0", **size)
    dense = lowbit.load(path)
    monkeypatch.setattr(sparsity_settings, "WORTHWHILE", 1)
    skipping = lowbit.load(path)
    assert skipping.info()["skipping"], "the other kernel is in use"
    assert not dense.info()["skipping"]
    assert np.array_equal(bits(skipping.logits(IDS)), bits(dense.logits(IDS)))
    tokens = [model.generate(IDS, temperature=0, max_tokens=12).tokens for model in (dense, skipping)]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "TQ2_0"])
def test_threads_and_batches_do_not_change_sparse_logits(write_llama, kind):
    path = write_llama(kind=kind, hidden=512, wide=768, vocab=300, heads=8, kv_heads=4)
    want = lowbit.load(path, sparsity=SHARES, threads=1).logits(IDS)
    assert np.array_equal(bits(lowbit.load(path, sparsity=SHARES, threads=3).logits(IDS)), bits(want))
    alone = lowbit.load(path, sparsity=SHARES).logits(IDS[:1])  # one row takes the sparse kernels, many the others
    assert np.array_equal(bits(alone), bits(want[:1]))


def test_a_budget_changes_nothing(small, stay_in_file):
    want = lowbit.load(small, sparsity=0.5).generate(IDS, temperature=0, max_tokens=10).tokens
    assert lowbit.load(small, sparsity=0.5, max_ram="64MB").generate(IDS, temperature=0, max_tokens=10).tokens == want


def test_prompts_are_dense_unless_asked(small):
    dense, sparse, both = (
        lowbit.load(small, **options) for options in ({}, {"sparsity": 0.6}, {"sparsity": 0.6, "sparse_prefill": True})
    )
    first = [model.generate(IDS, temperature=0, max_tokens=1, logprobs=0).logprobs for model in (dense, sparse, both)]
    assert first[0] == first[1] != first[2]
    assert np.argmax(both.logits(IDS)[-1]) == both.generate(IDS, temperature=0, max_tokens=1).tokens[0]


def test_what_was_said_before_does_not_change_a_continuation(small):
    model = lowbit.load(small, sparsity=0.6)
    said = model.generate(IDS, temperature=0, max_tokens=8).tokens
    longer = [*IDS, *said, 5]
    assert model.generate(longer, temperature=0, max_tokens=8).tokens == (
        lowbit.load(small, sparsity=0.6).generate(longer, temperature=0, max_tokens=8).tokens
    )


# --- settings ---


@pytest.mark.parametrize("wrong", [-0.1, 1.0, 1.5, float("nan"), float("inf"), True, None, {"qkv": 1.0}, {"qkv": "a"}])
def test_shares_out_of_range_are_refused(small, wrong):
    with pytest.raises(ValueError, match="from 0 to less than 1"):
        lowbit.load(small, sparsity=wrong)


def test_unknown_linear_layers_are_refused(small):
    with pytest.raises(ValueError, match="'attn_q'"):
        lowbit.load(small, sparsity={"attn_q": 0.5})


# --- thresholds ---


def test_thresholds_are_quantiles():
    rng = np.random.default_rng(1)
    x = np.abs(rng.standard_normal(100000)).astype(np.float32)
    counts = np.bincount(x.view(np.uint32) >> 15, minlength=MAGNITUDES).astype(np.uint32)[None]
    for target in (0.1, 0.5, 0.9):
        [layer] = thresholds_of({"qkv": counts}, target)
        assert layer["qkv"] == pytest.approx(np.quantile(x, target), rel=1 / 128)
        assert (x < layer["qkv"]).mean() >= target
    assert thresholds_of({"qkv": counts}, 0.0) == [{"qkv": 0.0}]


@pytest.fixture
def calibrated(test_data, tmp_path):
    path = test_data / "models/tinystories-3m.TQ2_0.gguf"
    text = (test_data / "corpora/tinystories/train.txt").read_text("utf-8")[:6000]
    calibrate(path, text, 0.4, tmp_path / "thresholds.json")
    return path, tmp_path / "thresholds.json"


def test_calibrated_thresholds_make_the_model_sparse(calibrated):
    path, thresholds = calibrated
    text = "Once upon a time there was a little girl who had a big dog. They went to the park to play."
    dense, sparse = lowbit.load(path).perplexity(text), lowbit.load(path, sparsity=thresholds).perplexity(text)
    assert dense.bits_per_byte != sparse.bits_per_byte
    assert sparse.bits_per_byte < 1.3 * dense.bits_per_byte


def test_thresholds_of_another_model_are_refused(calibrated, test_data):
    other = test_data / "models/tinystories-3m.I2_S.gguf"
    with pytest.raises(FormatError, match="belong to another model"):
        lowbit.load(other, sparsity=calibrated[1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.pop("kind"), "not a thresholds file"),
        (lambda c: c["layers"].pop(), "8 layers"),
        (lambda c: c["layers"][0].update(qkv=-1.0), "-1.0"),
        (lambda c: c["layers"][0].update(qkv="x"), "'x'"),
        (lambda c: c["layers"][0].update(other=1.0), "by qkv"),
        (lambda c: c.update(layers=3), "8 layers"),
    ],
)
def test_damaged_thresholds_are_refused(calibrated, change, reason):
    path, thresholds = calibrated
    content = json.loads(thresholds.read_text("utf-8"))
    change(content)
    thresholds.write_text(json.dumps(content), "utf-8")
    with pytest.raises(FormatError, match=reason):
        lowbit.load(path, sparsity=thresholds)


def test_files_that_are_no_thresholds_are_refused(small, tmp_path):
    with pytest.raises(FormatError, match="none"):
        lowbit.load(small, sparsity=tmp_path / "none.json")
    (tmp_path / "text").write_bytes(b"\xff\x00")
    with pytest.raises(FormatError, match="text"):
        lowbit.load(small, sparsity=tmp_path / "text")


def test_the_command_writes_what_the_others_read(test_data, tmp_path, capsys):
    model = str(test_data / "models/tinystories-3m.TQ2_0.gguf")
    text, output = tmp_path / "text", str(tmp_path / "out.json")
    text.write_text("Once upon a time there was a fox. It ran over the hill.", "utf-8")
    assert main(["calibrate", "-m", model, "--text", str(text), "--target", "0.3", "-o", output]) == 0
    assert capsys.readouterr().out.strip() == output
    assert main(["perplexity", "-m", model, "--sparsity", output, str(text)]) == 0
    assert main(["generate", "-m", model, "--sparsity", "0.3", "-n", "3", "Once"]) == 0
    for wrong in ("1.0", "nan", str(tmp_path / "none")):
        assert main(["generate", "-m", model, "--sparsity", wrong, "-n", "3", "Once"]) == 2
    assert main(["calibrate", "-m", model, "--text", str(text), "--target", "2", "-o", output]) == 2


def test_thresholds_do_not_overwrite_their_model(test_data, tmp_path, capsys):
    model, text = shutil.copy(test_data / "models/tinystories-3m.TQ2_0.gguf", tmp_path), tmp_path / "text"
    text.write_text("Once upon a time there was a fox.", "utf-8")
    assert main(["calibrate", "-m", str(model), "--text", str(text), "--target", "0.3", "-o", str(model)]) == 2
    assert "is a file of the model" in capsys.readouterr().err
    assert lowbit.load(model).generate("Once", max_tokens=1).tokens
