"""Fetch a model from the Hugging Face hub.

NAME is hf:OWNER/MODEL or hf:OWNER/MODEL:FILE, where FILE is the path of a file in that repository, or a type such as
Q4_K_M. Without FILE, it is the GGUF file whose type comes first in this list:

  TQ2_0 I2_S TQ1_0 Q2_0 PQ2_0 PTQ1_0 Q1_0 Q4_K_M Q4* Q5* Q6* Q8* IQ4* MXFP4 Q3* IQ3* Q2* IQ2* IQ1* F16 BF16 F32

If several files have that type, name one. The parts of a split file come together. A repository without GGUF files
gives config.json with the safetensors and the tokenizer.

What has been fetched lies in the cache that huggingface_hub and other programs share (HF_HOME names another place), is
checked against the hub's checksum, and is not fetched again; an attempt that was cut off goes on where it ended. The
path is printed. All other commands take hf:... wherever they take a model file: they run what is in the cache without
asking anybody, and fetch only what is not there; so it is this command that looks for a newer version. For models that
ask for a login, set HF_TOKEN or use `hf auth login`. With HF_HUB_OFFLINE=1 nothing is fetched.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="hf:OWNER/MODEL, or hf:OWNER/MODEL:FILE")


def run(args: argparse.Namespace) -> int:
    from ..hub import pull

    print(pull(args.name))
    return 0
