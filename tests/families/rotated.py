"""Files whose weights read rotated inputs, made in float64 from the definition of the transform alone.

H is written out as a matrix, and the weights are multiplied by it: nothing here is shared with what is tested.
"""

from __future__ import annotations

import numpy as np

from lowbit.families import find_family, plan_of
from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize
from lowbit.formats.gguf_writer import GGUFWriter
from lowbit.quantize import pack_codes, quantize

PREFIX = "prism.hadamard."
PLAIN = ("ssm_alpha", "ssm_beta")
"""Linear layers that published files do not rotate."""

BONSAI = {
    "embedding_length": 128, "attention.head_count": 2, "attention.head_count_kv": 1, "attention.key_length": 64,
    "feed_forward_length": 256, "block_count": 4, "context_length": 128, "vocab_size": 96,
    "attention.layer_norm_rms_epsilon": 1e-6, "rope.dimension_count": 16, "rope.freq_base": 10000.0,
    "ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.group_count": 2, "ssm.time_step_rank": 8, "ssm.inner_size": 128,
}  # fmt: skip
"""The shape of Ternary Bonsai 2 on a small scale: the widths are whole blocks of the ternary types."""


def hadamard(n, block):
    """H of each run of `block` of n channels, by its formula."""
    i = np.arange(block)
    odd = np.array([bin(both).count("1") & 1 for both in (i[:, None] & i).ravel()]).reshape(block, block)
    return np.kron(np.eye(n // block), (1 - 2.0 * odd) / np.sqrt(block))


def grouping(key_heads, heads, size):
    """P: tiled value head k + G i goes to place i + r k, feature by feature."""
    p, ratio = np.zeros((heads, heads)), heads // key_heads
    for k in range(key_heads):
        for i in range(ratio):
            p[i + ratio * k, k + key_heads * i] = 1
    return np.kron(p, np.eye(size))


def signs_of(plan, seed=5):
    """A sign for each channel of each width that linear layers read."""
    widths = sorted({linear.n_in for i in range(plan.n_layers) for linear in plan.linears(i)} | {plan.hidden_size})
    rng = np.random.default_rng(seed)
    return {n: rng.choice([-1, 1], n) for n in widths}


def rotation_of(plan, name, block, signs, grouped):
    """The matrix R of a tensor: a layer reads R x in place of x, and a stored weight is W R^T."""
    n = plan.by_name[name].shape[-1]
    r = hadamard(n, block) @ np.diag(np.asarray(signs.get(n, np.ones(n)), np.float64))
    if grouped and name.endswith("ssm_out.weight"):
        mixer = plan.layers[plan.by_name[name].layer].mixer
        r = r @ grouping(mixer.n_key_heads, mixer.n_value_heads, mixer.head_dim)
    return r


def folded_names(plan):
    """What published files rotate."""
    names = [w.name for w in plan.weights() if w.kind == "linear" and w.role not in PLAIN]
    return names if plan.tied_embeddings else [*names, "output.weight"]


def keys_of(plan, block, signs, grouped, latent):
    """Keys that say so."""
    keys = {
        "version": 2 if plan.tied_embeddings else 1, "tied_output": plan.tied_embeddings, "block_size": block,
        "transform": "normalized-sylvester-walsh-hadamard", "axis": "input-last-dimension",
        "sign_mode": "explicit" if signs else "identity", "weight_names": folded_names(plan),
        "gdn_v_grouped": grouped,
    }  # fmt: skip
    if signs:
        keys["sign_widths"] = np.array(list(signs), np.int32)
        keys["sign_values"] = np.concatenate(list(signs.values())).astype(np.int8)
    if latent:
        keys["inverse_weight_names"] = ["token_embd.weight"]
    return {PREFIX + key: value for key, value in keys.items()}


def write(path, architecture, metadata, keys, tensors):
    """Write a GGUF file of tensors by name: floats, or a type with its bytes and shape."""
    with GGUFWriter(path, architecture) as out:
        for key, value in {**metadata, **keys}.items():
            if key.startswith((architecture, PREFIX, "lowbit.")) and value is not None:
                whole = isinstance(value, int) and not isinstance(value, bool)
                out.add_metadata(key, value, "u32" if whole else None)
        stored = {
            name: value if isinstance(value, tuple) else ("F32", np.asarray(value, np.float32), np.shape(value))
            for name, value in tensors.items()
        }
        for name, (kind, _, shape) in stored.items():
            out.add_tensor_info(name, kind, shape)
        out.write_header()
        for name, (_, raw, _) in stored.items():
            out.write_tensor(name, np.ascontiguousarray(raw).reshape(-1).view(np.uint8))
    return path


def read(source):
    """Plan, metadata, and all tensors in float64."""
    with open_model(source) as file:
        plan = plan_of(file)
        tensors = {
            name: dequantize(info.type, file.read(name), info.shape).astype(np.float64)
            for name, info in file.tensors.items()
        }
        return plan, file.architecture, dict(file.metadata), tensors


def fold(source, path, block, explicit=True, grouped=True, latent=True, tied=False, said=None):
    """Write what a file holds with rotated weights, in float32; `said` changes what the keys say of it."""
    plan, architecture, metadata, tensors = read(source)
    if tied:
        del tensors["output.weight"]
        plan = find_family(architecture).plan(metadata, architecture, tensors)
    signs = signs_of(plan) if explicit else {}
    for name in folded_names(plan):
        tensors[name] = tensors[name] @ rotation_of(plan, name, block, signs, grouped).T
    if latent:
        tensors["token_embd.weight"] = (
            tensors["token_embd.weight"] @ rotation_of(plan, "token_embd.weight", block, signs, False).T
        )
    keys = {**keys_of(plan, block, signs, grouped, latent), **{PREFIX + k: v for k, v in (said or {}).items()}}
    return write(path, architecture, metadata, keys, tensors)


def bonsai(path, kind, tied=False, block=128):
    """Write a random model of the shape of Ternary Bonsai 2, with rotated ternary weights, and return its plan."""
    metadata = {f"qwen35.{key}": value for key, value in BONSAI.items()}
    plan = find_family("qwen35").plan(metadata, "qwen35", () if tied else ("output.weight",))
    rng, tensors = np.random.default_rng(17), {}
    for weight in plan.weights():
        shape = weight.shape
        if weight.kind in ("linear", "embedding", "head") and weight.role not in PLAIN:
            # each block of 128 has its own magnitude, as ternary types store it
            scales = rng.uniform(0.05, 0.15, (shape[0], shape[1] // 128)) * (1 if weight.kind == "linear" else 10)
            codes = rng.integers(0, 3, shape, dtype=np.uint8)
            tensors[weight.name] = kind, pack_codes(kind, codes, scales.astype(np.float32)), shape
        elif weight.role in PLAIN:
            tensors[weight.name] = "BF16", quantize("BF16", 0.1 * rng.standard_normal(shape).astype(np.float32)), shape
        elif weight.role == "ssm_a":
            tensors[weight.name] = -np.exp(rng.uniform(-1, 1, shape))
        else:
            tensors[weight.name] = (weight.kind == "norm") + 0.2 * rng.standard_normal(shape)
    write(path, "qwen35", metadata, keys_of(plan, block, signs_of(plan), True, True), tensors)
    return plan


def unfold(source, path):
    """Write the plain model that a file with rotated weights stands for, in float32."""
    plan, architecture, metadata, tensors = read(source)
    assert plan.rotation is not None
    block, signs = plan.rotation.block, signs_of(plan)
    tied = plan.tied_embeddings
    turn = rotation_of(plan, "token_embd.weight", block, signs, False)
    head = tensors["token_embd.weight"] if tied else tensors["output.weight"]
    for name in folded_names(plan):
        tensors[name] = tensors[name] @ rotation_of(plan, name, block, signs, True)
    tensors["output.weight"] = head @ turn
    tensors["token_embd.weight"] = tensors["token_embd.weight"] @ turn
    return write(path, architecture, metadata, {key: None for key in metadata if key.startswith(PREFIX)}, tensors)
