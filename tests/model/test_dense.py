"""Five ternary weights to a byte instead of four: a fifth less memory, and the same bits."""

from __future__ import annotations

import numpy as np
import pytest

import lowbit
from lowbit.families import plan_of
from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize
from lowbit.loading.inspection import inspect_file
from lowbit.loading.packing import read_weights

SIZES = {"hidden": 512, "wide": 768, "vocab": 200, "heads": 8, "kv_heads": 4}  # 200 rows are no whole row groups
IDS = np.random.default_rng(1).integers(0, 200, 23).tolist()


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_logits_and_text_are_those_of_four_to_a_byte(isa, write_llama, kind):
    path = write_llama(kind=kind, **SIZES)
    plain, dense = lowbit.load(path), lowbit.load(path, pack="dense")
    assert np.array_equal(dense.logits(IDS), plain.logits(IDS))  # many rows at once
    options = {"max_tokens": 12, "temperature": 0.7, "seed": 3}
    expected = plain.generate(IDS, **options).tokens  # one at a time
    for threads in (1, 2):
        assert lowbit.load(path, pack="dense", threads=threads).generate(IDS, **options).tokens == expected


def test_one_scale_for_all_of_a_tensor_changes_no_bit(isa):
    plain, dense = lowbit.load(), lowbit.load(pack="dense")  # the embedded model, a BitNet
    ids = plain.tokenizer.encode("Once upon a time")
    assert np.array_equal(dense.logits(ids), plain.logits(ids))
    assert dense.info()["weight_bytes"] < plain.info()["weight_bytes"]


def test_i2_s_changes_no_bit(test_data):
    path = test_data / "models" / "tinystories-3m.I2_S.gguf"
    plain, dense = lowbit.load(path), lowbit.load(path, pack="dense")
    ids = plain.tokenizer.encode("One day a cat")
    assert np.array_equal(dense.logits(ids), plain.logits(ids))


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_256_weights_take_52_bytes_and_their_scale(write_llama, kind):
    path = write_llama(kind=kind, **{**SIZES, "vocab": 208})  # whole row groups
    with open_model(path) as file:
        plan = plan_of(file)
        weights = read_weights(file, plan, 1, pack="dense")
        for name, matrix in (("token_embd", weights.token_embd), ("blk.1.ffn_down", weights.layers[1]["ffn_down"][0])):
            info = file.tensors[f"{name}.weight"]
            assert (matrix.format, matrix.nbytes) == ("t5", np.prod(info.shape) // 256 * 54)
            want = dequantize(kind, file.read(info.name), info.shape)
            assert np.array_equal(matrix.rows(np.arange(info.shape[0])), want)


@pytest.mark.measured
@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_pages_hold_five_to_a_byte(write_llama, kind):
    path = write_llama(kind=kind, **{**SIZES, "wide": 1536})
    plain = lowbit.load(path)
    budget, models = 1 << 20, []
    while not models:  # the least depends on what earlier loads have left of the process's memory
        try:
            models.append(lowbit.load(path, pack="dense", max_ram=budget))
        except lowbit.MemoryBudgetError as error:
            if error.smallest <= budget:
                raise
            budget = error.smallest
    for paged in (*models, lowbit.load(path, pack="dense", max_ram="40MB")):
        assert np.array_equal(paged.logits(IDS), plain.logits(IDS))
        assert np.array_equal(paged.logits([3]), plain.logits([3]))


def test_weights_that_are_not_ternary_stay_as_they_are(write_llama):
    path = write_llama(kind="Q8_0", **SIZES)
    dense = lowbit.load(path, pack="dense").info()
    assert dense["weight_bytes"] == lowbit.load(path).info()["weight_bytes"] == inspect_file(path)["weight_bytes"]


def test_an_unknown_packing_is_refused():
    with pytest.raises(ValueError, match="pack must be one of auto, dense, not 'tight'"):
        lowbit.load(pack="tight")


def test_inputs_are_not_skipped_with_five_to_a_byte():
    with pytest.raises(ValueError, match="pack must be auto where inputs are skipped"):
        lowbit.load(pack="dense", sparsity=0.5)


def test_the_command_line_packs_five_to_a_byte(capsys):
    from lowbit import cli

    answers = []
    for options in ([], ["--pack", "dense"]):
        assert cli.main(["generate", "Once upon a time", "-n", "8", "--temperature", "0", *options]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    assert cli.main(["generate", "Hi", "--pack", "tight"]) == 2
    assert "pack must be one of auto, dense, not 'tight'" in capsys.readouterr().err
