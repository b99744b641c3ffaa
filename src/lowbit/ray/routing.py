"""Which replica a request goes to: the one that had those which begin like it.

Replicas are ranked by a hash of the request's beginning and their names (rendezvous hashing), so one that comes or goes
moves only its own part of the requests. One that has as many as its engine makes at a time comes after those that have
not, so that a beginning which all share does not leave the others idle.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

from ray.serve.request_router import RequestRouter

from ..batch.asked import digest_of, text_of

BEGINNING = 256
"""Characters of a prompt that choose a replica: some blocks of keys and values."""


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """Routes calls whose last argument is their `key_of`."""

    def initialize_state(self, full: int = 16) -> None:
        """Be told how many requests a replica works on at a time."""
        self._full = full

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Return the replicas in the order in which they are asked."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        length = self.replica_queue_len_cache.get
        found = {one.replica_id.unique_id: (length(one.replica_id) or 0, one) for one in candidate_replicas}
        order = rank(pending_request.args[-1], {name: n for name, (n, _) in found.items()}, self._full)
        return [[found[name][1]] for name in order]


def rank(key: int, lengths: dict[str, int], full: int) -> list[str]:
    """Return replicas in the order in which a request goes to them.

    Parameters
    ----------
    key : int
        Of the request.
    lengths : dict
        What each replica has to do.
    full : int
        Requests that a replica works on at a time.
    """

    def place(name: str) -> tuple[int, bytes]:
        return max(0, lengths[name] - full + 1), blake2b(f"{key} {name}".encode(), digest_size=8).digest()

    return sorted(lengths, key=place)


def key_of(body: bytes) -> int:
    """Return what a request's prompt begins with, as a number.

    Of a conversation it is what comes before the first answer, so that all its turns have the same.
    """
    try:
        asked = json.loads(body)
        for name in ("messages", "input"):
            if isinstance(asked.get(name), list):
                asked[name] = _before_answers(asked[name])
        text = text_of(asked)
    except (ValueError, RecursionError, AttributeError):
        text = ""
    return digest_of(text[:BEGINNING].encode("utf-8", "replace"))


def _before_answers(messages: list[Any]) -> list[Any]:
    roles = [one.get("role") if isinstance(one, dict) else None for one in messages]
    return messages[: roles.index("user") + 1] if "user" in roles else messages
