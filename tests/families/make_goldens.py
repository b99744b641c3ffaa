"""Make goldens/*.npz with PyTorch and transformers: what the tests of this folder compare lowbit with.

Run it by hand, in an environment with torch and transformers 5:

    TORCHDYNAMO_DISABLE=1 python tests/families/make_goldens.py

The models are read from the folders that `checkpoints.py` writes, and run in float32. transformers has no class for
1bitLLM's BitNet; there its Llama is given BitLinear layers, and norms before two of them, as the model was published.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers.integrations.bitnet import AutoBitLinear, replace_with_bitnet_linear, unpack_weights
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.llama.modeling_llama import LlamaRMSNorm

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import checkpoints  # noqa: E402


class BitLinear(nn.Linear):
    """1bitLLM's layer: weights by absmean, activations by absmax per token, both fake-quantised."""

    def forward(self, x):
        gamma = self.weight.abs().mean().clamp(min=1e-5)
        weight = (self.weight / gamma).round().clamp(-1, 1) * gamma
        s = 127 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
        return nn.functional.linear((x * s).round().clamp(-128, 127) / s, weight)


def one_bit_llm(folder):
    """Llama with BitLinear layers and 1bitLLM's norms."""
    config = transformers.LlamaConfig.from_pretrained(folder)
    model = transformers.LlamaForCausalLM(config)
    weights = {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
    for i, layer in enumerate(model.model.layers):
        for part, key, norm in (
            (layer.self_attn, "o_proj", f"model.layers.{i}.self_attn.inner_attn_ln.weight"),
            (layer.mlp, "down_proj", f"model.layers.{i}.mlp.ffn_layernorm.weight"),
        ):
            old = getattr(part, key)
            weight = weights.pop(norm)
            before = LlamaRMSNorm(len(weight), config.rms_norm_eps)
            before.weight.data = weight
            setattr(part, key, nn.Sequential(before, BitLinear(old.in_features, old.out_features, bias=False)))
            for prefix in (f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."):
                if f"{prefix}{key}.weight" in weights:
                    getattr(part, key)[1].weight.data = weights.pop(f"{prefix}{key}.weight")
        for part in (layer.self_attn, layer.mlp):
            for key, old in list(part.named_children()):
                if type(old) is nn.Linear:
                    setattr(part, key, BitLinear(old.in_features, old.out_features, bias=False))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    left = [key for key in missing if ".o_proj." not in key and ".down_proj." not in key]
    assert left == ["lm_head.weight"], left
    model.tie_weights()
    return model


def bit_linears(folder, name):
    """A quantised model: transformers' own BitNet layers, filled from the file."""
    config = transformers.AutoConfig.from_pretrained(folder)
    quantization = transformers.BitNetQuantConfig(
        **{k: v for k, v in checkpoints.config_of(name)["quantization_config"].items() if k != "quant_method"}
    )
    config.quantization_config = None
    config.dtype = torch.float32
    model = transformers.AutoModelForCausalLM.from_config(config)
    replace_with_bitnet_linear(model, ["lm_head"], quantization)
    stored = load_file(folder / "model.safetensors")
    weights = {key: value if value.dtype == torch.uint8 else value.float() for key, value in stored.items()}
    for key, module in model.named_modules():
        if isinstance(module, AutoBitLinear) and weights[f"{key}.weight"].dtype == torch.uint8:
            weights[f"{key}.weight"] = unpack_weights(weights[f"{key}.weight"], dtype=torch.float32)
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    if config.tie_word_embeddings:
        model.tie_weights()
    return model


def normed(folder):
    """microsoft's embedding models: each linear layer is an RMSNorm with a weight of its own, and BitLinear."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = load_file(folder / "model.safetensors")
    for key, old in list(model.named_modules()):
        if f"{key}.norm.weight" in weights and type(old) is nn.Linear:
            linear, before = (
                BitLinear(old.in_features, old.out_features, bias=False),
                LlamaRMSNorm(old.in_features, 1e-6),
            )
            linear.weight.data, before.weight.data = old.weight.data, weights[f"{key}.norm.weight"].float()
            parent, _, last = key.rpartition(".")
            setattr(model.get_submodule(parent), last, nn.Sequential(before, linear))
    return model


class MiniCPM(nn.Module):
    """Llama's layers, and the three factors where MiniCPM has them; transformers has no class for it."""

    def __init__(self, folder, keys):
        super().__init__()
        self.scale, self.depth = keys["scale_emb"], keys["scale_depth"] / keys["num_hidden_layers"] ** 0.5
        self.divisor = keys["hidden_size"] / keys["dim_model_base"]
        self.llama = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(folder))
        weights = {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
        missing, unexpected = self.llama.load_state_dict(weights, strict=False)
        assert not unexpected
        assert missing == ["lm_head.weight"], missing
        self.llama.tie_weights()

    def forward(self, ids):
        inner, n = self.llama.model, ids.shape[1]
        x = inner.embed_tokens(ids) * self.scale
        rotations = inner.rotary_emb(x, torch.arange(n)[None])
        mask = torch.full((n, n), float("-inf")).triu(1)[None, None]
        for layer in inner.layers:
            mixed, _ = layer.self_attn(layer.input_layernorm(x), position_embeddings=rotations, attention_mask=mask)
            x = x + self.depth * mixed
            x = x + self.depth * layer.mlp(layer.post_attention_layernorm(x))
        return SimpleNamespace(logits=self.llama.lm_head(inner.norm(x) / self.divisor))


def gpt_oss_mxfp4(folder):
    """The same model in floats, since transformers multiplies MXFP4 on other machines only."""
    config = transformers.AutoConfig.from_pretrained(folder)
    del config.quantization_config
    weights = load_file(folder / "model.safetensors")
    for key in [key for key in weights if key.endswith("_blocks")]:
        stem, blocks = key.removesuffix("_blocks"), weights.pop(key)
        weights[stem] = convert_moe_packed_tensors(blocks, weights.pop(f"{stem}_scales"), dtype=torch.float32)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict({key: value.float() for key, value in weights.items()})
    return model


def load(folder, name):
    if checkpoints.CASES[name][3] == "mxfp4":
        return gpt_oss_mxfp4(folder)
    if checkpoints.CASES[name][3] == "normed":
        return normed(folder)
    if checkpoints.CASES[name][0] == "MiniCPMForCausalLM":
        return MiniCPM(folder, checkpoints.config_of(name))
    if checkpoints.CASES[name][0] == "BitnetForCausalLM":
        return one_bit_llm(folder)
    if "quantization_config" in checkpoints.config_of(name):
        return bit_linears(folder, name)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@torch.no_grad()
def golden(model):
    model.eval()
    logits = model(torch.tensor([checkpoints.LOGITS_IDS])).logits[0].numpy()
    ids, margins = list(checkpoints.PROMPT), []
    for _ in range(checkpoints.NEW_TOKENS):
        last = model(torch.tensor([ids])).logits[0, -1]
        best = last.topk(2).values
        margins.append(float(best[0] - best[1]))
        ids.append(int(last.argmax()))
    return logits, ids[len(checkpoints.PROMPT) :], min(margins) / float(logits.max() - logits.min())


def main():
    for name in sys.argv[1:] or checkpoints.CASES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = checkpoints.write(name, Path(temporary) / name)
            logits, ids, margin = golden(load(folder, name))
        # Every second position is enough, and keeps the files small.
        np.savez_compressed(
            HERE / "goldens" / f"{name}.npz",
            logits=logits[::2].astype(np.float32), ids=np.array(ids, np.int32),
            versions=np.array([f"torch {torch.__version__}", f"transformers {transformers.__version__}"]),
        )  # fmt: skip
        print(f"{name}: {len(set(ids))} different ids, smallest margin {margin:.1e} of the range")


if __name__ == "__main__":
    main()
