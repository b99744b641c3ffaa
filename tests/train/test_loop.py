"""The training loop: it learns, it resumes, and it stops before it ruins anything."""

from __future__ import annotations

# ruff: noqa: E402  (torch is asked for before what needs it is imported)
import os
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra 'train'")

from lowbit.errors import FormatError, LowbitError
from lowbit.train import report
from lowbit.train.checkpoint import load_checkpoint, read_progress, save_checkpoint
from lowbit.train.loop import Schedule, fit
from lowbit.train.measure import bits_per_byte
from lowbit.train.model import ternary
from lowbit.train.optimizer import Optimizer, orthogonalise
from lowbit.train.speed import training_speed

QUICK = {"batch_tokens": 512, "micro_tokens": 256, "window": 32, "learning_rate": 5e-3}


def losses(history):
    return [record["loss"] for record in history]


def test_loss_falls_and_the_weights_are_ternary(make_model, documents, stories, tmp_path):
    model = make_model()
    size = sum(len(text.encode()) for text in stories[:20])
    before = bits_per_byte(model, documents[:20], size)
    history = fit(model, documents, Schedule(steps=80, **QUICK), tmp_path / "c.npz")
    assert np.mean(losses(history)[-5:]) < 0.5 * losses(history)[0]
    assert bits_per_byte(model, documents[:20], size) < 0.5 * before
    for block in model.blocks:
        for name, parameter in block.named_parameters():
            if parameter.ndim == 2:
                codes, _ = ternary(parameter)
                assert set(codes.unique().tolist()) <= {-1.0, 0.0, 1.0}, name


def test_gradients_of_micro_batches_add_up(make_model, documents, tmp_path):
    results = []
    for micro in (128, 512):
        model = make_model()
        schedule = Schedule(steps=1, **{**QUICK, "micro_tokens": micro})
        fit(model, documents, schedule, tmp_path / f"{micro}.npz")
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*results, atol=1e-4)


def test_the_same_seed_gives_the_same_run(make_model, documents, tmp_path):
    schedule = Schedule(steps=6, keep=0.6, **QUICK)
    a, b = (fit(make_model(), documents, schedule, tmp_path / name) for name in ("a.npz", "b.npz"))
    assert losses(a) == losses(b)


class StopError(Exception):
    pass


def stop_at(step):
    def report(record):
        if record["step"] == step:
            raise StopError

    return report


@pytest.mark.parametrize("options", [{}, {"optimizer": "muon", "curve": "wsd", "ema": 0.9}])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_run_equals_an_unbroken_one(make_model, documents, tmp_path, options, processes):
    schedule = Schedule(steps=12, keep=0.6, **options, **QUICK)

    def run(path, **more):
        model = make_model()
        for block in model.blocks:
            block.dropout = 0.1
        return fit(model, documents, schedule, path, checkpoint_seconds=0, processes=processes, **more), model

    unbroken, model = run(tmp_path / "a.npz")
    with pytest.raises(StopError):
        run(tmp_path / "b.npz", report=stop_at(5))
    resumed, again = run(tmp_path / "b.npz", resume=True)
    assert losses(resumed) == losses(unbroken)
    for p, q in zip(model.parameters(), again.parameters()):
        assert torch.equal(p, q)


def test_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(make_model, documents, tmp_path):
    model, path = make_model(), tmp_path / "c.npz"

    def poison(record):
        if record["step"] == 4:
            with torch.no_grad():
                model.output_norm[0] = torch.nan

    with pytest.raises(LowbitError, match="at step 5"):
        fit(model, documents, Schedule(steps=9, **QUICK), path, report=poison, checkpoint_seconds=0)
    assert read_progress(path)["step"] == 4
    good = make_model(seed=1)
    load_checkpoint(path, good, Optimizer(good))
    assert all(torch.isfinite(p).all() for p in good.parameters())


