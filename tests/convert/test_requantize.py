"""Quantising without training: nearest ternary weights, types per tensor, and bits where they matter."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from lowbit.convert.requantize import quantize_model, write
from lowbit.convert.source import Source, encode, error_of
from lowbit.errors import FormatError, LowbitError
from lowbit.formats import open_model
from lowbit.formats.blocks import dequantize, ternary_codes
from lowbit.quantize import pack_codes
from lowbit.quantize.ternary import nearest_ternary

pytest.importorskip("lowbit._kernels.decoder", reason="kernels are not compiled", exc_type=ImportError)

from lowbit import cli
from lowbit.convert.sensitivity import Calibration, Option, allocate, expected, measure

TEXT = "One day w1 w2 w3 saw a w77.\n\n\nThen w4 met w5 and w6.\n\n\nThe end of w300."


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def types(path):
    with open_model(path) as file:
        return {name: info.type for name, info in file.tensors.items()}


def test_nearest_ternary_weights_are_the_best_of_all():
    weights = np.random.default_rng(0).standard_normal((30, 6)).astype(np.float32)
    codes, scales = nearest_ternary(weights, 6)
    found = (((codes.astype(float) - 1) * scales - weights) ** 2).sum(1)
    best = np.full(30, np.inf)
    for signs in itertools.product((-1.0, 0.0, 1.0), repeat=6):
        signs = np.array(signs)
        scale = weights @ signs / max((signs * signs).sum(), 1)
        best = np.minimum(best, ((signs * scale[:, None] - weights) ** 2).sum(1))
    assert np.allclose(found, best, rtol=1e-5)


def test_ternary_weights_come_back_as_they_are():
    draw = np.random.default_rng(1)
    codes = draw.integers(0, 3, (4, 512)).astype(np.uint8)
    codes[0, :256] = 1
    scales = draw.uniform(0.01, 2, (4, 2)).astype(np.float32)
    again, found = nearest_ternary((codes.astype(np.float32) - 1) * np.repeat(scales, 256, 1), 256)
    assert (again == codes).all()
    assert np.allclose(found[1:], scales[1:], rtol=1e-6)
    assert found[0, 0] == 0


@pytest.mark.parametrize("kind", ["TQ2_0", "Q2_0", "TQ1_0"])
def test_packed_codes_are_read_back(kind):
    block = {"Q2_0": 64}.get(kind, 256)
    draw = np.random.default_rng(2)
    codes = draw.integers(0, 3, (3, 512)).astype(np.uint8)
    scales = draw.uniform(0.5, 1, (3, 512 // block)).astype(np.float16).astype(np.float32)
    again, found = ternary_codes(kind, pack_codes(kind, codes, scales), codes.shape)
    assert (again.reshape(codes.shape) == codes).all()
    assert (found.reshape(scales.shape) == scales).all()


def test_every_matrix_gets_the_type_asked_for_and_the_rest_stays(llama, tmp_path):
    out = tmp_path / "out.gguf"
    rules = [("blk.0.*", "int8"), ("blk.0.ffn_down.*", "int4")]
    done = quantize_model(llama(ternary=False), out, method="ternary", head="int8", rules=rules)
    found = types(out)
    assert found["token_embd.weight"] == found["output.weight"] == "Q8_0"
    assert found["blk.0.attn_q.weight"] == "Q8_0"
    assert found["blk.0.ffn_down.weight"] == "Q4_0"
    assert found["blk.1.attn_q.weight"] == found["blk.1.ffn_down.weight"] == "TQ2_0"
    assert found["blk.1.attn_norm.weight"] == "F32"
    assert done.before is None
    with open_model(out) as file, open_model(tmp_path / "source.gguf") as source:
        assert file.metadata["tokenizer.ggml.tokens"] == source.metadata["tokenizer.ggml.tokens"]
        stored = 8 * sum(info.nbytes for info in file.tensors.values())
        weights = sum(np.prod(info.shape) for info in file.tensors.values())
        for tensor in done.tensors:
            raw = [dequantize(f.tensors[tensor.name].type, f.read(tensor.name), tensor.shape) for f in (file, source)]
            error = np.linalg.norm(raw[0] - raw[1]) / np.linalg.norm(raw[1])
            assert tensor.error == pytest.approx(error, rel=1e-4)
    assert done.bits_per_weight == pytest.approx(stored / weights)


def test_a_ternary_model_made_ternary_computes_the_same(llama, tmp_path, text):
    done = quantize_model(llama(architecture="bitnet"), tmp_path / "out.gguf", head="f16", text=text)
    assert done.after == pytest.approx(done.before, rel=5e-3)  # scales are rounded to float16
    assert all(tensor.error < 1e-3 for tensor in done.tensors)


def test_sensitivity_is_what_a_file_with_that_tensor_alone_changed_loses(llama, tmp_path, text):
    name, out = "blk.1.ffn_down.weight", tmp_path / "out.gguf"
    with open_model(llama(ternary=False)) as file:
        source, calibration = Source(file), Calibration(file, text, 1000, 1)
        source.matrices = [info for info in source.matrices if info.name == name]
        before = calibration.score(file)
        options = measure(source, calibration, before, lambda done, total: None)[name]
        assert [option.type for option in options] == ["TQ2_0", "Q4_0", "Q8_0", "F16"]
        for option in options[:2]:
            write(source, str(out), {name: option.type}, lambda done, total: None)
            with open_model(out) as written:
                assert calibration.score(written) - before == pytest.approx(option.loss, abs=1e-9)
        assert abs(options[0].loss) > abs(options[2].loss)
        assert options[0].error > options[1].error > options[2].error


def test_calibration_scores_as_the_model_does(llama, text):
    import lowbit

    path = llama()
    with open_model(path) as file:
        calibration = Calibration(file, text, 100_000, 1)
        assert calibration.bytes == sum(len(part.encode()) for part in TEXT.split("\n\n\n"))
        model = lowbit.load(path, threads=1, kv_type="f32", head="file", weights="file")
        scores = [model.perplexity(part) for part in TEXT.split("\n\n\n")]
        nats = sum(score.nats_per_token * score.tokens for score in scores)
        assert calibration.score(file) == pytest.approx(nats / np.log(2) / calibration.bytes, rel=1e-6)


def made_up(source, sensitive):
    """Options in which one tensor is more sensitive than all others."""
    options = {}
    for info in source.matrices:
        weights = int(np.prod(info.shape))
        losses = (
            {"TQ2_0": 5.0, "Q4_0": 1.0, "Q8_0": 0.1}
            if info.name == sensitive
            else {"TQ2_0": 0.02, "Q4_0": 0.01, "Q8_0": 0.0}
        )
        stored = {"TQ2_0": (2.0625, 0.45), "Q4_0": (4.5, 0.09), "Q8_0": (8.5, 0.006)}
        options[info.name] = [
            Option(kind, int(stored[kind][0] * weights / 8), stored[kind][0], loss, stored[kind][1])
            for kind, loss in losses.items()
        ]
    return options


@pytest.mark.parametrize("bits", [3.2, 4.0, 5.5, 9.0])
def test_bits_go_to_the_sensitive_tensor_within_the_budget(llama, tmp_path, bits):
    sensitive = "blk.1.attn_v.weight"
    with open_model(llama(ternary=False)) as file:
        source = Source(file)
        kinds = allocate(source, made_up(source, sensitive), bits)
        done = write(source, str(tmp_path / "out.gguf"), kinds, lambda done, total: None)
    assert done.bits_per_weight <= bits
    assert kinds[sensitive] == "Q8_0"
    low = [name for name, kind in kinds.items() if kind == "TQ2_0"]
    assert low or bits > 4
    assert not low or bits < 9
    assert not any(name.startswith(("token_embd", "output")) for name in low)
    if bits >= 4:
        assert not any(name.startswith("blk.0.") for name in low)


def test_expected_losses_follow_the_squared_error():
    errors = np.array([0.4, 0.2, 0.1, 0.0])
    options = [Option("x", 1, 1.0, 3 * e * e, e) for e in errors]
    assert np.allclose(expected(options), 3 * errors**2)
    assert expected([replace(option, loss=-option.loss) for option in options]) == [0, 0, 0, 0]
    assert expected([replace(option, error=0.0) for option in options]) == [0, 0, 0, 0]


def test_weights_that_stay_exact_get_no_more_bits_than_they_need(llama):
    with open_model(llama(architecture="bitnet")) as file:
        source = Source(file)
        options = {
            name: [Option(o.type, o.nbytes, o.bits, 0.0, 0.0) for o in found]
            for name, found in made_up(source, "").items()
        }
        assert set(allocate(source, options, 9).values()) == {"TQ2_0"}


def test_a_budget_below_the_smallest_file_is_refused(llama, text, tmp_path):
    with pytest.raises(
        LowbitError, match=r"1.5 bits per weight are too few: the smallest file of this model has 2\.39"
    ):
        quantize_model(llama(ternary=False), tmp_path / "out.gguf", bits=1.5, text=text, tokens=20)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("name", ["stories260K.bin", "tinystories-3m.F32.gguf"])
def test_real_models_keep_what_was_promised(test_data, tmp_path, name):
    out, corpus = tmp_path / "out.gguf", test_data / "corpora" / "tinystories" / "valid.txt"
    exact = name.startswith("tinystories")
    done = quantize_model(
        test_data / "models" / name, out, method="ternary" if exact else "int8", text=corpus, tokens=300
    )
    assert done.after == pytest.approx(done.before, rel=0.01)
    kinds = {tensor.name: tensor.type for tensor in done.tensors}
    if exact:
        assert kinds["blk.0.ffn_down.weight"] == "TQ2_0"
        assert done.bits_per_weight < 2.6
    else:
        assert kinds["blk.0.ffn_down.weight"] == "F16"  # rows of 172 are no whole blocks
        assert kinds["blk.0.ffn_up.weight"] == "Q8_0"


def test_command_prints_table_json_and_plot(llama, tmp_path, text, capsys):
    pytest.importorskip("matplotlib", reason="drawing needs matplotlib")
    path, out, plot = llama(ternary=False), tmp_path / "out.gguf", tmp_path / "bits.svg"
    common = ["quantize", str(path), str(out)]
    dynamic = ["--policy", "dynamic", "--bits", "5", "--text", str(text), "--tokens", "20", "-t", "1"]
    assert cli.main([*common, *dynamic, "--json", "--plot", str(plot)]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["bits_per_weight"] <= 5
    assert {tensor["name"]: tensor["type"] for tensor in found["tensors"]}.items() <= types(out).items()
    assert set(found["tensors"][0]["losses"]) == {"TQ2_0", "Q4_0", "Q8_0", "F16"}
    assert "bits/byte on the text" in shown.err
    assert "<svg" in plot.read_text(encoding="utf-8")
    assert cli.main([*common, "--type", "int4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(found["tensors"])
    assert lines[1].startswith("token_embd.weight")  # embedding and head, then block by block
    assert "Q4_0" in lines[-1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--policy", "dynamic"], "needs --bits and --text"),
        (["--policy", "dynamic", "--bits", "3", "--text", "TEXT", "--type", "int4"], "leave out --type"),
        (["--policy", "dynamic", "--bits", "0", "--text", "TEXT"], "above 0"),
        (["--policy", "dynamic", "--bits", "nan", "--text", "TEXT"], "above 0"),
        (["--bits", "3"], "budget of --policy dynamic"),
        (["--text", "absent.txt"], "absent.txt"),
        (["--text", "BINARY"], "not UTF-8"),
        (["--text", "EMPTY"], "no text"),
        (["--tensor", "blk.0.*"], "PATTERN=TYPE"),
        (["--tensor", "blk.0.*=int3"], "PATTERN=TYPE"),
        (["--tensor", "blk.9.*=int4"], "no matrix"),
        (["--type", "int5"], "invalid choice"),
    ],
)
def test_bad_input_gives_one_line_and_no_file(llama, tmp_path, text, capsys, options, reason):
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "empty").write_bytes(b"")
    names = {"TEXT": text, "BINARY": tmp_path / "binary", "EMPTY": tmp_path / "empty"}
    out = tmp_path / "out.gguf"
    assert cli.main(["quantize", str(llama()), str(out), *(str(names.get(o, o)) for o in options)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert reason in error
    assert not out.exists()


def test_source_is_not_overwritten_and_a_damaged_one_is_named(llama, tmp_path, capsys):
    path = llama()
    before = path.read_bytes()
    assert cli.main(["quantize", str(path), str(path)]) == 2
    assert path.read_bytes() == before
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(before[: len(before) // 2])
    assert cli.main(["quantize", str(cut), str(tmp_path / "out.gguf")]) == 2
    assert "cut.gguf" in capsys.readouterr().err
    assert not (tmp_path / "out.gguf").exists()


def test_weights_that_are_not_finite_are_refused(tmp_path, llama):
    path = llama(ternary=False)
    with open_model(path) as file:
        info = file.tensors["blk.1.attn_k.weight"]
    raw = bytearray(path.read_bytes())
    raw[info.offset : info.offset + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=r"source\.gguf: the tensor blk\.1\.attn_k\.weight"):
        quantize_model(path, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_whatever_ends_it_early_the_old_file_stays(llama, tmp_path, monkeypatch):
    path, out = llama(), tmp_path / "out.gguf"
    out.write_bytes(b"old")

    def interrupt(what, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_model(path, out, progress=interrupt)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(LowbitError, match="1,000 are free"):
        quantize_model(path, out)
    assert out.read_bytes() == b"old"
    assert {p.name for p in tmp_path.iterdir()} == {"source.gguf", "out.gguf"}


def test_encoding_errors_fall_with_the_bits():
    values = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
    errors = [error_of(values, kind, encode(kind, values)) for kind in ("TQ2_0", "Q2_0", "Q4_0", "Q8_0", "F16")]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.5
