"""Real models from the test data, and small ones made here: random ones, and one that writes a given script."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from small_model import TEXTS, add_tokenizer

import lowbit
from lowbit.formats import open_model
from lowbit.formats.gguf_writer import GGUFWriter


@pytest.fixture(scope="session")
def golden(test_data):
    """What an independent float64 program computed for the real models."""
    return json.loads((test_data / "models/golden.json").read_text("utf-8"))


@pytest.fixture(scope="session")
def real_model(test_data):
    """`real_model(file, threads)` loads one of the real models, once."""
    return functools.cache(lambda file, threads=1: lowbit.load(test_data / "models" / file, threads=threads))


@pytest.fixture(scope="session")
def embedded():
    """The model that comes with lowbit."""
    return lowbit.load(threads=2)


def llama_tensors(vocab=16, hidden=32, wide=48, heads=4, kv_heads=2, layers=1):
    """Shapes by name of a llama."""
    kv = hidden // heads * kv_heads
    layer = {
        "attn_norm": (hidden,),
        "attn_q": (hidden, hidden),
        "attn_k": (kv, hidden),
        "attn_v": (kv, hidden),
        "attn_output": (hidden, hidden),
        "ffn_norm": (hidden,),
        "ffn_gate": (wide, hidden),
        "ffn_up": (wide, hidden),
        "ffn_down": (hidden, wide),
    }
    return {
        "token_embd.weight": (vocab, hidden),
        **{f"blk.{i}.{name}.weight": shape for i in range(layers) for name, shape in layer.items()},
        "output_norm.weight": (hidden,),
    }


@pytest.fixture
def write_llama(tmp_path):
    """Write a random llama of three layers without a tokenizer, changed as the test wants; return the path.

    What `shapes` says of a tensor of the first layer holds for those of the others too.
    """

    def write(architecture="llama", shapes=None, keys=None, kind="F32", name="small.gguf", **sizes):
        size = {"vocab": 16, "hidden": 32, "wide": 48, "heads": 4, "kv_heads": 2, "layers": 3, **sizes}
        tensors = llama_tensors(**size)
        for tensor, shape in (shapes or {}).items():
            tensors |= {tensor.replace("blk.0.", f"blk.{i}."): shape for i in range(size["layers"])}
        metadata = {
            "vocab_size": size["vocab"],
            "context_length": 64,
            "embedding_length": size["hidden"],
            "feed_forward_length": size["wide"],
            "block_count": size["layers"],
            "attention.head_count": size["heads"],
            "attention.head_count_kv": size["kv_heads"],
            "attention.layer_norm_rms_epsilon": 1e-5,
            **(keys or {}),
        }
        rng = np.random.default_rng(11)
        with GGUFWriter(tmp_path / name, architecture) as out:
            for key, value in metadata.items():
                if value is not None:
                    out.add_metadata(f"{architecture}.{key}", value, "u32" if isinstance(value, int) else None)
            for tensor, shape in tensors.items():
                values = None if shape is None else rng.standard_normal(shape).astype(np.float32)
                if values is not None:
                    out.add_tensor(tensor, kind if len(shape) == 2 else "F32", values)
        return tmp_path / name

    return write


@pytest.fixture
def vocabulary(tmp_path):
    """A GGUF file that holds a tokenizer of `TEXTS` and nothing else."""
    path = tmp_path / "vocabulary.gguf"
    with GGUFWriter(path, "llama") as out:
        add_tokenizer(out)
    return path


@pytest.fixture(scope="session")
def scripted(tmp_path_factory):
    """`scripted(text)` loads a model that continues the prompt "a" with exactly this text, then ends it.

    It has no attention and no feed-forward to speak of, and one channel per token: what comes next depends on the
    last token only, and its logit is far above all others. So a text must not hold a character twice; `loop` gives
    the token that follows its last one instead of the end of the text.
    """
    folder = tmp_path_factory.mktemp("scripted")

    def token_ids(text):
        ids = []
        for letter in text:
            ids += [TEXTS.index(letter)] if letter in TEXTS else [3 + byte for byte in letter.encode()]
        return ids

    @functools.cache
    def load(text, loop=None, context=64):
        ids = [*token_ids("a"), *token_ids(text), 2 if loop is None else TEXTS.index(loop)]
        assert len(set(ids[:-1])) == len(ids) - 1
        n = len(TEXTS)
        output = np.zeros((n, n), np.float32)
        output[ids[1:], ids[:-1]] = 10
        path = folder / f"{len(list(folder.iterdir()))}.gguf"
        zeros = {name: np.zeros(shape, np.float32) for name, shape in llama_tensors(n, n, 160, 1, 1).items()}
        for name in ("attn_q", "attn_k", "attn_v"):
            zeros[f"blk.0.{name}.weight"] = np.zeros((2, n), np.float32)
        zeros["blk.0.attn_output.weight"] = np.zeros((n, 2), np.float32)
        zeros |= {"token_embd.weight": np.eye(n, dtype=np.float32), "output.weight": output}
        zeros["output_norm.weight"] = np.ones(n, np.float32)
        with GGUFWriter(path, "llama") as out:
            for key, value in {"context_length": context, "embedding_length": n, "feed_forward_length": 160,
                               "block_count": 1, "attention.head_count": 1, "attention.key_length": 2,
                               "attention.value_length": 2}.items():  # fmt: skip
                out.add_metadata(f"llama.{key}", value, "u32")
            out.add_metadata("llama.attention.layer_norm_rms_epsilon", 1e-5)
            add_tokenizer(out)
            for name, values in zeros.items():
                out.add_tensor(name, "F32", values)
        return lowbit.load(path)

    return load


@pytest.fixture(scope="session")
def oracle():
    """`oracle(path)` gives a file's configuration, and its weights for `lowbit.reference`."""
    from lowbit.families import plan_of
    from lowbit.formats.blocks import TERNARY, dequantize, ternary_codes
    from lowbit.loading.ternary import ternary_of
    from lowbit.reference import IntLinear, TernaryLinear

    groups = {"Q4_0": 32, "Q4_1": 32, "Q8_0": 32}

    def role_of(info, raw, plan):
        if info.type in TERNARY:
            codes, scales = ternary_codes(info.type, raw, info.shape)
            return TernaryLinear(codes.astype(np.int8) - 1, scales.astype(np.float64))
        values = dequantize(info.type, raw, info.shape)
        if info.type in groups:
            blocks = raw.reshape(info.shape[0], -1, raw.size * groups[info.type] // values.size)
            scales = blocks[:, :, :2].copy().view("<f2")[:, :, 0].astype(np.float64)
            minima = np.zeros_like(scales)
            if info.type == "Q4_1":
                minima = blocks[:, :, 2:4].copy().view("<f2")[:, :, 0].astype(np.float64)
            multiples = values.reshape(*scales.shape, -1) - minima[:, :, None]
            codes = np.rint(multiples / np.where(scales, scales, 1)[:, :, None])
            return IntLinear(codes.reshape(info.shape).astype(np.int8), scales, -minima)
        if plan.bit_linear and values.ndim == 2 and info.name.startswith("blk."):
            codes, scale = ternary_of(values)
            return TernaryLinear(codes.astype(np.int8) - 1, scale)
        return values

    @functools.cache
    def read(path):
        file = open_model(path)
        plan = plan_of(file)
        weights = {
            name.removesuffix(".weight"): role_of(info, file.read(name), plan) for name, info in file.tensors.items()
        }
        return plan, weights

    return read
