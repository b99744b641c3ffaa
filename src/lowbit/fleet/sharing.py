"""How lines are shared among machines: the rules of the cluster, and of its simulation."""

from __future__ import annotations

GROUP = 16
"""Most lines that are sent together."""


def groups_at_a_time(parallel: int) -> int:
    """Return how many groups a machine has at a time, so that its engine is full while one is on its way."""
    return -(-2 * parallel // GROUP) + 1


def lines_of_group(waiting: int, feeders: int) -> int:
    """Return how many lines the next group has: many while there are many, few towards the end.

    Parameters
    ----------
    waiting : int
        Lines that nobody has yet.
    feeders : int
        Groups that all machines can have at a time.
    """
    return max(1, min(GROUP, waiting // max(feeders, 1)))
