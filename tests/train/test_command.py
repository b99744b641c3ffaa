"""The command from text to GGUF file, in a process of its own where that matters."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the extra 'train'")

from lowbit.chat import find_template
from lowbit.commands import train as command
from lowbit.errors import FormatError, LowbitError
from lowbit.train.checkpoint import read_progress
from lowbit.train.crew import can_fork
from lowbit.train.project import check_apart, hold_out, split_weight
from lowbit.train.warmstart import read_model

OPTIONS = (
    "--layers 1 --hidden 128 --intermediate 128 --heads 4 --kv-heads 2 --context 32 --window 32 --type I2_S "
    "--vocab-size 512 --batch 256 --learning-rate 5e-3 --no-compile --compute float32 --threads 1 --samples 0"
)
TINY = OPTIONS.split()

PROGRAM = """
import argparse, sys
from lowbit.commands import train
parser = argparse.ArgumentParser()
train.add_arguments(parser)
sys.exit(train.run(parser.parse_args()))
"""


LIMITED = """
import resource, sys
from lowbit.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (1_200_000, 1_200_000))
sys.exit(main(["train", *sys.argv[1:]]))
"""


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def corpus(tmp_path, stories):
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    return path


def test_a_run_leaves_a_model_a_curve_and_a_checkpoint(tmp_path, corpus, capsys):
    out = tmp_path / "model.gguf"
    assert run(corpus, "-o", out, "--steps", 12, *TINY) == 0
    assert read_model(out).shape.hidden_size == 128
    assert "<svg" in (tmp_path / "model.gguf.train" / "loss.svg").read_text(encoding="utf-8")
    assert read_progress(tmp_path / "model.gguf.train" / "checkpoint.npz")["step"] == 12
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "bits/byte on held-out text" in shown.err


def test_samples_continue_held_out_text_and_can_be_had_again(tmp_path, corpus, stories):
    pytest.importorskip("lowbit._kernels.decoder", reason="kernels are not compiled", exc_type=ImportError)
    import lowbit

    out, other = tmp_path / "model.gguf", tmp_path / "held.txt"
    other.write_text("\n<|endoftext|>\n".join(stories[:2]), encoding="utf-8")
    corpus.write_text("\n<|endoftext|>\n".join(s for s in stories if s not in stories[:2]), encoding="utf-8")
    run(corpus, "-o", out, "--steps", 12, *TINY, "--validation", other, "--samples", 3, "--seed", 5)
    text = (tmp_path / "model.gguf.train" / "samples.txt").read_text(encoding="utf-8")
    samples = text.removesuffix("\n").split("\n\n----\n\n")
    assert len(samples) == 3
    model = lowbit.load(out)
    for i, sample in enumerate(samples):
        start, _, made = sample.partition("|")
        assert stories[i % 2].startswith(start)
        assert made == model.generate(start, max_tokens=16, temperature=0.7, seed=5 + i).text


def test_a_full_disk_ends_the_run_with_one_line_and_keeps_the_last_good_checkpoint(tmp_path, corpus):
    pytest.importorskip("resource", reason="needs POSIX resource limits")
    out = tmp_path / "model.gguf"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(corpus), "-o", str(out), "--steps", "9", "--checkpoint-seconds", "0.001",
         *TINY],
        capture_output=True, text=True, check=False, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "checkpoint.npz: cannot write the checkpoint" in done.stderr.splitlines()[-1]
    assert not out.exists()
    folder = tmp_path / "model.gguf.train"
    # the first checkpoint, before the optimizer has moments, still had room
    assert read_progress(folder / "checkpoint.npz")["step"] == 0
    assert sorted(p.name for p in folder.iterdir()) == [
        "checkpoint.npz", "events.out.tfevents.0.lowbit", "options.json", "vocabulary.gguf",
    ]  # fmt: skip


@pytest.mark.parametrize("cores", [1, 2])
def test_a_run_killed_in_the_middle_and_resumed_writes_the_same_file(tmp_path, corpus, cores):
    whole, broken = tmp_path / "whole.gguf", tmp_path / "broken.gguf"
    options = [
        *TINY, "--steps", "60", "--dropout", "0.1", "--keep", "0.6", "--checkpoint-seconds", "0.001", "--name", "x",
        "--micro-batch", "128",
    ]  # fmt: skip
    assert run(corpus, "-o", whole, *options) == 0

    options += ["--threads", str(cores)]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(corpus), "-o", str(broken), *options])
    checkpoint = tmp_path / "broken.gguf.train" / "checkpoint.npz"
    deadline = time.monotonic() + 120
    while not (checkpoint.exists() and read_progress(checkpoint)["step"] >= 5):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    copies = children(process.pid)
    assert len(copies) == (cores - 1 if can_fork() else 0)
    process.kill()  # SIGKILL: no handler of ours can run
    process.wait()
    assert not broken.exists()
    assert 5 <= read_progress(checkpoint)["step"] < 60
    while any(map(is_alive, copies)):
        assert time.monotonic() < deadline, "a process outlives the run"
        time.sleep(0.01)

    assert run(corpus, "-o", broken, *options, "--resume") == 0
    assert broken.read_bytes() == whole.read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of Unix")
@pytest.mark.parametrize("cores", [1, 2])
def test_ctrl_c_leaves_a_checkpoint_names_resume_and_costs_nothing(tmp_path, corpus, cores):
    whole, broken = tmp_path / "whole.gguf", tmp_path / "broken.gguf"
    options = [*TINY, "--steps", "60", "--name", "x", "--micro-batch", "128", "--measure-every", "5"]
    assert run(corpus, "-o", whole, *options) == 0
    options += ["--threads", str(cores)]
    process = subprocess.Popen(
        [sys.executable, "-m", "lowbit", "train", str(corpus), "-o", str(broken), *options], stderr=subprocess.PIPE,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    line = process.stderr.readline()
    while "step 1 of 60" not in line:
        assert line, "the run ended before it could be interrupted"
        line = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=1200)
    assert process.returncode == 130
    checkpoint = tmp_path / "broken.gguf.train" / "checkpoint.npz"
    progress = read_progress(checkpoint)
    assert 1 <= progress["step"] == len(progress["history"]) < 60
    assert f"stopped after step {progress['step']} of 60; the same command with --resume goes on" in err
    assert "Traceback" not in err
    assert run(corpus, "-o", broken, *options, "--resume") == 0
    assert broken.read_bytes() == whole.read_bytes()


def test_without_matplotlib_a_run_ends_with_a_line_about_it(tmp_path, corpus, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    out = tmp_path / "model.gguf"
    assert run(corpus, "-o", out, "--steps", 2, *TINY) == 0
    assert out.exists()
    assert "loss.svg: not drawn, matplotlib" in capsys.readouterr().err


def test_where_compiling_fails_the_run_goes_on_without_and_says_so(tmp_path, corpus):
    out = tmp_path / "model.gguf"
    options = [*(word for word in TINY if word != "--no-compile"), "--compile", "--steps", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "lowbit", "train", str(corpus), "-o", str(out), *options],
        env={**os.environ, "CXX": "false"}, capture_output=True, text=True, check=False, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("training goes on without it") == 1
    assert "Traceback" not in done.stderr
    assert read_model(out).shape.hidden_size == 128
    assert not (tmp_path / "model.gguf.train" / "compiled").exists()


def children(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_fine_tuning_goes_on_from_a_model_and_can_add_layers(tmp_path, corpus):
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    run(corpus, "-o", first, "--steps", 60, *TINY)
    after = read_progress(tmp_path / "first.gguf.train" / "checkpoint.npz")["history"][-1]["bits_per_byte"]
    run(corpus, "-o", second, "--steps", 1, *TINY, "--init", first, "--layers", 2, "--learning-rate", 1e-6)
    start = read_progress(tmp_path / "second.gguf.train" / "checkpoint.npz")["history"][-1]["bits_per_byte"]
    assert read_model(second).shape.n_layers == 2
    assert start == pytest.approx(after, rel=0.05)


def test_a_finished_folder_is_not_overwritten_and_nothing_is_not_resumed(tmp_path, corpus):
    out = tmp_path / "model.gguf"
    with pytest.raises(FormatError, match="nothing to resume"):
        run(corpus, "-o", out, "--steps", 2, *TINY, "--resume")
    run(corpus, "-o", out, "--steps", 2, *TINY)
    with pytest.raises(FormatError, match="holds a run already"):
        run(corpus, "-o", out, "--steps", 2, *TINY)
    with pytest.raises(FormatError, match="corpus was"):
        run(corpus, corpus, "-o", out, "--steps", 2, *TINY, "--resume")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--vocab-size", "8192"], "does not allow a vocabulary of 8192"),
        (["--type", "TQ2_0"], "whole 256s"),
        (["--heads", "3"], "multiple of the heads"),
        (["--init", "absent.gguf"], "absent.gguf"),
        (["--teacher", "absent.gguf"], "absent.gguf"),
        (["--vocabulary", "absent.model"], "absent.model"),
        (["--batch", "100"], "multiple of the window"),
        (["--teacher", "embedded"], "same vocabulary"),
        (["--context", "32", "--window", "64"], "longer than the context of 32"),
        (["--seed", str(1 << 63)], "seed must be"),
        (["--learning-rate", "1e8", "--steps", "30"], "last good state"),
    ],
)
def test_bad_input_ends_with_one_clear_error(tmp_path, corpus, options, reason):
    out = tmp_path / "model.gguf"
    with pytest.raises(LowbitError, match=reason) as caught:
        run(corpus, "-o", out, "--steps", 2, *TINY, *options)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_neither_the_corpus_nor_a_folder_becomes_the_model(tmp_path, corpus):
    before = corpus.read_bytes()
    for out, reason in ((corpus, "is read"), (tmp_path, "is a folder")):
        with pytest.raises(FormatError, match=reason):
            run(corpus, "-o", out, "--steps", 2, *TINY)
    assert corpus.read_bytes() == before
    assert list(tmp_path.iterdir()) == [corpus]


def test_a_mix_without_weight_is_refused_and_an_odd_weight_too(tmp_path, corpus):
    out = tmp_path / "model.gguf"
    with pytest.raises(FormatError, match="mix is empty"):
        run(f"{corpus}=0", "-o", out, "--steps", 2, *TINY)
    with pytest.raises(FormatError, match="0 to 1000"):
        run(f"{corpus}=-1", "-o", out, "--steps", 2, *TINY)
    assert not out.exists()


def test_a_file_can_have_an_equals_sign_in_its_name(tmp_path):
    path = tmp_path / "a=2"
    path.write_text("x")
    assert split_weight(str(path)) == (str(path), 1.0)
    assert split_weight(f"{path}=2.5") == (str(path), 2.5)
    assert split_weight("b=c") == ("b=c", 1.0)


def test_text_that_is_trained_on_is_not_measured_on(tmp_path, corpus, stories):
    held = tmp_path / "held.txt"
    held.write_text("A text of its own.\n<|endoftext|>\n" + stories[7].upper().replace("\n", "  "), encoding="utf-8")
    with pytest.raises(FormatError, match="measure on is trained on"):
        run(corpus, "-o", tmp_path / "model.gguf", "--steps", 2, *TINY, "--validation", held)
    other = "A quite different story, of a whale that swam from pole to pole and told nobody what it had seen there."
    check_apart(stories, [other, stories[0][:30] + other])
    with pytest.raises(FormatError):
        check_apart([*stories, other + " It sleeps now."], [other])


def test_the_folder_tells_how_the_run_was_made_and_logs_it(tmp_path, corpus):
    out = tmp_path / "model.gguf"
    run(f"{corpus}=1.5", "-o", out, "--steps", 4, *TINY, "--optimizer", "muon", "--measure-every", 2)
    folder = tmp_path / "model.gguf.train"
    options = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    assert options["schedule"]["optimizer"] == "muon"
    assert options["sha256"] == {f"{corpus}=1.5": hashlib.sha256(corpus.read_bytes()).hexdigest()}
    records = list(read_events(folder / "events.out.tfevents.0.lowbit"))
    history = read_progress(folder / "checkpoint.npz")["history"]
    assert [step for step, _ in records] == [0, 1, 2, 3, 4]
    for (_, values), record in zip(records[1:], history, strict=True):
        assert values["loss/nats_per_token"] == pytest.approx(record["loss"], rel=1e-6)
        assert ("loss/bits_per_byte" in values) == (record["step"] % 2 == 0)


def read_events(path):
    """Read (step, values) of each event, as TensorBoard does; the checksums are computed in another way than ours."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = data[at + 12 : at + 12 + length]
        for part, place in ((data[at : at + 8], at + 8), (event, at + 12 + length)):
            crc = crc32c(part)
            assert struct.unpack_from("<I", data, place) == (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF,)
        at += 16 + length
        step, i = 0, 10
        assert event[9] == 0x10
        while True:
            step |= (event[i] & 127) << 7 * (i - 10)
            i += 1
            if event[i - 1] < 128:
                break
        found = re.findall(rb"\x0a([\x01-\x7f])((?:loss|schedule|gradient)/[a-z_]+)\x15(....)", event[i:], re.DOTALL)
        assert all(size[0] == len(tag) for size, tag, _ in found)
        yield step, {tag.decode(): struct.unpack("<f", value)[0] for _, tag, value in found}


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_a_conversation_becomes_a_model_that_chats(tmp_path, stories):
    pytest.importorskip("lowbit._kernels.decoder", reason="kernels are not compiled", exc_type=ImportError)
    import lowbit

    path, out = tmp_path / "chat.jsonl", tmp_path / "model.gguf"
    path.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": "Tell."}, {"role": "assistant", "content": s}]}) + "\n"
            for s in stories
        ),
        encoding="utf-8",
    )
    options = [
        "--context", 128, "--window", 64, "--vocab-size", 512, "--steps", 80, "--learning-rate", 5e-3, "--emphasis", 2,
    ]  # fmt: skip
    run(path, "-o", out, *TINY, *options)
    model = lowbit.load(out)
    assert "im_start" in model.info()["chat_template"]
    told = model.chat([{"role": "user", "content": "Tell."}], max_tokens=60, temperature=0.0)
    assert told.text.strip().startswith("Once upon a time")
    assert told.finish_reason == "stop"
    assert find_template({"tokenizer.chat_template": model.info()["chat_template"]}, model.tokenizer).name == "chatml"


