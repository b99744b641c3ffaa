"""Small valid files of every format that lowbit reads, as trees of fields for `mutation`."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from mutation import Count, Group, Number, Raw, Sized, Varint

__all__ = [
    "CONFIG", "CONFIGS", "INDEX", "SAFETENSORS", "TOKENIZER_JSON", "TOKENIZER_JSON_LACKING", "TREES", "deepseek2",
    "gemma3", "gguf", "gpt_oss", "llama", "minicpm", "qwen35", "safetensors", "vocabulary",
]  # fmt: skip

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
FIELDS = 12
HIDDEN, WIDE, HEADS, CONTEXT = 32, 64, 2, 64


def text(value: str | bytes) -> Sized:
    """A string of GGUF."""
    return Sized([Raw(value.encode() if isinstance(value, str) else value)])


def _scalar(kind: int, value: Any) -> Any:
    return text(value) if kind == STRING else Number({U32: "<I", I32: "<i", F32: "<f", BOOL: "<B"}[kind], value)


def pair(key: str, kind: int, value: Any) -> Group:
    """A key of GGUF with its value; a list becomes an array."""
    if isinstance(value, list):
        elements = Sized(_shortened([_scalar(kind, v) for v in value]), in_bytes=False)
        return Group([text(key), Number("<I", ARRAY), Number("<I", kind), elements])
    return Group([text(key), Number("<I", kind), _scalar(kind, value)])


def _shortened(fields: list[Any]) -> list[Any]:
    """All but the first and last few fields of a long list as one: more of them would only cost time."""
    rest = fields[FIELDS:-FIELDS]
    return [*fields[:FIELDS], Raw(Group(rest).encode(), len(rest)), *fields[-FIELDS:]] if rest else fields


def gguf(pairs: Sequence[tuple[str, int, Any]], tensors: Sequence[tuple[str, tuple[int, ...], int, bytes]]) -> Group:
    """A GGUF file; shapes as in the file, the fastest dimension first."""
    keys = Group([pair(*p) for p in pairs])
    described, data = [], b""
    for name, shape, kind, raw in tensors:
        dims = Sized([Number("<Q", n) for n in shape], format="<I", in_bytes=False)
        described.append(Group([text(name), dims, Number("<I", kind), Number("<Q", len(data))]))
        data += raw + bytes(-len(raw) % 32)
    infos = Group(described)
    header = Group([Raw(b"GGUF"), Number("<I", 3), Count("<Q", infos), Count("<Q", keys), keys, infos])
    return Group([header, Raw(bytes(-len(header.encode()) % 32)), Raw(data)])


def _floats(*shape: int) -> bytes:
    return np.random.default_rng(7).uniform(0.5, 1.0, shape).astype("<f4").tobytes()


def _weights(kind: int, values: int) -> bytes:
    """Weights of one ggml type: F32 (0), Q8_0 (8), IQ1_S (19), IQ4_NL (20), TQ1_0 (34), TQ2_0 (35), I2_S (36)."""
    if kind == 0:
        return _floats(values)
    one = struct.pack("<e", 0.5)
    if kind == 36:
        return b"\x55" * (values // 4) + struct.pack("<f", 0.5) + bytes(28)
    if kind in (19, 20):
        return (one + b"\x1b" * 48) * (values // 256) if kind == 19 else (one + b"\x94" * 16) * (values // 32)
    if kind == 34:
        return (b"\x80" * 52 + one) * (values // 256)
    return (b"\x55" * 64 + one) * (values // 256) if kind == 35 else (one + bytes(32)) * (values // 32)


_WORDS = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{i:02X}>", 6) for i in range(256)), ("▁", 1), ("a", 1),
          ("b", 1), ("▁a", 1), ("ab", 1), ("<|im_end|>", 4)]  # fmt: skip
_LETTERS = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
_BYTE_LEVEL = [*_LETTERS, "ab", "abc", "Ġa", "<s>", "</s>"]
_MERGES = ["a b", "ab c", "Ġ a"]

Keys = dict[str, tuple[int, Any]]
N_WORDS = len(_WORDS)


def words_with(at: int, word: str) -> list[str]:
    """The words of the SentencePiece vocabulary, one of them another."""
    return [word if i == at else old for i, (old, _) in enumerate(_WORDS)]


def _changed(keys: Keys, changes: dict[str, tuple[int, Any] | None]) -> list[tuple[str, int, Any]]:
    merged = {**keys, **changes}
    return [(key, *value) for key, value in merged.items() if value is not None]


def vocabulary(kind: str, **changes: Any) -> Group:
    """A GGUF file with nothing but a vocabulary: SentencePiece (``llama``) or byte-level (``gpt2``)."""
    keys: Keys = {"general.architecture": (STRING, "llama"), "tokenizer.ggml.model": (STRING, kind)}
    if kind == "llama":
        keys |= {
            "tokenizer.ggml.tokens": (STRING, [word for word, _ in _WORDS]),
            "tokenizer.ggml.scores": (F32, [-float(i) for i in range(N_WORDS)]),
            "tokenizer.ggml.token_type": (I32, [kind for _, kind in _WORDS]),
            "tokenizer.ggml.bos_token_id": (U32, 1),
            "tokenizer.ggml.eos_token_id": (U32, 2),
            "tokenizer.ggml.unknown_token_id": (U32, 0),
            "tokenizer.ggml.add_space_prefix": (BOOL, 1),
        }
    else:
        keys |= {
            "tokenizer.ggml.pre": (STRING, "llama-bpe"),
            "tokenizer.ggml.tokens": (STRING, _BYTE_LEVEL),
            "tokenizer.ggml.token_type": (I32, [1] * (len(_BYTE_LEVEL) - 2) + [3, 3]),
            "tokenizer.ggml.merges": (STRING, _MERGES),
            "tokenizer.ggml.bos_token_id": (U32, len(_BYTE_LEVEL) - 2),
            "tokenizer.ggml.add_bos_token": (BOOL, 1),
        }
    return gguf(_changed(keys, changes), [])


def llama(
    kind: int, cols: int, instead: Sequence[tuple[str, tuple[int, ...], int, bytes]] = (), head_dim: int = 0,
    **changes: Any,
) -> Group:  # fmt: skip
    """A Llama of one layer with linear weights of one type; `instead` replaces tensors, `changes` keys."""
    hidden, wide = max(HIDDEN, cols), max(WIDE, cols)
    head_dim = head_dim or hidden // HEADS
    keys: Keys = {
        "general.architecture": (STRING, "llama"),
        "general.name": (STRING, "seed"),
        "general.alignment": (U32, 32),
        "llama.vocab_size": (U32, 16),
        "llama.context_length": (U32, CONTEXT),
        "llama.embedding_length": (U32, hidden),
        "llama.block_count": (U32, 1),
        "llama.feed_forward_length": (U32, [wide]),
        "llama.attention.head_count": (U32, HEADS),
        "llama.attention.head_count_kv": (U32, 1),
        "llama.attention.key_length": (U32, head_dim),
        "llama.attention.value_length": (U32, head_dim),
        "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        "llama.rope.freq_base": (F32, 10000.0),
        "llama.rope.dimension_count": (U32, head_dim),
        "llama.rope.scaling.type": (STRING, "linear"),
        "llama.rope.scaling.factor": (F32, 2.0),
        "tokenizer.chat_template": (STRING, "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"),
    }
    tensors = {"token_embd.weight": ((hidden, 16), 0, _floats(16, hidden))}
    for name, rows, n_in in (
        ("attn_q", HEADS * head_dim, hidden), ("attn_k", head_dim, hidden), ("attn_v", head_dim, hidden),
        ("attn_output", hidden, HEADS * head_dim), ("ffn_gate", wide, hidden), ("ffn_up", wide, hidden),
        ("ffn_down", hidden, wide),
    ):  # fmt: skip
        tensors[f"blk.0.{name}.weight"] = (n_in, rows), kind, _weights(kind, rows * n_in)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        tensors[f"{name}.weight"] = (hidden,), 0, _floats(hidden)
    tensors |= {name: (shape, kind, raw) for name, shape, kind, raw in instead}
    pairs = _changed(keys, changes)
    architecture = next(value for key, _, value in pairs if key == "general.architecture")
    if isinstance(architecture, str) and architecture.isalnum():  # of another family: its keys have another beginning
        pairs = [(key.replace("llama.", f"{architecture}."), kind, value) for key, kind, value in pairs]
    return gguf(pairs, [(name, *rest) for name, rest in tensors.items()])


def renamed(architecture: str, norms: Sequence[tuple[str, int]] = (), **changes: Any) -> Group:
    """The Llama of the seeds as a model of another family, which has more norms."""
    return llama(
        0, 0, [(f"blk.0.{name}.weight", (size,), 0, _floats(size)) for name, size in norms],
        **{"general.architecture": (STRING, architecture), **changes},
    )  # fmt: skip


_GEMMA_NORMS = (("attn_q_norm", 16), ("attn_k_norm", 16), ("post_attention_norm", HIDDEN), ("post_ffw_norm", HIDDEN))


def gemma3(**changes: Any) -> Group:
    """A Gemma 3 of one layer, with a window."""
    window = {"llama.attention.sliding_window": (U32, 8), "llama.attention.sliding_window_pattern": (BOOL, [1])}
    return renamed("gemma3", _GEMMA_NORMS, **{**window, "llama.rope.freq_base_swa": (F32, 10000.0), **changes})


def minicpm(**changes: Any) -> Group:
    """A MiniCPM of one layer, with LongRoPE."""
    factors = {"embedding_scale": 12.0, "residual_scale": 1.4, "logit_scale": 0.125, "rope.scaling.attn_factor": 1.1}
    keys: Keys = {
        "general.architecture": (STRING, "minicpm"),
        **{f"llama.{key}": (F32, value) for key, value in factors.items()},
        "llama.rope.scaling.type": (STRING, "longrope"),
        "llama.rope.scaling.factor": None,
        "llama.rope.scaling.original_context_length": (U32, CONTEXT // 2),
    }
    divisors = np.linspace(1, 4, HIDDEN // HEADS // 2).astype("<f4")
    longrope = [(f"rope_factors_{which}.weight", divisors.shape, 0, divisors.tobytes()) for which in ("long", "short")]
    return llama(0, 0, longrope, **{**keys, **changes})


def qwen3next() -> Group:
    """A Qwen3-Next of two layers, of which the first is recurrent."""
    experts = {
        "expert_count": 2, "expert_used_count": 2, "expert_feed_forward_length": 16,
        "expert_shared_feed_forward_length": 16,
    }  # fmt: skip
    instead: list[tuple[str, tuple[int, ...], int, bytes]] = []
    for i in range(2):
        for name, shape in (
            ("ffn_gate_inp", (HIDDEN, 2)), ("ffn_gate_exps", (HIDDEN, 16, 2)), ("ffn_up_exps", (HIDDEN, 16, 2)),
            ("ffn_down_exps", (16, HIDDEN, 2)), ("ffn_gate_inp_shexp", (HIDDEN,)), ("ffn_gate_shexp", (HIDDEN, 16)),
            ("ffn_up_shexp", (HIDDEN, 16)), ("ffn_down_shexp", (16, HIDDEN)),
        ):  # fmt: skip
            instead.append((f"blk.{i}.{name}.weight", shape, 0, _floats(int(np.prod(shape)))))
    instead.append(("blk.0.ssm_ba.weight", (HIDDEN, 8), 0, _floats(8 * HIDDEN)))
    instead.append(("blk.0.ssm_in.weight", (HIDDEN, 48), 0, _floats(48 * HIDDEN)))
    gone = ["attn_qkv", "attn_gate", "ssm_alpha", "ssm_beta", "ffn_gate", "ffn_up", "ffn_down"]
    return qwen35(
        instead, tuple(f"blk.{i}.{name}.weight" for i in range(2) for name in gone), "qwen3next",
        **{f"qwen35.{key}": (U32, value) for key, value in experts.items()},
    )  # fmt: skip


def qwen35(
    instead: Sequence[tuple[str, tuple[int, ...], int, bytes]] = (), without: Sequence[str] = (),
    architecture: str = "qwen35", **changes: Any,
) -> Group:  # fmt: skip
    """A Qwen3.5 of two layers, of which the first is recurrent."""
    heads, size, taps, hidden, wide, dim = 4, 4, 4, HIDDEN, WIDE, 16
    channels = (2 * 2 + heads) * size
    keys: Keys = {
        "general.architecture": (STRING, "qwen35"),
        **{f"qwen35.{key}": (U32, value) for key, value in {
            "vocab_size": 16, "context_length": CONTEXT, "embedding_length": hidden, "block_count": 3,
            "nextn_predict_layers": 1, "feed_forward_length": wide, "attention.head_count": HEADS,
            "attention.head_count_kv": 1, "attention.key_length": dim, "attention.value_length": dim,
            "rope.dimension_count": 8, "full_attention_interval": 2, "ssm.conv_kernel": taps, "ssm.state_size": size,
            "ssm.group_count": 2, "ssm.time_step_rank": heads, "ssm.inner_size": heads * size}.items()},
        "qwen35.attention.layer_norm_rms_epsilon": (F32, 1e-6),
        "qwen35.rope.freq_base": (F32, 10000.0),
        "qwen35.rope.dimension_sections": (I32, [2, 1, 1, 0]),
        "qwen35.attention.recurrent_layers": (BOOL, [1, 0, 0]),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (hidden, 16), "output_norm.weight": (hidden,)}
    layers = (
        {"attn_qkv.weight": (hidden, channels), "attn_gate.weight": (hidden, heads * size),
         "ssm_alpha.weight": (hidden, heads), "ssm_beta.weight": (hidden, heads),
         "ssm_conv1d.weight": (taps, channels), "ssm_dt.bias": (heads,), "ssm_a": (heads,),
         "ssm_norm.weight": (size,), "ssm_out.weight": (heads * size, hidden)},
        {"attn_q.weight": (hidden, 2 * HEADS * dim), "attn_k.weight": (hidden, dim), "attn_v.weight": (hidden, dim),
         "attn_q_norm.weight": (dim,), "attn_k_norm.weight": (dim,), "attn_output.weight": (HEADS * dim, hidden)},
    )  # fmt: skip
    for i, layer in enumerate(layers):
        both = {
            "attn_norm.weight": (hidden,),
            "post_attention_norm.weight": (hidden,),
            "ffn_gate.weight": (hidden, wide),
            "ffn_up.weight": (hidden, wide),
            "ffn_down.weight": (wide, hidden),
        }
        shapes |= {f"blk.{i}.{name}": shape for name, shape in {**layer, **both}.items()}
    shapes["blk.2.nextn.enorm.weight"] = (hidden,)
    tensors: dict[str, tuple[tuple[int, ...], int, bytes]] = {}
    for name, shape in shapes.items():
        raw = _floats(int(np.prod(shape)))
        tensors[name] = shape, 0, (-np.frombuffer(raw, "<f4")).tobytes() if name.endswith("ssm_a") else raw
    tensors |= {name: (shape, kind, raw) for name, shape, kind, raw in instead}
    pairs = _changed(keys, changes)
    if architecture != "qwen35":
        pairs = [(key.replace("qwen35.", f"{architecture}."), kind, value) for key, kind, value in pairs]
        pairs[0] = ("general.architecture", STRING, architecture)
    return gguf(pairs, [(name, *rest) for name, rest in tensors.items() if name not in without])


def gpt_oss(instead: Sequence[tuple[str, tuple[int, ...], int, bytes]] = (), **changes: Any) -> Group:
    """A gpt-oss of one layer, with experts in MXFP4."""
    prefix, hidden, size = "gpt-oss.", HIDDEN, 32
    keys: Keys = {
        "general.architecture": (STRING, "gpt-oss"),
        **{prefix + key: (U32, value) for key, value in {
            "vocab_size": 16, "context_length": CONTEXT, "embedding_length": hidden, "block_count": 1,
            "attention.head_count": HEADS, "attention.sliding_window": 4, "expert_count": 2, "expert_used_count": 2,
            "expert_feed_forward_length": size, "rope.scaling.original_context_length": 4}.items()},
        prefix + "attention.layer_norm_rms_epsilon": (F32, 1e-5),
        prefix + "rope.scaling.type": (STRING, "yarn"),
        prefix + "rope.scaling.factor": (F32, 4.0),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (hidden, 16), "output_norm.weight": (hidden,)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        shapes |= {f"blk.0.{name}.weight": (hidden, hidden), f"blk.0.{name}.bias": (hidden,)}
    shapes |= {
        "blk.0.attn_norm.weight": (hidden,), "blk.0.post_attention_norm.weight": (hidden,),
        "blk.0.attn_sinks.weight": (HEADS,), "blk.0.ffn_gate_inp.weight": (hidden, 2), "blk.0.ffn_gate_inp.bias": (2,),
        "blk.0.ffn_gate_exps.bias": (size, 2), "blk.0.ffn_up_exps.bias": (size, 2),
        "blk.0.ffn_down_exps.bias": (hidden, 2),
    }  # fmt: skip
    tensors = {name: (shape, 0, _floats(int(np.prod(shape)))) for name, shape in shapes.items()}
    for name, n_in, n_out in (("gate", hidden, size), ("up", hidden, size), ("down", size, hidden)):
        block = bytes([122, *range(0x10, 0x20)])
        tensors[f"blk.0.ffn_{name}_exps.weight"] = (n_in, n_out, 2), 39, block * (n_in // 32 * n_out * 2)
    tensors |= {name: (shape, kind, raw) for name, shape, kind, raw in instead}
    return gguf(_changed(keys, changes), [(name, *rest) for name, rest in tensors.items()])


def rotated(**changes: Any) -> Group:
    """The same with weights that read rotated inputs; changes are of the keys `prism.hadamard.*`."""
    keys = {
        "version": (U32, 2), "tied_output": (BOOL, 1), "block_size": (U32, 16),
        "transform": (STRING, "normalized-sylvester-walsh-hadamard"), "axis": (STRING, "input-last-dimension"),
        "sign_mode": (STRING, "explicit"), "sign_widths": (I32, [HIDDEN, WIDE, 16]),
        "sign_values": (I32, [1, -1] * ((HIDDEN + WIDE + 16) // 2)), "gdn_v_grouped": (BOOL, 1),
        "weight_names": (STRING, ["blk.0.attn_qkv.weight", "blk.0.ssm_out.weight", "blk.1.ffn_down.weight"]),
        "inverse_weight_names": (STRING, ["token_embd.weight"]),
    }  # fmt: skip
    return qwen35(**{f"prism.hadamard.{key}": value for key, value in {**keys, **changes}.items()})


def experts(kind: int) -> Group:
    """A model of one layer whose two experts both work for every token, so that no weight goes unread."""
    prefix, hidden, size = "qwen2moe.", HIDDEN, 16
    keys: Keys = {
        "general.architecture": (STRING, "qwen2moe"),
        prefix + "vocab_size": (U32, 16),
        prefix + "context_length": (U32, CONTEXT),
        prefix + "embedding_length": (U32, hidden),
        prefix + "block_count": (U32, 1),
        prefix + "attention.head_count": (U32, HEADS),
        prefix + "attention.layer_norm_rms_epsilon": (F32, 1e-5),
        prefix + "expert_count": (U32, 2),
        prefix + "expert_used_count": (U32, 2),
        prefix + "expert_feed_forward_length": (U32, size),
        prefix + "expert_shared_feed_forward_length": (U32, size),
        prefix + "expert_gating_func": (U32, 2),
        prefix + "expert_weights_norm": (BOOL, True),
        prefix + "expert_weights_scale": (F32, 2.5),
        prefix + "expert_group_count": (U32, 1),
        prefix + "expert_group_used_count": (U32, 1),
        prefix + "swiglu_clamp_exp": (F32, [7.0]),
    }
    tensors = [("token_embd.weight", (hidden, 16), 0, _floats(16, hidden))]
    for name, shape in (
        ("attn_q", (hidden, hidden)), ("attn_k", (hidden, hidden)), ("attn_v", (hidden, hidden)),
        ("attn_output", (hidden, hidden)), ("ffn_gate_exps", (hidden, size, 2)), ("ffn_up_exps", (hidden, size, 2)),
        ("ffn_down_exps", (size, hidden, 2)), ("ffn_gate_shexp", (hidden, size)), ("ffn_up_shexp", (hidden, size)),
        ("ffn_down_shexp", (size, hidden)),
    ):  # fmt: skip
        stored = 0 if shape[0] % 32 else kind
        raw = _weights(stored, int(np.prod(shape)))
        tensors.append((f"blk.0.{name}.weight", shape, stored, raw))
    for name, shape in (
        ("attn_norm.weight", (hidden,)), ("ffn_norm.weight", (hidden,)), ("attn_q.bias", (hidden,)),
        ("attn_k.bias", (hidden,)), ("attn_v.bias", (hidden,)), ("exp_probs_b.bias", (2,)),
        ("ffn_gate_inp.weight", (hidden, 2)), ("ffn_gate_inp_shexp.weight", (hidden,)),
    ):  # fmt: skip
        tensors.append((f"blk.0.{name}", shape, 0, _floats(*shape[::-1])))
    tensors.append(("output_norm.weight", (hidden,), 0, _floats(hidden)))
    return gguf([(name, *value) for name, value in keys.items()], tensors)


def llama2c(version: int) -> Group:
    """A llama2.c checkpoint of one layer."""
    dim, hidden, vocab, sequence = 8, 16, 6, 4
    numbers = Group([Number("<i", n) for n in (dim, hidden, 1, 2, 1, vocab, sequence)])
    embedding, linears = vocab * dim, [dim * dim, dim * dim // 2, dim * dim // 2, dim * dim, *[dim * hidden] * 3]
    if version == 0:
        floats = embedding + 3 * dim + sum(linears) + sequence * dim // 2
        return Group([numbers, Raw(_floats(floats))])
    head = [Raw(b"24ka"), Number("<i", version), numbers, Number("<B", 1)]
    if version == 2:
        head.append(Number("<i", 4))
    body = _floats(3 * dim)
    for size in (embedding, *linears):
        body += bytes(size) + _floats(size // 4) if version == 2 else _floats(size)
    return Group([Group(head), Raw(bytes(256 - len(Group(head).encode()))), Raw(body)])


def tokenizer_bin() -> Group:
    """A llama2.c tokenizer."""
    words = [word.encode() for word, _ in _WORDS]
    words[1:3] = b"\n<s>\n", b"\n</s>\n"
    rows = [Group([Number("<f", -float(i)), Sized([Raw(word)], format="<I")]) for i, word in enumerate(words)]
    return Group([Number("<I", 7), *_shortened(rows)])


def _message(number: int, parts: list[Any]) -> Group:
    return Group([Varint(number << 3 | 2), Sized(parts, format="varint")])


def _flag(number: int, value: int) -> Group:
    return Group([Varint(number << 3), Varint(value)])


def tokenizer_model(table: bytes = b"") -> Group:
    """A SentencePiece model, perhaps with a normalisation table."""
    pieces = [
        _message(1, [_message(1, [Raw(word.encode())]), Varint(21), Number("<f", -float(i)), _flag(3, kind)])
        for i, (word, kind) in enumerate(_WORDS)
    ]
    pieces = _shortened(pieces)
    trainer = _message(2, [_flag(3, 2), _flag(35, 1), _message(44, [Raw(b" ? ")]), _message(46, [Raw(b"<s>")])])
    normalizer = _message(3, [_message(1, [Raw(b"identity")]), _flag(3, 1), _flag(4, 0), _flag(5, 1)])
    if table:
        normalizer = _message(3, [_message(1, [Raw(b"nmt_nfkc")]), _message(2, [Raw(table)])])
    return Group([Group(pieces), trainer, normalizer])


RANKS = 264


def tiktoken() -> Group:
    """A rank file, far shorter than a real one."""
    tokens = [*(bytes([i]) for i in range(256)), b"ab", b"abc", b" a", b"12", b"123", b"\r\n", b"\xe6\x97", b" ab"]
    lines = [[Raw(base64.b64encode(token)), Raw(b" %d" % i), Raw(b"\n")] for i, token in enumerate(tokens)]
    return Group(_shortened([Group(line) for line in lines]))


SAFETENSORS = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "U8", "shape": [3], "data_offsets": [16, 19]},
    "c": {"dtype": "BF16", "shape": [1, 2, 2], "data_offsets": [19, 27]},
}


def safetensors(header: bytes, data: bytes = bytes(27)) -> Group:
    """A safetensors file behind any header."""
    return Group([Sized([Raw(header)]), Raw(data)])


LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TOKENIZER_JSON: dict[str, Any] = {
    "added_tokens": [
        {"id": len(_BYTE_LEVEL), "content": "<|begin_of_text|>", "special": True},
        {"id": len(_BYTE_LEVEL) + 1, "content": "<tool>", "special": False, "lstrip": True},
    ],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ],
    },
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin_of_text|>"}}, {"Sequence": {"id": "A"}}],
    },
    "decoder": {"type": "ByteLevel"},
    "model": {
        "type": "BPE", "unk_token": None, "byte_fallback": False, "ignore_merges": True, "fuse_unk": False,
        "vocab": {word: i for i, word in enumerate(_BYTE_LEVEL)}, "merges": [*_MERGES, ["a", "b"]],
    },
}  # fmt: skip

TOKENIZER_JSON_LACKING = {
    **TOKENIZER_JSON,
    "model": {
        **TOKENIZER_JSON["model"],
        "vocab": {word: i for i, word in enumerate(_BYTE_LEVEL) if word not in ("x", "ñ", "ĳ")},
        "unk_token": "ab",
    },
}
"""The same without some bytes, which become the unknown token."""

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 16, "hidden_size": 32,
    "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": [2], "layer_types": ["full_attention"],
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}  # fmt: skip
CONFIGS = (
    CONFIG,
    {**CONFIG, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 8,
     "layer_types": ["sliding_attention"], "rope_parameters": None},
    {**CONFIG, "architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm", "scale_emb": 12, "scale_depth": 1.4,
     "dim_model_base": 8, "rope_parameters": {
        "rope_type": "longrope", "original_max_position_embeddings": 32, "short_factor": [1, 1.5, 2, 3, 4, 5, 6, 7],
        "long_factor": [1, 2, 3, 4, 6, 8, 12, 16]}},
    {**CONFIG, "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "no_rope_layers": [1],
     "no_rope_layer_interval": 4, "rope_parameters": None},
)  # fmt: skip
"""Other families whose folders have the same tensors."""
INDEX = {
    "metadata": {"total_size": 0},
    "weight_map": {
        "model.embed_tokens.weight": "model-1.safetensors",
        "model.norm.weight": "model-2.safetensors",
        **{f"model.layers.0.self_attn.{n}_proj.weight": "model-1.safetensors" for n in "qkvo"},
        **{f"model.layers.0.mlp.{n}_proj.weight": "model-2.safetensors" for n in ("gate", "up", "down")},
        "model.layers.0.input_layernorm.weight": "model-2.safetensors",
        "model.layers.0.post_attention_layernorm.weight": "model-1.safetensors",
    },
}
SHAPES = {
    "model.embed_tokens.weight": [16, 32], "model.norm.weight": [32],
    "model.layers.0.self_attn.q_proj.weight": [32, 32],
    "model.layers.0.self_attn.k_proj.weight": [16, 32], "model.layers.0.self_attn.v_proj.weight": [16, 32],
    "model.layers.0.self_attn.o_proj.weight": [32, 32], "model.layers.0.mlp.gate_proj.weight": [64, 32],
    "model.layers.0.mlp.up_proj.weight": [64, 32], "model.layers.0.mlp.down_proj.weight": [32, 64],
    "model.layers.0.input_layernorm.weight": [32], "model.layers.0.post_attention_layernorm.weight": [32],
}  # fmt: skip


def weights(shard: str) -> Group:
    """One of the two files of `INDEX`."""
    header: dict[str, Any] = {}
    at = 0
    for name, file in INDEX["weight_map"].items():
        if file == shard:
            size = 2 * int(np.prod(SHAPES[name]))
            header[name] = {"dtype": "F16", "shape": SHAPES[name], "data_offsets": [at, at + size]}
            at += size
    return safetensors(json.dumps(header).encode(), np.full(at // 2, 0.5, "<f2").tobytes())


STORED = {16: 66, 17: 74, 18: 98, 19: 50, 20: 144, 21: 110, 22: 82, 23: 136, 29: 56, 39: 136, 41: 36, 42: 72, 43: 42,
          142: 68, 143: 56}  # fmt: skip
"""Bytes of 256 weights of the types of PrismML and Tencent, i-quants and MXFP4, by number."""


def deepseek2(kind: int = 0, newer: bool = False, **changes: Any) -> Group:
    """A DeepSeek of one layer without experts, in the older or the newer layout."""
    prefix, hidden, heads, nope, rope, value, rank = "deepseek2.", HIDDEN, 2, 32, 8, 16, 32
    kept = {"key_length_mla": nope + rope, "value_length_mla": value} if newer else {}
    lengths = (1, rank + rope, rank) if newer else (heads, nope + rope, value)
    keys: Keys = {
        "general.architecture": (STRING, "deepseek2"),
        **{prefix + key: (U32, number) for key, number in {
            "vocab_size": 16, "context_length": CONTEXT, "embedding_length": hidden, "block_count": 2,
            "nextn_predict_layers": 1, "feed_forward_length": WIDE, "leading_dense_block_count": 1, "expert_count": 4,
            "expert_used_count": 1, "expert_feed_forward_length": 16, "attention.head_count": heads,
            "attention.kv_lora_rank": rank, "attention.q_lora_rank": 16, "rope.dimension_count": rope,
            "rope.scaling.original_context_length": 16,
            **dict(zip(("attention.head_count_kv", "attention.key_length", "attention.value_length"), lengths)),
            **{f"attention.{key}": number for key, number in kept.items()}}.items()},
        prefix + "attention.layer_norm_rms_epsilon": (F32, 1e-6),
        prefix + "rope.scaling.type": (STRING, "yarn"),
        prefix + "rope.scaling.factor": (F32, 4.0),
        prefix + "rope.scaling.yarn_log_multiplier": (F32, 0.1),
    }  # fmt: skip
    apart: dict[str, tuple[int, ...]] = {"attn_k_b": (nope, rank, heads), "attn_v_b": (rank, value, heads)}
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,), "attn_q_a": (hidden, 16), "attn_q_a_norm": (16,), "attn_q_b": (16, heads * 40),
        "attn_kv_a_mqa": (hidden, rank + rope), "attn_kv_a_norm": (rank,), "attn_output": (heads * value, hidden),
        "ffn_norm": (hidden,), "ffn_gate": (hidden, WIDE), "ffn_up": (hidden, WIDE), "ffn_down": (WIDE, hidden),
        **(apart if newer else {"attn_kv_b": (rank, heads * (nope + value))}),
    }  # fmt: skip
    shapes = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    shapes |= {
        "token_embd.weight": (hidden, 16),
        "output_norm.weight": (hidden,),
        "blk.1.nextn.enorm.weight": (hidden,),
    }
    tensors = []
    for name, shape in shapes.items():
        stored = kind if len(shape) > 1 and shape[0] % 32 == 0 and "token" not in name else 0
        raw = _weights(stored, int(np.prod(shape))) if stored else _floats(*shape[::-1])
        tensors.append((name, shape, stored, raw))
    return gguf(_changed(keys, changes), tensors)


RAW = {
    "tokenizer.ggml.tokens": (STRING, [word for word, _ in _WORDS] + ["\n", "\n\n"]),
    "tokenizer.ggml.token_type": (I32, [kind for _, kind in _WORDS] + [1, 1]),
    "tokenizer.ggml.merges": (STRING, ["▁ a", "a b", "\n \n"]),
    "tokenizer.ggml.bos_token_id": (U32, 1),
}
"""A vocabulary of text with merges."""


def _stored(number: int, size: int) -> bytes:
    """Bytes of which no two bits of a float16 exponent stand together, and no code is 3."""
    return bytes([0x11, 0x24] * (size // 2))[:size]


LACKING = [word for word in _BYTE_LEVEL if word not in ("x", "ñ", "ĳ")]
"""A byte-level vocabulary without the bytes 78, f1 and 91, as published ones lack some."""

TREES: dict[str, list[Group]] = {
    "gguf": [llama(kind, cols) for kind, cols in ((0, 0), (8, 0), (36, 128), (19, 256))]
    + [experts(kind) for kind in (0, 8, 20)]
    + [gemma3(), minicpm(), qwen35(), rotated(), qwen3next(), gpt_oss(), deepseek2(8),
       deepseek2(0, newer=True)]
    + [gguf([("general.architecture", STRING, "llama"), ("k", BOOL, [0, 1]), ("general.alignment", U32, 32)],
            [("a", (256, 2), 35, _weights(35, 512)), ("b", (256,), 34, _weights(34, 256)),
             ("c", (2, 1, 1, 2), 0, bytes(16))])]
    + [gguf([("general.architecture", STRING, "llama")],
            [(f"t{number}", (256,), number, _stored(number, size)) for number, size in STORED.items()])],
    "gguf_tokenizer": [
        vocabulary("llama"),
        vocabulary("gpt2"),
        vocabulary("gemma4", **RAW),
        vocabulary(
            "gpt2",
            **{
                "tokenizer.ggml.tokens": (STRING, LACKING),
                "tokenizer.ggml.token_type": (I32, [1] * (len(LACKING) - 2) + [3, 3]),
                "tokenizer.ggml.bos_token_id": (U32, len(LACKING) - 2),
            },
        ),
    ],
    "llama2c": [llama2c(version) for version in (0, 1, 2)],
    "tokenizer_bin": [tokenizer_bin()],
    "tokenizer_model": [tokenizer_model()],
    "tiktoken": [tiktoken()],
}  # fmt: skip
"""Valid binary files by what reads them."""
