"""Crafted files: what attackers have done to loaders, one file for each way that concerns lowbit.

The containers' own tests hold most of them; those of GGUF, safetensors and llama2.c are collected from there. A file
here is a dict of names and contents; the first is the one to open, unless the folder is.
"""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import seeds
from seeds import BOOL, F32, I32, STRING, U32

__all__ = ["CRAFTED"]

TESTS = Path(__file__).resolve().parents[1]


def _module(folder: str, name: str) -> ModuleType:
    sys.path.insert(0, str(TESTS / folder))
    try:
        spec = importlib.util.spec_from_file_location(name, TESTS / folder / f"{name}.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(TESTS / folder))


def model(*tensors: tuple[str, tuple[int, ...], int, bytes], **changes: Any) -> bytes:
    """The tiny Llama of the seeds, with keys changed; values are (type, value) or None for no such key."""
    return seeds.llama(0, 0, tensors, **changes).encode()


def vocabulary(kind: str = "llama", **changes: Any) -> bytes:
    """A vocabulary in GGUF, with keys changed likewise."""
    return seeds.vocabulary(kind, **changes).encode()


def tokenizer(**changes: Any) -> bytes:
    """A tokenizer.json with parts of its model changed."""
    root = json.loads(json.dumps(seeds.TOKENIZER_JSON))
    for key, value in changes.items():
        (root["model"] if key in root["model"] else root)[key] = value
    return json.dumps(root).encode()


def folder(file: str, content: Any, **more: bytes) -> dict[str, bytes]:
    """A model folder in which one of the JSON files is another."""
    files = {
        "config.json": json.dumps(seeds.CONFIG).encode(),
        "model.safetensors.index.json": json.dumps(seeds.INDEX).encode(),
        **{name: seeds.weights(name).encode() for name in ("model-1.safetensors", "model-2.safetensors")},
    }
    return {**files, file: content if isinstance(content, bytes) else json.dumps(content).encode(), **more}


def weight_map(name: str) -> dict[str, Any]:
    """An index that looks for one tensor somewhere else."""
    return {"weight_map": {**seeds.INDEX["weight_map"], "model.norm.weight": name}}


def ones(**changes: int) -> bytes:
    """A llama2.c header of a model with one of everything."""
    header = {"dim": 8, "hidden": 1, "layers": 1, "heads": 1, "kv": 1, "vocab": 1, "seq": 1, **changes}
    return struct.pack("<7i", *header.values())


_gguf = _module("formats", "test_gguf_hostile")
_safetensors = _module("families", "test_safetensors_hostile")
_many = [(f"t{i}", 1) for i in range(1 << 17)]

CRAFTED: dict[str, dict[str, Any]] = {
    "gguf": {
        **_gguf.HOSTILE,
        **{name: content for name, (content, _) in _gguf.UNSUPPORTED.items()},
        **{name: lambda make=make: make().build() for name, make in _gguf.LARGE.items()},
        "a gigabyte of layers": lambda: model(**{"llama.block_count": (U32, 2**31 - 1)}),
        "1024 layers of which one is there": lambda: model(**{"llama.block_count": (U32, 1024)}),
        "block count is text": lambda: model(**{"llama.block_count": (STRING, "1")}),
        "block count is 0": lambda: model(**{"llama.block_count": (U32, 0)}),
        "block count is an array of texts": lambda: model(**{"llama.block_count": (STRING, ["x" * 1000] * 1000)}),
        "feed-forward sizes that differ by layer": lambda: model(
            **{"llama.feed_forward_length": (U32, [64, 65] * 999)}
        ),
        "architecture of another world": lambda: model(**{"general.architecture": (STRING, "x" * 64)}),
        "context of 2**32 - 1": lambda: model(**{"llama.context_length": (U32, 2**32 - 1)}),
        "context of 2**24": lambda: model(**{"llama.context_length": (U32, 2**24)}),
        "no heads": lambda: model(**{"llama.attention.head_count": (U32, 0)}),
        "2**31 heads": lambda: model(**{"llama.attention.head_count": (U32, 2**31)}),
        "head size of 2**30": lambda: model(**{"llama.attention.key_length": (U32, 2**30)}),
        "vocabulary of 2**20": lambda: model(**{"llama.vocab_size": (U32, 2**20)}),
        "epsilon that is no number": lambda: model(**{"llama.attention.layer_norm_rms_epsilon": (F32, float("nan"))}),
        "base that is infinite": lambda: model(**{"llama.rope.freq_base": (F32, float("inf"))}),
        "scaling by 0": lambda: model(**{"llama.rope.scaling.factor": (F32, 0.0)}),
        "window of 2**31": lambda: model(**{"llama.attention.sliding_window": (U32, 2**31)}),
        "window that is a text": lambda: model(**{"llama.attention.sliding_window": (STRING, "8")}),
        "scale that is no number": lambda: model(**{"llama.attention.scale": (F32, float("nan"))}),
        "windows of a million layers": lambda: seeds.gemma3(
            **{"llama.attention.sliding_window_pattern": (BOOL, [1] * 1_000_000)}
        ).encode(),
        "windows in 0 of so many layers": lambda: seeds.gemma3(
            **{"llama.attention.sliding_window_pattern": (U32, 0)}
        ).encode(),
        "base of windows that is infinite": lambda: seeds.gemma3(
            **{"llama.rope.freq_base_swa": (F32, float("inf"))}
        ).encode(),
        "factor of logits of 0": lambda: seeds.minicpm(**{"llama.logit_scale": (F32, 0.0)}).encode(),
        "factor of the embedding of 1e30": lambda: seeds.minicpm(**{"llama.embedding_scale": (F32, 1e30)}).encode(),
        "original context of 0": lambda: seeds.minicpm(
            **{"llama.rope.scaling.original_context_length": (U32, 0)}
        ).encode(),
        "length of queries that is no number": lambda: seeds.minicpm(
            **{"llama.rope.scaling.attn_factor": (F32, float("nan"))}
        ).encode(),
        "states of 512 squared for each of 16384 heads": lambda: seeds.qwen35(
            **{
                "qwen35.ssm.state_size": (U32, 512),
                "qwen35.ssm.time_step_rank": (U32, 16384),
                "qwen35.ssm.inner_size": (U32, 1 << 23),
            }
        ).encode(),
        "states of another size": lambda: seeds.qwen35(**{"qwen35.ssm.state_size": (U32, 8)}).encode(),
        "states in 3 groups": lambda: seeds.qwen35(**{"qwen35.ssm.group_count": (U32, 3)}).encode(),
        "convolution over 2**31 tokens": lambda: seeds.qwen35(**{"qwen35.ssm.conv_kernel": (U32, 2**31)}).encode(),
        "full attention in each 0th layer": lambda: seeds.qwen35(
            **{"qwen35.full_attention_interval": (U32, 0)}
        ).encode(),
        "no full attention": lambda: seeds.qwen35(**{"qwen35.attention.recurrent_layers": (BOOL, [1] * 3)}).encode(),
        "all layers predict further tokens": lambda: seeds.qwen35(**{"qwen35.nextn_predict_layers": (U32, 3)}).encode(),
        "sections that leave out channels": lambda: seeds.qwen35(
            **{"qwen35.rope.dimension_sections": (I32, [0, 0, 0, 4])}
        ).encode(),
        "decay that is no number": lambda: seeds.qwen35([("blk.0.ssm_a", (4,), 0, b"\xff" * 16)]).encode(),
        "decay that grows without bound": lambda: seeds.qwen35(
            [("blk.0.ssm_a", (4,), 0, struct.pack("<4f", *[1e38] * 4))]
        ).encode(),
        "latents of 2**31": lambda: seeds.deepseek2(**{"deepseek2.attention.kv_lora_rank": (U32, 2**31)}).encode(),
        "latents of 512 for each of 16384 heads": lambda: seeds.deepseek2(
            **{
                "deepseek2.attention.kv_lora_rank": (U32, 512),
                "deepseek2.attention.head_count": (U32, 16384),
                "deepseek2.attention.head_count_kv": (U32, 16384),
            }
        ).encode(),
        "latents of another size": lambda: seeds.deepseek2(**{"deepseek2.attention.kv_lora_rank": (U32, 16)}).encode(),
        "keys that are not longer than what is rotated": lambda: seeds.deepseek2(
            newer=True, **{"deepseek2.attention.key_length_mla": (U32, 8)}
        ).encode(),
        "key heads of latents": lambda: seeds.deepseek2(
            newer=True, **{"deepseek2.attention.head_count_kv": (U32, 2)}
        ).encode(),
        "five groups of four experts": lambda: seeds.deepseek2(**{"deepseek2.expert_group_count": (U32, 5)}).encode(),
        "sinks that are no numbers": lambda: seeds.gpt_oss(
            [("blk.0.attn_sinks.weight", (seeds.HEADS,), 0, b"\xff" * 4 * seeds.HEADS)]
        ).encode(),
        "sinks of another number of heads": lambda: seeds.gpt_oss(
            [("blk.0.attn_sinks.weight", (1,), 0, bytes(4))]
        ).encode(),
        "biases of other experts": lambda: seeds.gpt_oss([("blk.0.ffn_up_exps.bias", (32, 3), 0, bytes(384))]).encode(),
        "no window": lambda: seeds.gpt_oss(**{"gpt-oss.attention.sliding_window": None}).encode(),
        "groups of the router's outputs": lambda: seeds.gpt_oss(**{"gpt-oss.expert_group_count": (U32, 2)}).encode(),
        "clamp that is no number": lambda: seeds.gpt_oss(**{"gpt-oss.swiglu_clamp_exp": (F32, float("nan"))}).encode(),
        "tokens are a number": lambda: model(**{"llama.vocab_size": None, "tokenizer.ggml.tokens": (U32, 16)}),
        "tokens are a text": lambda: model(**{"llama.vocab_size": None, "tokenizer.ggml.tokens": (STRING, "a" * 16)}),
        "norm that is no number": lambda: model(("output_norm.weight", (32,), 0, b"\xff" * 128)),
        "scale that is infinite": lambda: model(("blk.0.ffn_up.weight", (32, 64), 8, (b"\0\x7c" + bytes(32)) * 64)),
        "scale of one row that is no number": lambda: model(
            (
                "blk.0.ffn_up.weight",
                (32, 64),
                8,
                b"".join((b"\0\x7e" if i == 3 else b"\0\x38") + bytes(32) for i in range(64)),
            )
        ),
        "scale of I2_S that is no number": lambda: seeds.llama(
            36, 128, [("blk.0.ffn_up.weight", (128, 128), 36, bytes(4096) + b"\xff" * 4 + bytes(28))]
        ).encode(),
        "code 3": lambda: seeds.llama(
            36, 128, [("blk.0.ffn_up.weight", (128, 128), 36, b"\xff" * 4096 + b"\0\0\0\x3f" + bytes(28))]
        ).encode(),
        "a rotation, though nobody says how": lambda: model(**{"prism.hadamard.version": (U32, 1)}),
        "a rotation of another kind": lambda: model(**{"prism.hadamard.x": (STRING, "y" * 999)}),
        **{
            f"a rotation whose {key} is {what}": lambda key=key, value=value: seeds.rotated(**{key: value}).encode()
            for key, what, value in (
                ("version", "3", (U32, 3)),
                ("block_size", "0", (U32, 0)),
                ("block_size", "2**31", (U32, 2**31)),
                ("block_size", "64", (U32, 64)),
                ("sign_widths", "one too many", (I32, [32, 64, 16, 48])),
                ("sign_widths", "empty", (I32, [])),
                ("sign_widths", "beyond all signs", (I32, [2**31 - 16, 64, 16])),
                ("sign_values", "cut", (I32, [1] * 111)),
                ("sign_values", "of size 2", (I32, [2] * 112)),
                ("sign_values", "a million", (I32, [1] * 1_000_000)),
                ("weight_names", "a tensor that is not there", (STRING, ["blk.7.attn_q.weight"])),
                ("weight_names", "a hundred thousand of them", (STRING, [f"{i}" for i in range(100_000)])),
                ("inverse_weight_names", "all", (STRING, ["blk.0.attn_qkv.weight"])),
                ("inverse_weight_names", "none", None),
                ("tied_output", "a number", (U32, 1)),
            )
        },
        "a rotation with signs for a million channels that nothing has": lambda: seeds.rotated(
            sign_widths=(I32, [32, 64, 16, 1 << 20]), sign_values=(I32, [1] * ((1 << 20) + 112))
        ).encode(),
        "power of two beyond float32": lambda: model(("blk.0.ffn_up.weight", (32, 64), 39, (b"\xff" + bytes(16)) * 64)),
        "scale of IQ4_NL that is infinite": lambda: model(
            ("blk.0.ffn_up.weight", (32, 64), 20, (b"\0\x7c" + bytes(16)) * 64)
        ),
        "scale of IQ1_M that is no number": lambda: seeds.llama(
            0, 256, [("blk.0.ffn_up.weight", (256, 256), 29, (bytes(49) + b"\xf0" * 7) * 256)]
        ).encode(),
        "codes that are all 3": lambda: seeds.llama(
            0, 256, [("blk.0.ffn_up.weight", (256, 256), 142, (b"\0\x3c" + b"\xff" * 32) * 512)]
        ).encode(),
        "a type whose blocks are cut": lambda: seeds.llama(
            0, 256, [("blk.0.ffn_up.weight", (256, 256), 42, bytes(42 * 256 - 1))]
        ).encode(),
        "heads of 16384": lambda: seeds.llama(0, 0, [], head_dim=16384).encode(),
        "template of many marks": lambda: model(**{"tokenizer.chat_template": (STRING, "[INST]" * 170_000)}),
        "template of many roles": lambda: model(
            **{"tokenizer.chat_template": (STRING, "<|system|><|user|><|assistant|>" + "user|>" * 140_000)}
        ),
        "template of 20 MB": lambda: model(**{"tokenizer.chat_template": (STRING, "<|im_start|>" * 1_700_000)}),
    },
    "safetensors": dict(_safetensors.BAD),
    "llama2c": {
        **{
            f"{name} is {value}": ones(**{name: value})
            for name in ("dim", "hidden", "layers", "heads", "kv", "vocab", "seq")
            for value in (0, -1, 2**31 - 1, -(2**31))
        },
        "terabytes": ones(dim=65536, hidden=2**20, layers=1024, vocab=2**20, seq=2**24),
        "version 2 with groups of 0": struct.pack("<Ii7iBi", 0x616B3432, 2, 8, 16, 1, 2, 1, 6, 4, 1, 0).ljust(
            256, b"\0"
        ),
        "cut in the header": struct.pack("<Ii", 0x616B3432, 1) + bytes(40),
    },
    "gguf_tokenizer": {
        "Gemma 4 without merges": lambda: vocabulary("gemma4", **{**seeds.RAW, "tokenizer.ggml.merges": None}),
        "Gemma 4 whose bytes are words": lambda: vocabulary(
            "gemma4", **{**seeds.RAW, "tokenizer.ggml.token_type": (I32, [1] * (seeds.N_WORDS + 2))}
        ),
        "Gemma 4 of byte tokens alone, with a type of 7": lambda: vocabulary(
            "gemma4", **{**seeds.RAW, "tokenizer.ggml.token_type": (I32, [7] * (seeds.N_WORDS + 2))}
        ),
        "Gemma 4 with a merge to a token that is not there": lambda: vocabulary(
            "gemma4", **{**seeds.RAW, "tokenizer.ggml.merges": (STRING, ["a a"])}
        ),
        **{
            f"a rule of its own, {name}": lambda name=name: vocabulary("gpt2", **{"tokenizer.ggml.pre": (STRING, name)})
            for name in ("deepseek-llm", "superbpe", "tiny_aya", "whitespace", "gemma4", "kimi-k2")
        },
        "scores of one byte": lambda: vocabulary(**{"tokenizer.ggml.scores": (BOOL, [1] * seeds.N_WORDS)}),
        "types of one byte": lambda: vocabulary(**{"tokenizer.ggml.token_type": (BOOL, [1] * seeds.N_WORDS)}),
        "types fewer than tokens": lambda: vocabulary(**{"tokenizer.ggml.token_type": (I32, [1])}),
        "type of 2**31 - 1": lambda: vocabulary(**{"tokenizer.ggml.token_type": (I32, [2**31 - 1] * seeds.N_WORDS)}),
        "byte token of -1": lambda: vocabulary(**{"tokenizer.ggml.tokens": (STRING, seeds.words_with(3, "<0x-1>"))}),
        "token of a megabyte": lambda: vocabulary(
            **{"tokenizer.ggml.tokens": (STRING, seeds.words_with(3, "x" * 2**20))}
        ),
        "score that is no number": lambda: vocabulary(
            **{"tokenizer.ggml.scores": (F32, [float("nan")] * seeds.N_WORDS)}
        ),
        "tokens are a number": lambda: vocabulary(**{"tokenizer.ggml.tokens": (U32, 7)}),
        "a million tokens and no scores": lambda: vocabulary(
            **{"tokenizer.ggml.tokens": (STRING, ["ab"] * 2**20), "tokenizer.ggml.scores": None}
        ),
        "more tokens than a vocabulary": lambda: vocabulary(**{"tokenizer.ggml.tokens": (STRING, [""] * (2**20 + 1))}),
        "merge that makes no token": lambda: vocabulary("gpt2", **{"tokenizer.ggml.merges": (STRING, ["a b", "b zz"])}),
        "merge longer than any token": lambda: vocabulary(
            "gpt2", **{"tokenizer.ggml.merges": (STRING, ["a " + "b" * 10**6])}
        ),
        "merge without a space": lambda: vocabulary("gpt2", **{"tokenizer.ggml.merges": (STRING, ["ab"])}),
        "2**20 merges of nothing": lambda: vocabulary("gpt2", **{"tokenizer.ggml.merges": (STRING, [""] * 2**20)}),
        "splitting rule of its own": lambda: vocabulary("gpt2", **{"tokenizer.ggml.pre": (STRING, "(a+)+$")}),
        "kind that nobody knows": lambda: vocabulary(**{"tokenizer.ggml.model": (STRING, "x" * 10**6)}),
    },
    "config_json": {
        "code to be run": folder(
            "config.json",
            {**seeds.CONFIG, "auto_map": {"AutoModel": "evil.Model"}},
            **{"evil.py": b"raise SystemExit('run')"},
        ),
        "nested": folder("config.json", b'{"a":' * 10**5 + b"1" + b"}" * 10**5),
        "a number of 5000 digits": folder("config.json", b'{"vocab_size": ' + b"9" * 5000 + b"}"),
        "a key twice": folder("config.json", json.dumps(seeds.CONFIG).encode()[:-1] + b', "vocab_size": 7}'),
        "of brackets": folder("config.json", b'{"a": [' + b"[]," * 330_000 + b"[]]}"),
        "too large": folder("config.json", b"{" + b" " * (2 << 20) + b"}"),
        "2**30 layers": folder("config.json", {**seeds.CONFIG, "num_hidden_layers": 2**30}),
        "1024 layers of which one is there": folder("config.json", {**seeds.CONFIG, "num_hidden_layers": 1024}),
        "names with control characters": folder("config.json", {**seeds.CONFIG, "architectures": ["\x1b[2J" * 9] * 9}),
        "layers of a kind each": folder("config.json", {**seeds.CONFIG, "layer_types": ["full_attention"] * 50_000}),
        "a head size of 2**30": folder("config.json", {**seeds.CONFIG, "head_dim": 2**30}),
    },
    "index_json": {
        **{
            f"leads to {name[:30]!r}": folder("model.safetensors.index.json", weight_map(name))
            for name in (
                "../model-1.safetensors",
                "/etc/passwd",
                "..",
                "",
                "sub/x.safetensors",
                "a\0.safetensors",
                "model.bin",
                "C:\\x.safetensors",
                "x" * 10**6,
            )
        },
        "a thousand shards": folder(
            "model.safetensors.index.json", {"weight_map": {f"t{i}": f"m{i}.safetensors" for i in range(1025)}}
        ),
        "names of a megabyte": folder(
            "model.safetensors.index.json",
            {"weight_map": {**seeds.INDEX["weight_map"], "x" * 10**6: "model-1.safetensors"}},
        ),
        "of brackets": folder("model.safetensors.index.json", b'{"weight_map": [' + b"[]," * 2 * 10**6 + b"[]]}"),
        "many tensors": folder(
            "model.safetensors.index.json", {"weight_map": {name: "model-1.safetensors" for name, _ in _many[:60_000]}}
        ),
    },
    "tokenizer_json": {
        "merge longer than any token": tokenizer(merges=[["a", "b" * 100_000]]),
        "merge that makes no token": tokenizer(merges=["a zz"]),
        "pattern of its own": tokenizer(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
        ),
        "pattern of a megabyte": tokenizer(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "(" * 10**6}, "behavior": "Isolated"}
        ),
        "id of 2**62": tokenizer(vocab={"a": 2**62}),
        "id of 2**20 - 1": tokenizer(vocab={**seeds.TOKENIZER_JSON["model"]["vocab"], "zz": 2**20 - 1}),
        "id of -1": tokenizer(vocab={"a": -1}),
        "token of half a pair": tokenizer(vocab={"\ud800": 1}),
        "normalizer that multiplies": tokenizer(
            normalizer={
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 16}] * 16,
            }
        ),
        "of brackets": b'{"model": [' + b"[]," * 2 * 10**6 + b"[]]}",
        "of empty texts": b'{"model": [' + b'"",' * 2 * 10**6 + b'""]}',
        "of objects": b'{"model": [' + b"{}," * 2 * 10**6 + b"{}]}",
        "a million merges of nothing": tokenizer(merges=[["", ""]] * 10**6),
        "nested": b'{"model":' * 10**5,
        "a number of 5000 digits": b'{"model":' + b"9" * 5000 + b"}",
        "a key twice": b'{"model": {}, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
    },
    "tokenizer_model": {
        "piece longer than the file": b"\n\xff\xff\xff\xff\x0f",
        "length of 2**63": b"\n\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
        "varint without an end": b"\n" + b"\xff" * 10**6,
        "a million empty pieces": b"\n\x00" * 2**20,
        "more pieces than a vocabulary": b"\n\x03\n\x01a" * (3 * 2**17 + 1),
        "table that leads outside": seeds.tokenizer_model(table=struct.pack("<I", 2**31) + bytes(64)).encode(),
        "table of a byte": seeds.tokenizer_model(table=b"\1").encode(),
        "a group inside of a group": b"\n\x02\x0b\x0b" + b"\x0b" * 10**6,
    },
    "tokenizer_bin": {
        "token of 2**32 - 1 bytes": seeds.tokenizer_bin().encode() + struct.pack("<fI", 0.0, 2**32 - 1),
        "score that is no number": seeds.tokenizer_bin().encode() + struct.pack("<fI", float("nan"), 1) + b"x",
        "half a million empty tokens": seeds.tokenizer_bin().encode() + bytes(4 << 20),
        "more tokens than a vocabulary": seeds.tokenizer_bin().encode() + bytes(8 << 20),
    },
    "tiktoken": {
        "rank twice": seeds.tiktoken().encode().replace(b" 7\n", b" 8\n"),
        "token twice": seeds.tiktoken().encode().replace(b"Ig==", b"IQ=="),
        "token that is no base64": seeds.tiktoken().encode().replace(b"Ig==", b"I==="),
        "a line of a megabyte": b"QUFB" * 2**18 + b" 0\n",
        "a million lines": b"IQ== 0\n" * 10**6,
    },
}
"""By row of `targets.TARGETS` and name; a value may be a function, so that a large file is made when it is needed."""
