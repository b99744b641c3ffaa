"""A profile counts what passes do, and changes nothing of it."""

from __future__ import annotations

import numpy as np
import pytest
from small_model import write_small_model

from lowbit._kernels.profile import OPERATIONS, Profile
from lowbit._kernels.sampler import Sampler
from lowbit._kernels.sequence import Sequence
from lowbit.formats import open_model
from lowbit.loading.load import build

LAYERS, HIDDEN, KV, WIDE, VOCAB = 3, 64, 32, 96, 286
SIZES = {
    "attn_qkv": (HIDDEN + 2 * KV) * HIDDEN,
    "attn_output": HIDDEN * HIDDEN,
    "ffn_gate_up": 2 * WIDE * HIDDEN,
    "ffn_down": HIDDEN * WIDE,
}
"""Weights of each linear operation in a layer of `write_small_model`."""


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    path = write_small_model(tmp_path_factory.mktemp("profile") / "small.gguf", context=256)
    with open_model(path) as file:
        return build(file, 1, None)[0]


def write(decoder, prompt, n, profile):
    """Take in a prompt and write n tokens, under a profile; return all tokens."""
    sampler = Sampler(VOCAB, 0.0, 0, 1.0, 0.0, 1.0, 0)
    text = Sequence(decoder.pool, np.array(prompt, np.int32), 200, sampler=sampler, most=200, reuse=False)
    decoder.profile = profile
    try:
        decoder.read(text)
        decoder.make([text], n)
        return text.tokens().tolist()
    finally:
        decoder.profile = None
        text.close()


def test_a_profile_changes_no_token(decoder):
    assert write(decoder, range(3, 40), 20, Profile()) == write(decoder, range(3, 40), 20, None)


def test_products_count_every_weight_once_for_each_pass_and_token(decoder):
    profile = Profile()
    write(decoder, range(3, 40), 20, profile)
    laps = {lap["operation"]: lap for lap in profile.laps()}
    assert set(laps) <= set(OPERATIONS)
    passes, tokens = 1 + 20, 37 + 20
    for name, weights in SIZES.items():
        assert laps[name]["bytes"] == 4 * LAYERS * weights * passes, name  # the file's float32
        assert laps[name]["products"] == LAYERS * weights * tokens, name
    assert laps["output"]["products"] == VOCAB * HIDDEN * passes
    assert laps["sampling"]["calls"] == passes
    assert laps["activation"]["calls"] == LAYERS * passes


def test_attention_counts_the_positions_that_it_reads(decoder):
    profile = Profile()
    write(decoder, [5], 30, profile)
    attention = next(lap for lap in profile.laps() if lap["operation"] == "attention")
    positions = sum(range(1, 32))
    assert attention["bytes"] == positions * LAYERS * 2 * KV * 4
    assert attention["products"] == positions * LAYERS * 2 * HIDDEN
