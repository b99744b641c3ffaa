"""What a small model has of a text that a large one writes."""

from __future__ import annotations

from .._kernels.sequence import Sequence

MEMORY = 64
"""Proposed tokens after which the older ones count half."""


class Shadow:
    """The small model's own sequence, and how often it was right."""

    def __init__(self, sequence: Sequence, pause: int = 0) -> None:
        self.sequence = sequence
        self.right, self.tried = 6.0, 8.0
        self.next, self.pause = 0, pause
        """Tokens of the text from which on proposals are made, and how many it grows by before the next try in vain."""
        self.proposed = 0
        """Of these the large one is checking so many, behind `at` tokens."""
        self.at = 0

    def learn(self, n_tokens: int) -> None:
        """Learn from the length of the text after the check."""
        if self.proposed:
            right = min(n_tokens - self.at - 1, self.proposed)
            self.right, self.tried = self.right + right, self.tried + min(right + 1, self.proposed)
            if self.tried > MEMORY:
                self.right, self.tried = self.right / 2, self.tried / 2
        self.proposed = 0

    def length(self, most: int, row: float, token: float) -> tuple[int, float]:
        """How many tokens to propose, and what comes of it: as many times the tokens in the same time.

        Parameters
        ----------
        most : int
        row, token : float
            What the large model needs for one more row, and the small one for a token, in passes of the large one.
        """
        chance = self.right / self.tried
        best, gain, expected, likely = 0, 1.0, 1.0, 1.0
        for n in range(1, most + 1):
            likely *= chance
            expected += likely
            if expected / (1 + n * (row + token)) > gain:
                best, gain = n, expected / (1 + n * (row + token))
        return best, gain
