"""Which files of a repository make the model, and which names are none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import lowbit
from lowbit import hub
from lowbit.commands import pull
from lowbit.hub import PREFERENCE, Choice, choose

FOLDER = ("config.json", "tokenizer.json", "model.safetensors")
HOSTILE = (
    "../x.gguf", "a/../x.gguf", "/x.gguf", "a//x.gguf", "./x.gguf", "..\\x.gguf", "C:x.gguf", "a/.x.gguf", "x\n.gguf",
    "\x1b[2J.gguf", "a /x.gguf", "a./x.gguf", " x.gguf", "x.gguf/", "con?.gguf", "x" * 600 + ".gguf",
)  # fmt: skip


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["m-Q4_K_M.gguf", "m-TQ2_0.gguf", "m-F16.gguf"], "m-TQ2_0.gguf"),
        (["m.Q8_0.gguf", "m.Q4_0.gguf", "m.Q4_K_M.gguf", "m.Q4_K_S.gguf"], "m.Q4_K_M.gguf"),
        (["m.Q8_0.gguf", "m.Q4_K_S.gguf", "m.Q4_0.gguf"], "m.Q4_0.gguf"),
        (["m-q5_k_m.gguf", "m-q3_k_m.gguf"], "m-q5_k_m.gguf"),
        (["m-F16.gguf", "m-Q2_0.gguf", "m-Q2_K.gguf"], "m-Q2_0.gguf"),
        (["m-Q2_0_g64.gguf", "m-Q2_0.gguf"], "m-Q2_0.gguf"),
        (["m-PTQ1_0.gguf", "m-PQ2_0.gguf", "m-Q4_K_M.gguf"], "m-PQ2_0.gguf"),
        (["ggml-model-i2_s.gguf", "ggml-model-f32.gguf"], "ggml-model-i2_s.gguf"),
        (["m-BF16.gguf", "m-F16.gguf", "m.gguf"], "m-F16.gguf"),
        (["m-IQ4_XS.gguf", "m-IQ1_S.gguf", "m-Q3_K_L.gguf"], "m-IQ4_XS.gguf"),
        (["m.gguf", "README.md", *FOLDER], "m.gguf"),
        (["m-Q8_0.gguf", "mmproj-m-TQ2_0.gguf", "m-TQ2_0.imatrix.gguf"], "m-Q8_0.gguf"),
        (["m-Q4_0-instruct.gguf", "m-F32.gguf"], "m-Q4_0-instruct.gguf"),
    ],
)
def test_without_a_file_the_best_type_is_taken(names, expected):
    assert choose(names) == Choice((expected,), expected) == choose(reversed(names))


def test_a_file_is_named_by_its_path_or_by_its_type():
    names = ["a/m-Q4_K_M.gguf", "m-Q8_0.gguf", "stories.bin"]
    assert choose(names, "a/m-Q4_K_M.gguf").opens == choose(names, "q4_k_m").opens == "a/m-Q4_K_M.gguf"
    assert choose(names, "stories.bin").opens == "stories.bin"
    assert choose(names, "Q4_0") is None
    assert choose(names, "m-Q4_K_M.gguf") is None


def test_the_parts_of_a_split_file_belong_together_and_must_all_be_there():
    parts = tuple(f"UD-IQ1_S/R1-UD-IQ1_S-{i:05}-of-00003.gguf" for i in (1, 2, 3))
    assert choose(parts) == choose(parts, "IQ1_S") == choose(parts, parts[1]) == Choice(parts, parts[0])
    assert choose(parts[:2]) is choose(parts[:2], parts[0]) is choose(parts[1:]) is None


def test_two_files_of_one_type_are_not_chosen_between():
    names = ["a-Q4_K_M.gguf", "b-Q4_K_M.gguf", "a-Q8_0.gguf"]
    with pytest.raises(lowbit.RemoteError, match=r"name one: a-Q4_K_M\.gguf, b-Q4_K_M\.gguf$"):
        choose(names)
    with pytest.raises(lowbit.RemoteError, match="name one"):
        choose(names, "Q4_K_M")
    assert choose(names, "Q8_0").opens == "a-Q8_0.gguf"


def test_a_folder_comes_with_its_tokenizer_and_the_weights_last():
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    index = "model.safetensors.index.json"
    names = [*shards, index, "config.json", "tokenizer.model", "README.md", "pytorch_model.bin", "modeling_x.py",
             "consolidated.safetensors", "onnx/model.safetensors"]  # fmt: skip
    assert choose(names) == Choice(("config.json", index, "tokenizer.model", *shards), ".")
    assert choose(set(names) - {shards[1]}) is None, "a part of the weights is no model"
    assert choose(set(names) - {"config.json"}) is None
    assert choose(["config.json", "pytorch_model.bin"]) is None


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_lead_out_of_the_folder_or_cannot_be_shown_are_no_files(name):
    assert choose([name]) is None
    assert choose([name, "m.gguf"]).files == ("m.gguf",)
    with pytest.raises(lowbit.RemoteError):
        hub.pull(f"hf:a/b:{name}")


@pytest.mark.parametrize(
    "name",
    ["hf:", "hf:a", "hf:a/", "hf:/b", "hf:a/b/c", "hf:../b", "hf:a/..", "hf:a/b--c", "hf:a/b:", "hf://a/b", "hf:a/b c",
     "hf:a/b\n", "hf:a/.b", "hf:ä/b", "hf:a/b.", "hf:" + "a" * 97 + "/b", "hf:a/b:../c"],
)  # fmt: skip
def test_what_is_no_name_is_refused_before_anybody_is_asked(name, cache):
    for function in (hub.pull, lowbit.load, lowbit.load_tokenizer):
        with pytest.raises(lowbit.RemoteError) as caught:
            function(name)
        assert repr(name) in str(caught.value)
    assert not cache.exists()


def test_the_help_gives_the_order_that_is_in_force():
    listed = pull.__doc__.partition("list:")[2].partition("If several")[0].split()
    assert tuple(name.rstrip("*") for name in listed) == PREFERENCE


@pytest.mark.parametrize(
    "environment",
    [{}, {"HF_HOME": "~/x"}, {"XDG_CACHE_HOME": "/x"}, {"HF_HUB_CACHE": "/y", "HF_HOME": "/x"},
     {"HUGGINGFACE_HUB_CACHE": "$HOME/z"}, {"HF_HUB_CACHE": "/a", "HUGGINGFACE_HUB_CACHE": "/b"}],
)  # fmt: skip
def test_the_cache_is_the_librarys(environment):
    pytest.importorskip("huggingface_hub")
    code = (
        "import os; from huggingface_hub.constants import HF_HUB_CACHE; from lowbit.hub import cache_folder\n"
        "assert os.fspath(cache_folder()) == os.path.expandvars(HF_HUB_CACHE), (cache_folder(), HF_HUB_CACHE)"
    )
    unset = ("HF_HOME", "XDG_CACHE_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    subprocess.run([sys.executable, "-c", code], env={**kept, **environment}, check=True, timeout=1200)