def test_a_teacher_is_run_by_lowbit_and_changes_what_is_learned(tmp_path, corpus):
    pytest.importorskip("lowbit._kernels.decoder", reason="kernels are not compiled", exc_type=ImportError)
    import lowbit

    teacher, plain, taught = (tmp_path / f"{name}.gguf" for name in ("teacher", "plain", "taught"))
    run(corpus, "-o", teacher, "--steps", 60, *TINY)
    options = [*TINY, "--steps", 20, "--vocabulary", teacher, "--seed", 1]
    run(corpus, "-o", plain, *options)
    run(corpus, "-o", taught, *options, "--teacher", teacher, "--distill", 0.9)
    prompt = lowbit.load(teacher).tokenizer.encode("Once upon a time, Tom")
    logits = [lowbit.load(path).logits(prompt).astype(float) for path in (teacher, plain, taught)]
    told, without, with_teacher = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logits)
    assert (np.exp(told) * (told - with_teacher)).sum() < 0.95 * (np.exp(told) * (told - without)).sum()


def test_text_kept_back_is_never_trained_on(stories):
    documents = stories + stories[:50]
    kept, held = hold_out(documents, seed=0)
    assert held
    assert not set(held) & set(kept)
    assert set(held) | set(kept) == set(documents)
    book = " ".join(stories)
    kept, held = hold_out([book], seed=0)
    assert kept[0] + held[0] == book
    with pytest.raises(FormatError, match="too short"):
        hold_out(["x"], seed=0)
