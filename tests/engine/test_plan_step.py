"""Who comes into a step: it fits into a pass, and nobody who decodes is left out."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from lowbit.engine.scheduler import KNOWN_ROWS, MAX_DRAFT, Pace, plan_step
from lowbit.engine.sequence import State


def decoding(pending, speculate, reach=1 << 20):
    return SimpleNamespace(
        state=State.DECODE, held_back=False, speculate=speculate, sequence=SimpleNamespace(pending=pending, reach=reach)
    )


texts = st.builds(decoding, st.integers(1, 200), st.booleans(), st.integers(1, 300))


@given(st.lists(texts, min_size=1, max_size=40), st.integers(1, 256), st.integers(1, 256), st.integers(0, 99))
def test_rows_and_logits_fit_into_a_pass(running, batch, most_logits, turn):
    chosen = plan_step(running, batch, most_logits, Pace(50, batch), turn)
    assert len(chosen) == min(len(running), batch, most_logits)
    assert sum(rows + drafts for _, rows, drafts in chosen) <= batch
    assert sum(1 + drafts for _, _, drafts in chosen) <= most_logits
    for request, rows, drafts in chosen:
        assert 1 <= rows <= min(request.sequence.pending, request.sequence.reach)
        assert drafts == 0 or request.speculate


def test_known_tokens_are_taken_in_before_others_are_proposed():
    """Those of a recurrent model, whose proposals were wrong, as those that a grammar forced."""
    for pending in (1, 3, MAX_DRAFT, MAX_DRAFT + 1, MAX_DRAFT + 4):
        [(_, rows, drafts)] = plan_step([decoding(pending, True)], 256, 256, Pace(50, 256), 0)
        assert (rows, drafts) == (pending, max(0, MAX_DRAFT - (pending - 1)))
    [(_, rows, drafts)] = plan_step([decoding(500, False)], 256, 256, Pace(50, 256), 0)
    assert (rows, drafts) == (1 + KNOWN_ROWS, 0)
