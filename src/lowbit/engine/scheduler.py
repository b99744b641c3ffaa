"""Who comes into the next step: all that decode, then prompts in turn, as far as their time goes."""

from __future__ import annotations

from collections.abc import Sequence as Sequence_

from .sequence import Request, State

SCORE_ROWS = 64
"""Most rows whose logits or states are held at a time for one scored text."""
MAX_DRAFT = 16
"""Most tokens that a sequence proposes in one pass."""
KNOWN_ROWS = 64
"""Most tokens that a text takes in at a time whose successor is known already."""


class Pace:
    """How many rows of prompts take how long, as the last steps had it.

    Parameters
    ----------
    step_ms : float
        What the prompts of a step may cost those that decode, in milliseconds.
    most : int
        Rows of a pass.
    """

    def __init__(self, step_ms: float, most: int) -> None:
        self.step_seconds, self.most = step_ms / 1e3, most
        self.row_seconds = 0.0
        self.plain_seconds = 0.0
        """Of a pass in which all rows decode."""

    def rows(self) -> int:
        """Rows of prompts that fit into the time."""
        if not self.row_seconds:
            return min(FIRST_ROWS, self.most)
        return max(1, min(self.most, int(MARGIN * self.step_seconds / self.row_seconds)))

    def learn(self, seconds: float, prompt_rows: int, passes: int) -> None:
        """Learn from a step that took `seconds`."""
        if not prompt_rows:
            self.plain_seconds = _towards(self.plain_seconds, seconds / max(passes, 1))
        else:
            self.row_seconds = _towards(self.row_seconds, max(seconds - self.plain_seconds, seconds / 8) / prompt_rows)


FIRST_ROWS = 16
"""Rows of a prompt in the first step beside others that decode, before anything is known about their cost."""
MARGIN = 0.8
"""Of the time that rows may take; later rows of a prompt look back further, and take longer."""


def _towards(old: float, new: float) -> float:
    return new if not old else old + 0.5 * (new - old)


def plan_step(
    running: Sequence_[Request], batch: int, most_logits: int, pace: Pace, turn: int
) -> list[tuple[Request, int, int]]:
    """Choose the rows of a step.

    Parameters
    ----------
    running : sequence of Request
        In the order in which they came.
    batch, most_logits : int
        Most rows of a pass, and most of them that leave logits.
    pace : Pace
    turn : int
        Counts the steps: prompts take turns at being first.

    Returns
    -------
    list of (Request, rows, drafts)
    """
    chosen: list[tuple[Request, int, int]] = []
    decoding = [r for r in running if r.state is State.DECODE and not r.held_back]
    prompts = [r for r in running if r.state is State.PREFILL]
    room, logits = batch, most_logits
    if len(decoding) > min(room, logits):  # more than fit come in turn
        first = turn % len(decoding)
        decoding = (decoding[first:] + decoding[:first])[: min(room, logits)]
    speculating = sum(r.speculate for r in decoding)
    spare = min(room, logits) - len(decoding)
    extra = spare - (speculating and speculating * min(MAX_DRAFT, spare // speculating))
    for request in decoding:
        assert request.sequence is not None
        drafts = min(MAX_DRAFT, spare // speculating) if request.speculate else 0
        # Several are pending if what comes next is known: it was forced, or proposed and right, which a recurrent state
        # that has seen wrong proposals must be told again.
        rows = 1 + min(request.sequence.pending - 1, request.sequence.reach - 1, KNOWN_ROWS, drafts + extra)
        extra -= max(0, rows - 1 - drafts)
        drafts = max(0, drafts - (rows - 1))
        chosen.append((request, rows, drafts))
        room, logits = room - rows - drafts, logits - 1 - drafts
    if decoding:
        room = min(room, pace.rows())
    if prompts:
        first = turn % len(prompts)
        for request in prompts[first:] + prompts[:first]:
            assert request.sequence is not None
            rows = min(request.sequence.pending, room, request.sequence.reach)
            if request.each is not None:
                rows = min(rows, SCORE_ROWS, logits if request.want == "every" else rows)
            elif rows == request.sequence.pending and request.samples and logits < 1:
                rows -= 1
            if rows < 1:
                continue
            chosen.append((request, rows, 0))
            room -= rows
            logits -= rows if request.want == "every" else 1
    return chosen
