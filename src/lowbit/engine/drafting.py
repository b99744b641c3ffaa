"""A small model that runs ahead of a large one, which checks what it proposes.

The small one draws as the large one will: with a copy of its sampler, random numbers included. So where both expect
the same, they draw the same, at any temperature; and since the large one draws each token of the text itself, the text
is the one that it would have written alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as Sequence_

import numpy as np

from .._kernels.decoder import Batch, Decoder
from .._kernels.sequence import Sequence
from .sequence import Request, State, make_sampler
from .shadow import Shadow

MOST_BEHIND = 16
"""Tokens that the small model reads in the pass that makes its first one; if there are more, it reads before."""
PAUSES = 8, 64
"""Tokens of a text that are made without proposals, if these do not pay, before they are tried again: at first, and
after some tries in vain."""
WORTH = 1.03
"""How many times as fast as without proposals a text must become to be given any."""


class Drafter:
    """Makes proposals for the texts of an engine.

    Parameters
    ----------
    decoder : Decoder
        Of the small model. Whoever uses this holds the lock of the large one's.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self._batch = decoder, Batch(decoder)
        self._token_seconds = 0.0  # of a proposed token

    def propose(
        self, chosen: Sequence_[tuple[Request, int, int]], large: Decoder, rows: int
    ) -> tuple[Mapping[Request, np.ndarray], bool]:
        """Return what the texts of a step may go on with, and whether there will be more for the next one.

        Parameters
        ----------
        chosen : sequence of (Request, rows, drafts)
            As `plan_step` chose them.
        large : Decoder
            Of the large model.
        rows : int
            Most tokens to read of texts that are new.
        """
        texts = sum(request.state is State.DECODE for request, _, _ in chosen)
        row, seconds = large.row_cost(max(texts, 1))
        wanted: dict[Request, int] = {}
        behind: list[Request] = []
        for request, n_rows, drafts in chosen:
            if not (request.drafted and drafts and request.sequence and n_rows == request.sequence.pending):
                continue
            shadow = request.shadow or self._begin(request)
            if shadow is None or request.sequence.n_tokens < shadow.next:
                continue
            most, gain = shadow.length(drafts, row, self._token_seconds / seconds if seconds else 0.0)
            if gain < request.sequence.foresee(drafts, row):
                continue
            shadow.sequence.imitate(request.sequence)
            shadow.sequence.publish()
            if shadow.sequence.ended:
                self._give_up(request)
            elif shadow.sequence.pending > MOST_BEHIND:
                behind.append(request)
            elif gain >= WORTH:
                wanted[request], shadow.pause = most, PAUSES[0]
            else:  # a few, to see whether they pay by now
                wanted[request] = min(2, drafts)
                shadow.next = request.sequence.n_tokens + shadow.pause
                shadow.pause = min(2 * shadow.pause, PAUSES[1])
        try:
            self._read(behind, rows)
            return self._draft(wanted) if wanted else {}, bool(behind or wanted)
        except Exception:  # texts are made without it as well
            for request in (*behind, *wanted):
                self._give_up(request)
            return {}, False

    def settle(self) -> None:
        """Let go of what is over, also after an interruption."""
        for sequence in self._decoder.pool.sequences:
            owner = sequence.owner
            if isinstance(owner, Request) and (owner.shadow is None or owner.shadow.sequence is not sequence):
                sequence.close()

    def _begin(self, request: Request) -> Shadow | None:
        """Let the small model follow a text, if it can."""
        graph, target = self._decoder.graph, request.sequence
        assert target is not None
        capacity = min(request.capacity, graph.context)
        try:
            if target.n_tokens < capacity:
                sequence = Sequence(
                    self._decoder.pool, target.tokens(), capacity, len(request.given),
                    make_sampler(request.params, graph.vocab, 0), capacity + 1, salt=request.salt, owner=request,
                )  # fmt: skip
                request.shadow = Shadow(sequence, PAUSES[0])
        except MemoryError:
            pass
        request.drafted = request.shadow is not None
        return request.shadow

    def _give_up(self, request: Request) -> None:
        """There is no room for the text, or the small model does not know one of its tokens."""
        request.drafted = False
        request.leave_shadow()

    def _read(self, behind: list[Request], rows: int) -> None:
        """Let the small model read on in texts that it does not know yet."""
        self._batch.clear()
        for request in behind:
            assert request.shadow is not None
            n = min(request.shadow.sequence.pending - 1, min(rows, self._batch.capacity) - self._batch.n_rows)
            if n > 0:
                self._add(request, n, "nothing")
        if self._batch.n_rows:
            self._decoder.step(self._batch)

    def _add(self, request: Request, rows: int, want: str, ahead: int = 0) -> bool:
        assert request.shadow is not None
        try:
            self._batch.add(request.shadow.sequence, rows, want, ahead)
        except (MemoryError, ValueError):
            self._give_up(request)
            return False
        return True

    def _draft(self, wanted: Mapping[Request, int]) -> Mapping[Request, np.ndarray]:
        """Let the small model write on in texts that it knows."""
        start, ahead, passes = time.perf_counter(), max(wanted.values()), 0
        while passes < ahead:
            self._batch.clear()
            for request in wanted:
                if request.shadow is not None and not request.shadow.sequence.ended:
                    self._add(request, request.shadow.sequence.pending, "last", ahead - passes - 1)
            if not self._batch.n_rows:
                break
            passes += self._decoder.step(self._batch, ahead - passes)
        proposals = {}
        for request, n in wanted.items():
            if request.shadow is not None and request.sequence is not None:
                shadow, at = request.shadow, request.sequence.n_tokens
                proposals[request] = shadow.sequence.tokens(at)[:n]
                shadow.at, shadow.proposed = at, len(proposals[request])
        made = passes * len(wanted)
        if made:
            seconds = (time.perf_counter() - start) / made
            self._token_seconds += (seconds - self._token_seconds) * (0.2 if self._token_seconds else 1.0)
        return proposals
