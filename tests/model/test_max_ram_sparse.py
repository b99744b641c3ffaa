"""Sparsity under a memory budget: channels that do not count are not read, and the text is the resident model's."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest
from plans import make_plan

import lowbit
from lowbit import FormatError, MemoryBudgetError, channels
from lowbit.channels import blocks_that_pay, by_channel
from lowbit.convert.calibration import calibrate
from lowbit.loading import load as loading
from lowbit.plan import LINEARS

pytestmark = pytest.mark.measured  # small budgets, of which sanitizers alone take more

SIZES = {"vocab": 1237, "hidden": 1024, "wide": 6400, "heads": 8, "kv_heads": 2}
"""A channel of gate and up is 3200 bytes; query, key and value have 1536 outputs, so that 10 channels are a block."""
PROMPT = [1, 5, 9, 200, 33]
OPTIONS = {"max_tokens": 12, "temperature": 0}


@pytest.fixture
def always(monkeypatch):
    """Read all sparse layers by channel, however many blocks that takes and however much memory there is."""
    monkeypatch.setattr(channels, "BLOCKS_THAT_PAY", 1.0)
    monkeypatch.setattr(loading, "all_fits", lambda file, budget: False)


@pytest.fixture(params=["TQ2_0", "TQ1_0"])
def path(request, write_llama):
    return write_llama(kind=request.param, name=f"{request.param}.gguf", **SIZES)


def smallest(path, **options):
    gc.collect()  # what earlier models leave must not be freed in the middle
    with pytest.raises(MemoryBudgetError) as caught:
        lowbit.load(path, max_ram="1MB", **options)
    least = caught.value.smallest
    del caught
    gc.collect()
    return least


def bits(array):
    return array.view(np.uint32)


def read_per_token(model, tokens=10):
    """Bytes that a decoded token reads, once the caches are as full as they get."""
    ids = model.generate(PROMPT, max_tokens=3, temperature=0).tokens
    before = model.info()["memory"]["bytes_read"]
    model.generate([*PROMPT, *ids], max_tokens=tokens, temperature=0)
    return (model.info()["memory"]["bytes_read"] - before) / tokens


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99, {"gate_up": 0.75, "ffn_down": 0.25}])
@pytest.mark.parametrize("threads", [1, 2])
def test_logits_and_text_are_those_of_the_resident_model(path, sparsity, threads):
    resident = lowbit.load(path, sparsity=sparsity)
    want, expected = resident.logits(PROMPT), resident.generate(PROMPT, **OPTIONS).tokens
    least = smallest(path, sparsity=sparsity)
    for budget in (least, least + (1 << 20), least + (4 << 20)):
        paged = lowbit.load(path, sparsity=sparsity, max_ram=budget, threads=threads)
        assert paged.info()["memory"]["channel_reads"] == 0
        assert paged.generate(PROMPT, **OPTIONS).tokens == expected
        memory = paged.info()["memory"]
        assert memory["channel_reads"] > 0
        assert memory["peak_memory"] <= memory["cache_bytes"]
        assert np.array_equal(bits(paged.logits(PROMPT)), bits(want)), "many rows: dense products with zeros"
        for length in (1, 2):
            assert np.array_equal(bits(paged.logits(PROMPT[:length])), bits(want[:length]))


@pytest.mark.usefixtures("always")
def test_one_scale_for_a_matrix_and_activations_of_one_scale(test_data):
    path = test_data / "models/tinystories-3m.I2_S.gguf"
    want = lowbit.load(path, sparsity=0.6).generate(PROMPT, **OPTIONS).tokens
    paged = lowbit.load(path, sparsity=0.6, max_ram=smallest(path, sparsity=0.6))
    assert paged._transformer.pager.channels.n_blocks > 0
    assert paged.generate(PROMPT, **OPTIONS).tokens == want
    assert paged.info()["memory"]["channel_reads"] > 0


@pytest.mark.usefixtures("always")
def test_thresholds_give_the_resident_text(write_llama, test_data, tmp_path):
    path = test_data / "models/tinystories-3m.TQ2_0.gguf"
    text = (test_data / "corpora/tinystories/train.txt").read_text("utf-8")[:6000]
    calibrate(path, text, 0.4, tmp_path / "thresholds.json")
    options = {"max_tokens": 40, "temperature": 0}
    resident = lowbit.load(path, sparsity=tmp_path / "thresholds.json", context=256)
    least = smallest(path, sparsity=tmp_path / "thresholds.json", context=256)
    paged = lowbit.load(path, sparsity=tmp_path / "thresholds.json", context=256, max_ram=least)
    assert str(paged.generate("Once upon a time", **options)) == str(resident.generate("Once upon a time", **options))
    prompts = ["Once upon a time", "One day, a cat", "Tom had"]  # three rows at once are read in their order
    expected = [g.tokens for g in resident.generate(prompts, **options)]
    assert [g.tokens for g in paged.generate(prompts, **options)] == expected
    assert paged.generate(prompts[0], speculate=True, **options).tokens == expected[0]


@pytest.mark.usefixtures("always")
def test_the_sparser_the_less_is_read(write_llama):
    path = write_llama(kind="TQ2_0", **{**SIZES, "vocab": 256})
    budget = smallest(path, sparsity=0.5) + (1 << 18)
    half, most = (
        read_per_token(lowbit.load(path, max_ram=budget, sparsity={"gate_up": share, "ffn_down": share}))
        for share in (0.5, 0.97)
    )
    assert most < 0.5 * half
    assert most < 0.25 * path.stat().st_size, "a dense pass reads all weights that are not resident"


@pytest.mark.usefixtures("always")
def test_prompts_are_computed_as_without_sparsity(path):
    dense, paged = lowbit.load(path), lowbit.load(path, sparsity=0.6, max_ram=smallest(path, sparsity=0.6))
    first = [model.generate(PROMPT, temperature=0, max_tokens=1, logprobs=0).logprobs for model in (dense, paged)]
    assert first[0] == first[1]
    assert paged.info()["memory"]["channel_reads"] == 0


@pytest.mark.usefixtures("always")
def test_read_errors_are_clear_and_the_model_recovers(write_llama):
    path = write_llama(kind="TQ2_0", **SIZES)
    model = lowbit.load(path, sparsity=0.6, max_ram=smallest(path, sparsity=0.6))
    expected = model.generate(PROMPT, **OPTIONS).tokens
    spill = model._transformer.pager.sources[0]
    size = os.fstat(spill.fileno()).st_size
    content = os.pread(spill.fileno(), size, 0)
    os.truncate(spill.fileno(), 3 * 4096)
    with pytest.raises(FormatError, match="shorter"):
        model.generate(PROMPT[::-1], **OPTIONS)
    os.pwrite(spill.fileno(), content, 0)
    assert model.generate(PROMPT, **OPTIONS).tokens == expected


def test_a_code_that_does_not_exist_is_a_clear_error(write_llama):
    path = write_llama(kind="TQ2_0", **SIZES)
    with lowbit.formats.open_model(path) as file:
        info = file.tensors["blk.0.ffn_up.weight"]
    with open(path, "r+b") as out:
        out.seek(info.offset)
        out.write(b"\xff")
    with pytest.raises(FormatError, match="code 3"):
        lowbit.load(path, sparsity=0.95, max_ram="5MB")


def config(hidden=2560, wide=6912, heads=20, kv_heads=5):
    return make_plan("llama", 1000, hidden, wide, 1, heads, kv_heads, hidden // heads, 512)


def test_layers_are_read_by_channel_where_few_blocks_are_needed():
    assert not by_channel(config(), dict.fromkeys(LINEARS, 0.5), 0.12).per_block
    assert by_channel(config(), dict.fromkeys(LINEARS, 0.9), 0.12).per_block == {"gate_up": 1}
    assert by_channel(config(), dict.fromkeys(LINEARS, 0.5), 0.6).per_block == {"gate_up": 1}, "a faster disk"
    assert by_channel(config(), dict.fromkeys(LINEARS, 0.99), 0.12).per_block == {
        "qkv": 4, "attn_output": 6, "gate_up": 1, "ffn_down": 6,
    }  # fmt: skip
    assert by_channel(config(wide=14336), {"gate_up": 0.95, "ffn_down": 0.99}, 0.12).block_bytes == 8192
    assert not by_channel(config(), {}, 0.12).per_block


def test_the_disk_is_measured_where_a_file_is_long_enough(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 24))
    assert blocks_that_pay(path) == channels.BLOCKS_THAT_PAY
    monkeypatch.setattr(channels, "PROBED_BYTES", 1 << 24)
    monkeypatch.setattr(channels, "PROBES", 1)
    assert 0 < blocks_that_pay(path) != channels.BLOCKS_THAT_PAY


def test_a_budget_for_all_weights_keeps_them_in_the_order_of_the_file(write_llama):
    model = lowbit.load(write_llama(kind="TQ2_0", **SIZES), sparsity=0.99, max_ram="64MB")
    assert "channel_reads" not in model.info()["memory"]
