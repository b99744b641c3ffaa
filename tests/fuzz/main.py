"""Runs one target under atheris; the `fuzz_*.py` beside it name theirs. See README.md."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import sys
import tempfile
from pathlib import Path
from types import FunctionType

try:
    import atheris
except ImportError:
    sys.exit("atheris is not installed here: pip install atheris (Linux and macOS, CPython)")

import targets

import lowbit.families
import lowbit.formats
import lowbit.tokenizers

MAX_BYTES = 1 << 16


def main(name: str) -> None:
    """Fuzz a target until it fails or libFuzzer's options on the command line say stop.

    The first byte of an input says what the rest is: the file itself, or choices of what to break in a valid one.
    """
    target = targets.TARGETS[name]
    for package in (lowbit.formats, lowbit.tokenizers, lowbit.families):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    # Not by atheris.instrument_imports: that does not see what an editable installation imports.
    for function in [f for f in gc.get_objects() if isinstance(f, FunctionType)]:
        if (function.__module__ or "").startswith("lowbit."):
            atheris.instrument_func(function)
    scratch = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    folder, corpus = Path(scratch.name) / "files", Path(scratch.name) / "corpus"
    for path in (folder, corpus):
        path.mkdir()
    for i, data in enumerate(target.valid):
        (corpus / f"valid{i}").write_bytes(b"\0" + data)
    for i in range(8):
        (corpus / f"choices{i}").write_bytes(bytes([1]) + os.urandom(64))

    def one_input(data: bytes) -> None:
        if data[:1] and data[0] & 1:
            choices = atheris.FuzzedDataProvider(data[1:])
            content = target.broken(lambda n: choices.ConsumeIntInRange(0, n - 1))
        else:
            content = data[1:]
        targets.check(target, folder, content)

    again = any(os.path.isfile(argument) for argument in sys.argv[1:])  # a finding to be shown again, nothing new
    atheris.Setup([*sys.argv, f"-max_len={MAX_BYTES}", *([] if again else [str(corpus)])], one_input)
    atheris.Fuzz()
