"""Each trap of real files is seen in a file that has it, and in none that has not."""

from __future__ import annotations

import json

import numpy as np
import pytest

import lowbit
from lowbit import cli
from lowbit.formats.gguf_writer import GGUFWriter
from lowbit.tokenizers.byte_alphabet import BYTE_TO_LETTER

# not "tokenizers": where that library is missing, the folder of tests with its name would do
pytest.importorskip("tokenizers.models")

HIDDEN, WORDS = 256, 300
SPM = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    + [f"w{i}" for i in range(WORDS - 259)],
    "tokenizer.ggml.scores": np.zeros(WORDS, np.float32),
    "tokenizer.ggml.token_type": np.int32([2, 3, 3] + [6] * 256 + [1] * (WORDS - 259)),
}
BPE_TOKENS = [*(BYTE_TO_LETTER[i] for i in range(256)), *(f"<|x{i}|>" for i in range(WORDS - 258)), "<|eot_id|>", "<s>"]
BPE = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": BPE_TOKENS,
    "tokenizer.ggml.token_type": np.int32([1] * 256 + [3] * (WORDS - 256)),
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": WORDS - 1,
}
BPE["tokenizer.ggml.tokens"][256] = "ab"
BPE["tokenizer.ggml.token_type"][256] = 1


def ternary(rng, shape, scale=0.05, shares=(1, 1, 1)):
    return rng.choice(np.float32([-scale, 0, scale]), shape, p=np.array(shares) / sum(shares))


@pytest.fixture
def write(tmp_path):
    """Write a model of one layer with one thing as the test wants it; return its path."""

    def write(architecture="llama", kind="TQ2_0", weights=ternary, keys=(), metadata=(), extra=(), head_dim=64):
        rng, q_size = np.random.default_rng(4), 4 * head_dim
        shapes = {
            "attn_q": (q_size, HIDDEN), "attn_k": (q_size, HIDDEN), "attn_v": (q_size, HIDDEN),
            "attn_output": (HIDDEN, q_size), "ffn_gate": (HIDDEN, HIDDEN), "ffn_up": (HIDDEN, HIDDEN),
            "ffn_down": (HIDDEN, HIDDEN),
        }  # fmt: skip
        norms = {"attn_norm": HIDDEN, "ffn_norm": HIDDEN}
        if architecture.startswith("bitnet"):
            norms |= {"attn_sub_norm": q_size, "ffn_sub_norm": HIDDEN}
        with GGUFWriter(tmp_path / "model.gguf", architecture) as out:
            for key, value in {
                "vocab_size": WORDS, "context_length": 64, "embedding_length": HIDDEN, "feed_forward_length": HIDDEN,
                "block_count": 1, "attention.head_count": 4, "attention.layer_norm_rms_epsilon": 1e-5,
                "attention.key_length": head_dim, "attention.value_length": head_dim, **dict(keys),
            }.items():  # fmt: skip
                out.add_metadata(f"{architecture}.{key}", value)
            for key, value in dict(metadata).items():
                out.add_metadata(key, value)
            out.add_tensor("token_embd.weight", "F16", rng.standard_normal((WORDS, HIDDEN)))
            for name, size in norms.items():
                out.add_tensor(f"blk.0.{name}.weight", "F32", np.ones(size))
            for name, shape in shapes.items():
                out.add_tensor(f"blk.0.{name}.weight", kind, weights(rng, shape))
            for name, values in {"output_norm.weight": np.ones(HIDDEN), **dict(extra)}.items():
                out.add_tensor(name, "F32", values)
        return tmp_path / "model.gguf"

    return write


def warnings(path):
    return lowbit.load(path, threads=1).info()["warnings"]


def only(path, *words):
    [found] = warnings(path)
    for word in words:
        assert word in found


@pytest.mark.parametrize("metadata", [{}, SPM, BPE])
@pytest.mark.parametrize("kind", ["TQ2_0", "TQ1_0", "F16", "Q8_0"])
def test_a_sound_file_is_not_warned_of(write, kind, metadata):
    assert warnings(write(kind=kind, metadata=metadata)) == []


def test_the_embedded_model_is_not_warned_of(embedded):
    assert embedded.info()["warnings"] == []


def test_a_scale_that_is_its_own_inverse_is_seen(write):
    only(write(weights=lambda rng, shape: ternary(rng, shape, 20.0)), "scales", "20", "inverse")


def test_codes_of_another_table_are_seen(write):
    # 00, 01, 10 read as -1, 0, +1 where they were written as 0, +1, -1.
    only(write(weights=lambda rng, shape: ternary(rng, shape, shares=(2, 1, 1))), "67% ", "33%", "another table")


def test_a_few_more_of_one_sign_are_no_other_table(write):
    assert warnings(write(weights=lambda rng, shape: ternary(rng, shape, shares=(11, 10, 10)))) == []


def test_microsofts_model_under_the_name_of_1bitllms_is_seen(write):
    only(write("bitnet", metadata=BPE), "SiLU", "squared ReLU")
    assert warnings(write("bitnet", metadata=SPM)) == []
    assert warnings(write("bitnet-b1.58", metadata=BPE)) == []


@pytest.mark.parametrize(
    ("architecture", "rule"), [("bitnet-b1.58", "Llama 3"), ("bitnet-25", "Llama 3"), ("llama", "default")]
)
def test_a_missing_rule_of_splitting_is_seen(write, architecture, rule):
    only(write(architecture, metadata={k: v for k, v in BPE.items() if not k.endswith(".pre")}), "pre is missing", rule)


