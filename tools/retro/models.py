"""Make the model files of the Pentium II machine, and what this machine says about them.

    python models.py FOLDER

Writes FOLDER/*.gguf and FOLDER/runs.json: the runs of the series, each with the greedy tokens that it has to give, and
the bits of some logits. They are computed here, by the lowbit that is installed, from the same
files.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import lowbit
from lowbit.assets import EMBEDDED_MODEL

SOURCE = Path(__file__).resolve().parents[2]


def story_model(folder: Path) -> str:
    """Copy the model that comes with lowbit."""
    shutil.copyfile(EMBEDDED_MODEL, folder / "embedded.gguf")
    return "embedded.gguf"


def random_model(folder: Path, shape: str) -> str:
    """Write a model of random ternary weights, with the benchmark's own writer."""
    spec = importlib.util.spec_from_file_location("random_gguf", SOURCE / "bench" / "random_gguf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.write_random_gguf(shape, folder).name)


def series(folder: Path) -> list[dict[str, Any]]:
    """The runs of the machine, in order; limits are of the peak resident memory, in MB of 2**20 bytes."""
    story = story_model(folder)
    prompt = "One day, a dog"
    runs = [
        {"name": "story", "model": story, "prompt": prompt, "tokens": 160, "rss_limit": 32},
        {
            "name": "15M",
            "model": random_model(folder, "15M"),
            "prompt": list(range(1, 9)),
            "tokens": 24,
            "rss_limit": 64,
        },
        {
            "name": "1B in 64 MB",
            "model": random_model(folder, "1B"),
            "prompt": [1, 400],
            "tokens": 2,
            "max_ram": "64MB",
        },
    ]
    for run in runs:
        model = lowbit.load(folder / str(run["model"]), context=min(512, 8 * int(str(run["tokens"]))))
        run["expected"] = model.generate(run["prompt"], max_tokens=run["tokens"], temperature=0).tokens
        if "max_ram" not in run:  # one more pass, which takes long where weights come from the disk
            ids = model.tokenizer.encode(run["prompt"]) if isinstance(run["prompt"], str) else run["prompt"]
            run["probe"] = ids
            run["logits"] = model.logits(ids)[-1].view("<u4")[:: model.config.vocab_size // 64].tolist()
        del model
    return runs


def main() -> None:
    """Make everything in the folder of the command line."""
    folder = Path(sys.argv[1])
    runs = series(folder)
    (folder / "runs.json").write_text(json.dumps(runs))


if __name__ == "__main__":
    main()
