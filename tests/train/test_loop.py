"""The training loop: it learns, it resumes, and it stops before it ruins anything."""

from __future__ import annotations

# ruff: noqa: E402  (torch is asked for before what needs it is imported)
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra 'train'")

from lowbit.errors import FormatError, LowbitError
from lowbit.train.checkpoint import load_checkpoint, read_progress, save_checkpoint
from lowbit.train.loop import Schedule, fit
from lowbit.train.measure import bits_per_byte
from lowbit.train.model import ternary
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


@pytest.mark.parametrize("short_share", [0.0, 0.5])
def test_a_resumed_run_equals_an_unbroken_one(make_model, documents, tmp_path, short_share):
    schedule = Schedule(steps=12, keep=0.6, short_share=short_share, **QUICK)

    def run(path, **more):
        model = make_model()
        for block in model.blocks:
            block.dropout = 0.1
        return fit(model, documents, schedule, path, checkpoint_seconds=0, **more), model

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
    load_checkpoint(path, good, torch.optim.AdamW(good.parameters()))
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
    optimizer = torch.optim.AdamW(model.parameters())
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
    assert [schedule.strength(n) for n in (0, 19, 20, 99)] == [0, 0, 1, 1]
    assert [schedule.decay(n) for n in (0, 49, 50, 99)] == [0.1, 0.1, 0, 0]


def test_short_windows_come_first_and_no_text_is_shown_twice():
    schedule = Schedule(steps=10, batch_tokens=64, micro_tokens=64, window=16, short_share=0.5)
    assert [schedule.length(n) for n in range(10)] == [8] * 5 + [16] * 5
    places = [schedule.first_window(n) * schedule.length(n) for n in range(10)]
    assert places == [64 * n for n in range(10)]


@pytest.mark.parametrize(
    "bad",
    [{"steps": -1}, {"micro_tokens": 100}, {"batch_tokens": 500}, {"window": 1024}, {"window": 7, "short_share": 0.5}],
)
def test_impossible_schedules_are_refused(bad):
    with pytest.raises(FormatError):
        Schedule(**{"steps": 5, **QUICK, **bad})


def test_speed_is_measured_on_steps_that_train(make_model):
    model = make_model()
    before = model.token_embd.detach().clone()
    assert training_speed(model, 256, 256, 32, steps=2) > 0
    assert not torch.equal(model.token_embd, before)
