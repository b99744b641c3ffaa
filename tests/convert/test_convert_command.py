"""`lowbit convert` says what it wrote, and in one line why it did not."""

from __future__ import annotations

import json

import pytest

from lowbit import cli
from lowbit.formats import open_model


def test_the_command_writes_the_file_and_reports_its_types(llama, tmp_path, capsys):
    path, out = llama(), tmp_path / "out.gguf"
    assert cli.main(["convert", str(path), str(out), "--type", "tq2_0", "--head", "q6_k", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "path": str(out), "bytes": out.stat().st_size, "types": {"Q6_K": 2, "F32": 5, "TQ2_0": 14}, "instead": {},
        "no_tokenizer": None,
    }  # fmt: skip
    assert open_model(out).tensors["output.weight"].type == "Q6_K"


def test_the_command_offers_every_type():
    from lowbit import convert
    from lowbit.commands import convert as command

    assert (command.TARGET_TYPES, command.HEAD_TYPES) == (convert.TARGET_TYPES, convert.HEAD_TYPES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--type", "q3_0"], "invalid choice"),
        ([], "--type"),
        (["--type", "tq2_0"], "is not ternary"),
        (["--type", "q8_0", "--head", "q4_0"], "invalid choice"),
    ],
)
def test_bad_input_is_one_line_and_status_2(llama, tmp_path, capsys, arguments, message):
    path = llama(ternary=False)
    assert cli.main(["convert", str(path), str(tmp_path / "out.gguf"), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]