def test_other_options_or_another_shape_cannot_be_resumed(make_model, documents, tmp_path):
    path = tmp_path / "c.npz"
    fit(make_model(), documents, Schedule(steps=2, **QUICK), path, identity={"corpus": "a"})
    with pytest.raises(FormatError, match="the schedule was"):
        fit(make_model(), documents, Schedule(steps=3, **QUICK), path, identity={"corpus": "a"}, resume=True)
    with pytest.raises(FormatError, match="the corpus was a"):
        fit(make_model(), documents, Schedule(steps=2, **QUICK), path, identity={"corpus": "b"}, resume=True)
    with pytest.raises(FormatError, match="shape"):
        fit(make_model(hidden_size=32), documents, Schedule(steps=2, **QUICK), path, resume=True)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut off"])
def test_damaged_checkpoint_is_refused(make_model, documents, tmp_path, content):
    path = tmp_path / "c.npz"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="not a checkpoint"):
        fit(make_model(), documents, Schedule(steps=2, **QUICK), path, resume=True)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(make_model, tmp_path, monkeypatch):
    model, path = make_model(), tmp_path / "c.npz"
    optimizer = Optimizer(model)
    save_checkpoint(path, model, optimizer, {"step": 1})

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(LowbitError, match="No space left"):
        save_checkpoint(path, model, optimizer, {"step": 2})
    assert read_progress(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


def test_schedule_warms_up_then_falls_to_zero():
    schedule = Schedule(steps=100, learning_rate=1.0, warmup_share=0.1, float_share=0.2, weight_decay=0.1)
    rates = [schedule.rate(n) for n in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[100] == 0.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert [schedule.rounds(n) for n in (0, 19, 20, 99)] == [False, False, True, True]
    assert [schedule.decay(n) for n in (0, 49, 50, 99)] == [0.1, 0.1, 0, 0]


def test_cosine_falls_to_zero_and_wsd_only_at_the_end():
    cosine = Schedule(steps=100, learning_rate=1.0, warmup_share=10, curve="cosine")
    rates = [cosine.rate(n) for n in range(101)]
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    stable = Schedule(steps=100, learning_rate=1.0, warmup_share=10, decay_share=0.2, curve="wsd")
    assert stable.stable == 80
    assert {stable.rate(n) for n in range(9, 81)} == {1.0}
    assert [stable.rate(n) for n in (80, 90, 100)] == [1.0, 0.5, 0.0]


def test_any_number_of_processes_gives_the_same_model(make_model, documents, tmp_path):
    results = []
    for processes in (1, 2, 3):
        model = make_model()
        schedule = Schedule(steps=5, optimizer="muon", **{**QUICK, "micro_tokens": 128})
        history = fit(model, documents, schedule, tmp_path / f"{processes}.npz", processes=processes)
        results.append((losses(history), [p.detach().clone() for p in model.parameters()]))
    for other in results[1:]:
        assert other[0] == results[0][0]
        assert all(torch.equal(p, q) for p, q in zip(other[1], results[0][1], strict=True))


def test_more_steps_may_follow_the_stable_phase_but_not_the_decay(make_model, documents, tmp_path):
    def run(steps, path, **more):
        schedule = Schedule(steps=steps, curve="wsd", warmup_share=2, float_share=2, decay_share=4, **QUICK)
        return fit(make_model(), documents, schedule, path, checkpoint_seconds=0, **more)

    short, long = tmp_path / "short.npz", tmp_path / "long.npz"
    run(10, short)
    whole = run(14, long)
    with pytest.raises(FormatError, match="the schedule was"):
        run(14, short, resume=True)
    assert read_progress(tmp_path / "stable.npz")["step"] == 10  # of the longer run, which came last
    run(10, short)
    (tmp_path / "stable.npz").rename(short)
    assert losses(run(14, short, resume=True)) == losses(whole)


def test_what_is_emphasised_is_learned_better_and_the_loss_is_told_without_it(make_model, documents, tmp_path):
    marks = [np.arange(len(ids)) == 5 for ids in documents]
    runs = {}
    for emphasis in (1.0, 9.0):
        model = make_model()
        schedule = Schedule(steps=30, emphasis=emphasis, **QUICK)
        history = fit(model, documents, schedule, tmp_path / f"{emphasis}.npz", marks=marks)
        tokens = torch.from_numpy(np.stack([ids[:6] for ids in documents]).astype(np.int64))
        with torch.no_grad():
            nats = torch.nn.functional.cross_entropy(model(tokens[:, :-1])[:, 4], tokens[:, 5])
        runs[emphasis] = losses(history)[0], float(nats)
    assert runs[1.0][0] == runs[9.0][0]
    assert runs[9.0][1] < runs[1.0][1]


def test_a_running_mean_is_what_is_left_at_the_end(make_model, documents, tmp_path):
    seen = []

    def watch(record):
        seen.append(model.output_norm.detach().clone())

    model = make_model()
    fit(model, documents, Schedule(steps=4, ema=0.5, **QUICK), tmp_path / "c.npz", report=watch)
    mean = seen[0]
    for i, value in enumerate(seen[1:], 1):
        mean = mean.lerp(value, max(0.5, 1 / (i + 1)))
    assert torch.allclose(model.output_norm, mean)
    assert not torch.allclose(model.output_norm, seen[-1])


@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (96, 32)])
def test_orthogonalised_matrices_have_singular_values_near_1(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape), torch.float32))
    assert values.max() < 1.3
    assert values.median() > 0.7


