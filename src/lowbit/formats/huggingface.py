"""Reading a Hugging Face model folder: config.json, and safetensors in one file or several.

The folder presents itself with GGUF's keys and tensor names, so that families and weights need one path only. Nothing
is permuted: queries and keys keep the order that rotates halves, and the metadata say so. Packed BitNet weights are
handed out as I2_S, which holds the same codes and one scale to multiply by. Nothing in the folder is run (`auto_map`
is ignored, pickles are refused), and no name in it leads out of it.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import FormatError, LowbitError, UnsupportedModelError
from lowbit.formats.base import Closing, TensorInfo
from lowbit.formats.blocks import dequantize
from lowbit.formats.files import named, reading
from lowbit.formats.folder import inside
from lowbit.formats.huggingface_config import LINEARS, Translation, translate
from lowbit.formats.huggingface_experts import Made, expert_of, from_columns, stacked
from lowbit.formats.huggingface_latent import FLOAT8, as_floats, from_float8
from lowbit.formats.safetensors import DTYPE_BYTES, SafetensorsFile
from lowbit.formats.strict_json import parse_object
from lowbit.quantize.ggml_types import tensor_nbytes

MAX_CONFIG_BYTES = 1 << 20
MAX_TOKENIZER_CONFIG_BYTES = 16 << 20
MAX_SHARDS = 1024
FLOATS = ("F32", "F16", "BF16")
_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.word_embeddings.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,3})\.(.+)\.(weight|bias|weight_scale)")
_BARE = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,3})\.(linear_attn\.A_log|linear_attn\.dt_bias|self_attn\.sinks)")
_BARE_NAMES = {
    "linear_attn.A_log": "ssm_a", "linear_attn.dt_bias": "ssm_dt.bias", "self_attn.sinks": "attn_sinks.weight",
}  # fmt: skip
_CHOICE_BIAS = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,3})\.mlp\.gate\.e_score_correction_bias")
_FURTHER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,3})\.")
_PREFIX = re.compile(r"^(model\.language_model|language_model\.model)\.")
_BESIDE = re.compile(r"(model\.)?(visual|vision_tower|multi_modal_projector)\.|mtp\.")
"""Of models that also see: what is not the language model."""
_DERIVED = re.compile(r"model\.(layers\.[0-9]{1,4}\.self_attn\.)?rotary_emb\.inv_freq")
"""Buffers that old checkpoints hold, and that follow from config.json."""


class HuggingFaceFolder(Closing):
    """An open model folder (`lowbit.formats.base.ModelFile`).

    Parameters
    ----------
    path : str or os.PathLike
        The folder.

    Raises
    ------
    FormatError
        If a file is missing or breaks a rule of its format, or the files do not fit together.
    UnsupportedModelError
        If the folder holds a model, or weights, that lowbit cannot run.
    """

    format = "huggingface"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._folder = Path(self.path)
        self._shards: list[SafetensorsFile] = []
        self._source: dict[str, tuple[SafetensorsFile, str]] = {}  # by name in `tensors`
        self._stored: dict[str, SafetensorsFile] = {}  # all that there is
        self._scales: dict[str, float] = {}  # of packed tensors, to multiply by
        self._changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
        self._orders: dict[str, tuple[int, np.ndarray]] = {}  # axis, and what becomes of the places along it
        self._made: dict[str, np.ndarray] = {}  # bytes of tensors that are not in a file as they are
        self._makers: dict[str, Made] = {}
        self._tensors: dict[str, TensorInfo] = {}
        self.tensors: Mapping[str, TensorInfo] = self._tensors
        try:
            with named(self.path):
                translation = translate(self._json("config.json", MAX_CONFIG_BYTES))
                stored = self._stored = self._open_shards()
                self.architecture = translation.architecture
                self.metadata: Mapping[str, Any] = {**translation.metadata, **self._chat_template()}
                self._take(stored, translation)
        except LowbitError:
            self.close()
            raise

    def read(self, name: str) -> np.ndarray:
        """Return the bytes of a tensor: read-only, a view of the mapped file wherever they are stored like this."""
        if name not in self.tensors:
            raise FormatError(f"{self.path}: has no tensor {name!r}")
        if name in self._made:
            return self._made[name]
        if name in self._makers:
            maker = self._makers[name]
            raw = self._made[name] = maker.make(
                *(self._floats(self._stored[source], source) for source in maker.sources)
            )
            raw.flags.writeable = False
            return raw
        shard, stored = self._source[name]
        info = self.tensors[name]
        raw = self._floats(shard, stored)
        if shard.tensors[stored].type == FLOAT8:
            self._made[name] = raw
        elif name in self._changes:
            values = dequantize(shard.tensors[stored].type, raw, shard.tensors[stored].shape)
            raw = self._made[name] = self._changes[name](values).astype("<f4").reshape(-1).view(np.uint8)
        elif name in self._orders:
            axis, index = self._orders[name]
            values = np.ascontiguousarray(raw).view(f"<u{DTYPE_BYTES[info.type]}").reshape(info.shape)
            raw = self._made[name] = np.take(values, index, axis).reshape(-1).view(np.uint8)
        elif name in self._scales:
            raw = self._made[name] = _unpack(raw, info.shape, self._scales[name])
        elif info.offset % DTYPE_BYTES[info.type]:
            raw = raw.copy()
        raw.flags.writeable = False
        return raw

    def _floats(self, shard: SafetensorsFile, stored: str) -> np.ndarray:
        """Bytes of a tensor in a file; of a float8 one those of its weights, which are float32."""
        raw, info = shard.read(stored), shard.tensors[stored]
        if info.type != FLOAT8:
            return raw
        beside, name = self._stored[stored + "_scale_inv"], stored + "_scale_inv"
        return from_float8(stored, raw, info, beside.read(name), beside.tensors[name])

    def release(self, name: str) -> None:
        """Tell the system that a tensor's bytes are not needed in memory for now; they can still be read."""
        if name in self._source:
            self._made.pop(name, None)
            shard, stored = self._source[name]
            shard.release(stored)
        elif name in self._makers:
            self._made.pop(name, None)
            for source in self._makers[name].sources:
                self._stored[source].release(source)

    def release_all(self) -> None:
        """The same for all files."""
        self._made.clear()
        for shard in self._shards:
            shard.release_all()

    def close(self) -> None:
        """Let go of all maps."""
        for shard in self._shards:
            shard.close()

    def _json(self, name: str, max_bytes: int) -> dict[str, Any]:
        path = inside(self._folder, name)
        if not path.is_file():
            raise FormatError(f"has no {name}")
        with reading(name), open(path, "rb") as file:
            return parse_object(file.read(max_bytes + 1), name, max_bytes)

    def _chat_template(self) -> dict[str, str]:
        """The key of the chat template, from a file of its own or tokenizer_config.json; empty if there is none."""
        template: Any = None
        if (self._folder / "chat_template.jinja").exists():
            name = "chat_template.jinja"
            try:
                with reading(name), open(inside(self._folder, name), "rb") as file:
                    template = file.read(MAX_CONFIG_BYTES + 1).decode()
            except UnicodeDecodeError as error:
                raise FormatError(f"{name} is no text") from error
        elif (self._folder / "tokenizer_config.json").exists():
            template = self._json("tokenizer_config.json", MAX_TOKENIZER_CONFIG_BYTES).get("chat_template")
            if isinstance(template, list):  # several, by name
                named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
                template = named[0].get("template") if named else None
        if template is not None and (not isinstance(template, str) or len(template) > MAX_CONFIG_BYTES):
            raise FormatError(f"has a chat template that is no text of at most {MAX_CONFIG_BYTES} characters")
        return {} if template is None else {"tokenizer.chat_template": template}

    def _open_shards(self) -> dict[str, SafetensorsFile]:
        """Open the files with weights; return each tensor's file."""
        index, single = "model.safetensors.index.json", "model.safetensors"
        if (self._folder / single).exists() or not (self._folder / index).exists():
            if not (self._folder / single).exists():
                if any(self._folder.glob("*.bin")) or any(self._folder.glob("*.pt*")):
                    raise UnsupportedModelError(
                        "holds PyTorch pickles, which can run any code when they are read; safetensors are needed"
                    )
                raise FormatError(f"has neither {single} nor {index}")
            self._shards.append(SafetensorsFile(inside(self._folder, single)))
            return dict.fromkeys(self._shards[0].tensors, self._shards[0])
        weight_map = self._json(index, 8 << 20).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise FormatError(f"{index} has no weight_map from tensors to files")
        names = sorted(set(weight_map.values()))
        if not 1 <= len(names) <= MAX_SHARDS:
            raise FormatError(f"{index} names {len(names)} files, expected 1 to {MAX_SHARDS}")
        stored: dict[str, SafetensorsFile] = {}
        for name in names:
            if not name.endswith(".safetensors"):
                raise FormatError(f"{index} names {name[:80]!r}, which is no safetensors file")
            shard = SafetensorsFile(inside(self._folder, name))
            self._shards.append(shard)
            for tensor in shard.tensors:
                if weight_map.get(tensor) != name:
                    raise FormatError(f"{name} holds the tensor {tensor!r}, which {index} does not expect there")
                stored[tensor] = shard
        for tensor, name in weight_map.items():
            if tensor not in stored:
                raise FormatError(f"{name} lacks the tensor {tensor[:80]!r} that {index} expects there")
        return stored

    def _take(self, stored: dict[str, SafetensorsFile], translation: Translation) -> None:
        """Give every tensor its GGUF name. One without keeps its own, and is then refused by the family."""
        packed = translation.linears in ("divide", "multiply")
        self._stored, n_layers = stored, translation.metadata[f"{translation.architecture}.block_count"]
        experts: dict[str, dict[int, str]] = {}
        infos = {name: shard.tensors[name] for name, shard in stored.items()}
        for stored_name, shard in stored.items():
            info, name = infos[stored_name], stored_name
            if translation.kind.inside:
                name = _PREFIX.sub("model.", name).removeprefix("language_model.")
            if (translation.kind.inside or translation.kind.recurrent) and _BESIDE.match(name):
                continue
            if translation.kind.latent:
                further = _FURTHER.match(name)
                if further is not None and int(further[1]) >= n_layers:
                    continue  # predicts tokens further ahead
                if name.endswith("_scale_inv"):
                    if stored_name.removesuffix("_scale_inv") not in stored:
                        raise FormatError(f"the tensor {name} has nothing to scale")
                    continue
                if info.type == FLOAT8 and len(info.shape) == 2:
                    if stored_name + "_scale_inv" not in stored:
                        raise FormatError(f"the tensor {name} has no weight_scale_inv")
                    info = as_floats(info)
            made = from_columns(name, infos) if translation.kind.experts == "columns" else None
            if made is not None:
                self._make(made)
                continue
            part = expert_of(name) if translation.kind.experts == "rows" else None
            if part is not None:
                experts.setdefault(part[0], {})[part[1]] = stored_name
            layer = _IN_LAYER.fullmatch(name)
            target = _WHOLE.get(name, name)
            bare = _BARE.fullmatch(name)
            if bare is not None:
                target = f"blk.{bare[1]}.{_BARE_NAMES[bare[2]]}"
            choice = _CHOICE_BIAS.fullmatch(name)
            if choice is not None and translation.kind.latent:
                target = f"blk.{choice[1]}.exp_probs_b.bias"
            if _DERIVED.fullmatch(name) or (target == "output.weight" and translation.tied):
                continue
            if layer is not None and layer[2] in translation.layer_names:
                if layer[3] == "weight_scale":
                    if not packed or stored_name.removesuffix("_scale") not in stored:
                        raise FormatError(f"the tensor {name} has nothing to scale")
                    continue
                target = f"blk.{layer[1]}.{translation.layer_names[layer[2]]}.{layer[3]}"
            if layer is not None and layer[2] in LINEARS and layer[3] == "weight" and packed:
                self._take_packed(stored_name, target, stored, translation)
                continue
            if layer is not None and layer[3] == "bias" and translation.linears == "multiply":
                raise UnsupportedModelError(f"the tensor {name}: biases of this kind of BitNet layer are not supported")
            if info.type not in FLOATS:
                raise UnsupportedModelError(f"the tensor {name} is of type {info.type}, where floats belong")
            if part is not None and part[1] >= 0:
                continue
            target = part[0] if part is not None else target
            if target in self._tensors:
                raise FormatError(f"the tensor {target} is there twice")
            self._tensors[target] = TensorInfo(target, info.type, info.shape, info.offset, info.nbytes)
            self._source[target] = (shard, stored_name)
            if translation.kind.plus_one and target.endswith("norm.weight") and not target.endswith("ssm_norm.weight"):
                self._change(target, lambda weight: weight + np.float32(1))
        for target, parts in experts.items():
            if len(parts) > 1 or -1 not in parts:
                info = stacked(target, {e: as_floats(infos[name]) for e, name in parts.items()})
                sources = tuple(parts[e] for e in range(len(parts)))
                self._make([Made(info, sources, lambda *raw: np.concatenate(raw))])
        if translation.kind.recurrent:
            self._arrange_recurrent(translation)
        if not translation.tied and "output.weight" not in self.tensors:
            raise FormatError("has no lm_head.weight, and config.json does not tie it to the embedding")
        for role, factors in translation.rope_factors.items():
            name, raw = f"{role}.weight", np.frombuffer(factors.tobytes(), np.uint8)
            self._tensors[name] = TensorInfo(name, "F32", factors.shape, 0, raw.size)
            self._made[name] = raw
        self._warn_of_direction(translation)

    def _change(self, name: str, function: Callable[[np.ndarray], np.ndarray]) -> None:
        """Hand out another float32 array than the one that is stored."""
        info = self._tensors[name]
        self._changes[name] = function
        self._tensors[name] = TensorInfo(name, "F32", info.shape, info.offset, 4 * math.prod(info.shape))

    def _make(self, tensors: Iterable[Made]) -> None:
        """Take in tensors that are made of stored ones."""
        for made in tensors:
            if made.info.name in self._tensors:
                raise FormatError(f"the tensor {made.info.name} is there twice")
            self._tensors[made.info.name], self._makers[made.info.name] = made.info, made

    def _arrange_recurrent(self, translation: Translation) -> None:
        """Give the tensors of recurrent layers GGUF's shapes and order: in most families value head h belongs to key
        head h mod n there, and to h div (heads / n) here."""
        prefix, metadata = f"{translation.architecture}.ssm.", translation.metadata
        keys, heads, size = (int(metadata[prefix + k]) for k in ("group_count", "time_step_rank", "state_size"))
        order = np.arange(heads)
        if translation.kind.recurrent == "tiled" and heads % keys == 0:  # or else the family refuses it
            order = order.reshape(keys, -1).T.reshape(-1)
        rows = (order[:, None] * size + np.arange(size)).reshape(-1)
        channels = np.concatenate([np.arange(2 * keys * size), 2 * keys * size + rows])
        for name, info in list(self._tensors.items()):
            role = name.split(".")[2] if name.count(".") >= 2 else ""
            if name.endswith(".ssm_a") and info.shape == (heads,):
                self._change(name, lambda log: -np.exp(log[order]))
            elif role == "ssm_conv1d" and len(info.shape) == 3 and info.shape[1] == 1:
                squeezed = info.shape[0], info.shape[2]
                self._tensors[name] = TensorInfo(name, info.type, squeezed, info.offset, info.nbytes)
                self._orders[name] = 0, channels
            elif role in ("attn_qkv", "attn_gate", "ssm_alpha", "ssm_beta", "ssm_dt"):
                self._orders[name] = 0, {"attn_qkv": channels, "attn_gate": rows}.get(role, order)
            elif role == "ssm_out":
                self._orders[name] = 1, rows
        for name, (axis, index) in list(self._orders.items()):
            stored = self._tensors[name].shape
            if len(stored) <= axis or stored[axis] != len(index) or (np.diff(index) == 1).all():
                del self._orders[name]  # a shape that is refused later, or the order that there is

    def _take_packed(self, name: str, target: str, stored: dict[str, SafetensorsFile], what: Translation) -> None:
        info = stored[name].tensors[name]
        if info.type != "U8" or len(info.shape) != 2:
            raise UnsupportedModelError(f"the tensor {name} is of type {info.type}, where packed weights belong")
        if name + "_scale" not in stored:
            raise FormatError(f"the tensor {name} has no weight_scale")
        rows, cols = self._rows_of(target, what.metadata, what.architecture), info.shape[1]
        if info.shape[0] != -(-rows // 4):
            raise FormatError(f"the tensor {name} has {info.shape[0]} packed rows, expected {-(-rows // 4)}")
        if cols % 128:
            raise UnsupportedModelError(f"packed rows of {cols} weights are not supported, only multiples of 128")
        scale = _one_number(stored[name + "_scale"], name + "_scale")
        self._scales[target] = scale if what.linears == "multiply" else 1.0 / scale
        if self._scales[target] > float(np.finfo(np.float32).max):
            raise FormatError(f"the tensor {name}_scale is {scale}, which is too small to divide by")
        shape = (rows, cols)
        self._tensors[target] = TensorInfo(target, "I2_S", shape, info.offset, tensor_nbytes("I2_S", shape))
        self._source[target] = (stored[name], name)

    @staticmethod
    def _rows_of(target: str, metadata: Mapping[str, Any], architecture: str) -> int:
        """Rows of a linear layer before packing: four packed rows say it only up to a multiple of four."""
        kind = target.split(".")[2]
        heads = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
        heads["attn_v"] = heads["attn_k"]
        if kind in heads:
            return int(metadata[f"{architecture}.{heads[kind]}"] * metadata[f"{architecture}.attention.key_length"])
        wide = kind in ("ffn_gate", "ffn_up")
        return int(metadata[f"{architecture}.{'feed_forward_length' if wide else 'embedding_length'}"])

    def _warn_of_direction(self, translation: Translation) -> None:
        """The mean magnitude of a language model's weights is far below 1, so its inverse is above 1."""
        wrong = sum(scale > 1 for scale in self._scales.values())
        if 2 * wrong > len(self._scales):
            warnings.warn(
                f"{self.path}: config.json makes lowbit {translation.linears} by weight_scale, which gives scales "
                f"above 1; the text will be nonsense if quantization_config.linear_class is wrong",
                UserWarning,
                stacklevel=2,
            )


def _one_number(shard: SafetensorsFile, name: str) -> float:
    """The value of a packed tensor's scale."""
    info = shard.tensors[name]
    if info.type not in FLOATS or info.shape not in ((), (1,)):
        raise FormatError(f"the tensor {name} is no single float")
    raw = shard.read(name).copy()
    if info.type == "BF16":
        value = float((raw.view("<u2").astype("<u4") << 16).view("<f4")[0])
    else:
        value = float(raw.view("<f4" if info.type == "F32" else "<f2")[0])
    if not (np.isfinite(value) and value > 0):
        raise FormatError(f"the tensor {name} is {value}, not a positive number")
    return value


def _unpack(raw: np.ndarray, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Turn packed weights into I2_S: bits 2i+1:2i of packed row r are row i R + r of the 4 R rows.

    I2_S keeps columns p, p + 32, p + 64 and p + 96 of a run of 128 in one byte, the first in the highest bits. The 32
    bytes of each are moved as four 64-bit words; no bit crosses a byte, since a code is never above 3.
    """
    rows, cols = shape
    packed = np.ascontiguousarray(raw).view("<u8").reshape(-1, cols // 8)
    out = np.empty((4, packed.size // 16, 4), "<u8")
    three = np.uint64(0x0303030303030303)
    for i in range(4):
        runs = (packed >> np.uint64(2 * i) & three).reshape(-1, 4, 4)
        np.copyto(
            out[i],
            runs[:, 0] << np.uint64(6) | runs[:, 1] << np.uint64(4) | runs[:, 2] << np.uint64(2) | runs[:, 3],
        )
    codes = out.reshape(-1, cols // 32)[:rows]
    if (codes & codes >> np.uint64(1) & np.uint64(0x5555555555555555)).any():
        raise FormatError("a ternary weight has the code 3, which does not exist")
    tail = np.zeros(32, np.uint8)
    tail[:4] = np.array([scale], "<f4").view(np.uint8)
    return np.concatenate([codes.reshape(-1).view(np.uint8), tail])