def test_float_masters_are_told_of_and_floats_that_are_ternary_are_not(write):
    only(write("bitnet", "F16", weights=lambda rng, shape: 0.1 * rng.standard_normal(shape)), "masters")
    assert warnings(write("bitnet", "F16")) == []


def test_floats_in_a_file_named_ternary_are_seen(write):
    normal = {"kind": "F16", "weights": lambda rng, shape: 0.1 * rng.standard_normal(shape)}
    only(write(metadata={"general.name": "Falcon3 3B 1.58bit"}, **normal), "name says ternary")
    assert warnings(write(metadata={"general.name": "Llama 3"}, **normal)) == []
    assert warnings(write(metadata={"general.name": "Falcon3 3B 1.58bit"}, kind="F16")) == []


@pytest.mark.parametrize("kind", ["TQ2_0", "F16"])
def test_several_scales_of_a_tensor_are_told_of(write, kind):
    def weights(rng, shape):
        return ternary(rng, shape, 1.0) * np.where(np.arange(shape[0]) % 2, 0.0625, 0.125)[:, None]

    only(write(kind=kind, weights=weights), "several scales", "I2_S")


def test_type_numbers_with_two_meanings_are_told_of(write):
    only(write("bitnet", "I2_S"), "I2_S", "36", "bitnet.cpp")
    only(write(metadata={"general.file_type": 40}), "general.file_type is 40", "Q1_0")
    assert warnings(write(metadata={"general.file_type": 37})) == []


def test_heads_of_another_size_than_hidden_over_heads_are_told_of(write):
    only(write(head_dim=128), "128 channels", "64")
    norms = {f"blk.0.attn_{kind}_norm.weight": np.ones(128) for kind in "qk"}
    assert warnings(write("qwen3", head_dim=128, extra=norms)) == []  # Qwen 3's always say it


@pytest.mark.parametrize(
    "template", ["{{ bos_token }}{% for m in messages %}<|start_header_id|><|eot_id|>", "<s><|im_start|><|im_end|>"]
)
def test_a_template_that_writes_bos_too_is_seen(write, template):
    marked = {**BPE, "tokenizer.chat_template": template, "tokenizer.ggml.add_bos_token": True}
    only(write(metadata=marked), "BOS")
    assert warnings(write(metadata={**marked, "tokenizer.ggml.add_bos_token": False})) == []


def test_unmarked_control_tokens_are_seen(write):
    types = BPE["tokenizer.ggml.token_type"].copy()
    types[WORDS - 2] = 1
    only(write(metadata={**BPE, "tokenizer.ggml.token_type": types}), "<|eot_id|> is not marked")


def test_positions_scaled_by_a_tensor_alone_are_told_of(write):
    factors = {"rope_freqs.weight": np.linspace(1, 8, 32)}
    only(write(extra=factors), "rope_freqs")
    assert warnings(write(extra=factors, keys={"rope.scaling.type": "none"})) == []


def test_a_long_context_without_scaling_is_seen_in_the_like_of_llama_3(write):
    only(write(keys={"context_length": 131072, "rope.freq_base": 500000.0}), "Llama 3.1")
    assert warnings(write(keys={"context_length": 8192, "rope.freq_base": 500000.0})) == []


def test_a_template_of_the_files_own_is_to_be_read(write):
    only(write(metadata={**SPM, "tokenizer.chat_template": "{{ messages }}"}), "sandbox")
    chatml = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    assert warnings(write(metadata={**SPM, "tokenizer.chat_template": chatml})) == []


def test_a_tied_head_is_stated(write):
    head = {"output.weight": np.ones((WORDS, HIDDEN))}
    assert lowbit.load(write(), threads=1).info()["tied_embeddings"] is True
    assert lowbit.load(write(extra=head), threads=1).info()["tied_embeddings"] is False


def test_looking_takes_a_moment_only_whatever_the_size(write, monkeypatch):
    from lowbit.formats import open_model
    from lowbit.loading import traps

    path = write(kind="I2_S", architecture="bitnet")
    model, read = lowbit.load(path, threads=1), []
    original = traps._first_rows
    monkeypatch.setattr(traps, "SAMPLED_WEIGHTS", 1024)
    monkeypatch.setattr(traps, "_first_rows", lambda *a: read.append(original(*a)) or read[-1])
    with open_model(path) as file:
        assert traps.find_traps(file, model.config, None)
    assert [part.nbytes for part, _ in read] == [1024 // 4 + 32] * 4


def test_the_command_shows_warnings_and_the_beginning_of_the_template(write, capsys):
    template = "{{ messages }} \x1b[31m\n" + "x" * 500
    path = write(metadata={**SPM, "tokenizer.chat_template": template})
    assert cli.main(["info", str(path)]) == 0
    out = capsys.readouterr().out
    assert "xxxx... (521 characters, SHA-256 " in out
    assert "x" * 60 not in out
    assert "\x1b" not in out
    assert out.splitlines()[-1].startswith("warning: the chat template")
    assert cli.main(["info", str(path), "--template"]) == 0
    assert capsys.readouterr().out == "{{ messages }} \\x1b[31m\n" + "x" * 500 + "\n"
    assert cli.main(["info", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chat_template"] == template
    assert cli.main(["info", str(write(metadata=SPM)), "--template"]) == 2