def test_a_failure_in_another_process_ends_the_run_with_its_reason(make_model, documents, tmp_path):
    model, parent = make_model(), os.getpid()

    def teacher(tokens, first):
        if os.getpid() != parent:
            raise ValueError("out of chalk")
        time.sleep(0.2)
        return np.full((*tokens.shape, 512), -np.log(512), np.float32)

    with pytest.raises(LowbitError, match="out of chalk"):
        fit(model, documents, Schedule(steps=9, distill=0.5, **QUICK), tmp_path / "c.npz", teacher=teacher, processes=2)


def test_with_a_teacher_the_model_learns_what_the_teacher_says(make_model, documents, tmp_path):
    favourite = np.full(512, -12.0, np.float32)
    favourite[77] = np.log1p(-511 * np.exp(-12.0))

    def teacher(tokens, first):
        return np.broadcast_to(favourite, (*tokens.shape, 512)).copy()

    model = make_model()
    fit(model, documents, Schedule(steps=30, distill=1.0, **QUICK), tmp_path / "c.npz", teacher=teacher)
    with torch.no_grad():
        assert (model(torch.from_numpy(documents[0][None, :20].astype(np.int64))).argmax(-1) == 77).all()


@pytest.mark.parametrize(
    "bad",
    [{"steps": -1}, {"micro_tokens": 100}, {"batch_tokens": 500}, {"window": 1024}],
)
def test_impossible_schedules_are_refused(bad):
    with pytest.raises(FormatError):
        Schedule(**{"steps": 5, **QUICK, **bad})


def test_speed_is_measured_on_steps_that_train(make_model):
    model = make_model()
    before = model.token_embd.detach().clone()
    assert training_speed(model, 256, 256, 32, steps=2) > 0
    assert not torch.equal(model.token_embd, before)


def test_what_takes_long_is_told_of_until_it_ends(monkeypatch, capsys):
    monkeypatch.setattr(report, "QUIET_SECONDS", 0.01)
    told = ""
    with report.Beat("reading the text") as beat:
        for what in ("reading the text, ", "step 3 of 9 is at work, "):
            while what not in told:
                told += capsys.readouterr().err
                time.sleep(0.01)
            progress = report.Progress(steps=9, done=2, batch_tokens=64, beat=beat)
        progress.close()
    assert "step 4" not in told
