"""What a batch will take on given machines, from what `lowbit bench` measured there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import FormatError
from ..loading.memory import parse_size

MOST_MACHINES = 1 << 20
KNOWN = {"name", "count", "memory", "bench", "decode_tps", "prefill_tps", "weight_bytes_per_token", "parallel"}


@dataclass(frozen=True)
class Machine:
    """A kind of machine.

    Parameters
    ----------
    name : str
    count : int
        Machines of this kind.
    memory : int
        Bytes that the model may take.
    decode_tps, prefill_tps : float
        Tokens per second of one text, and of a prompt, as `lowbit bench` measures them.
    weight_bytes : int, optional
        That were read for each token when that was measured; None if it was with the model of the batch.
    parallel : int
        Texts at a time.
    """

    name: str
    count: int
    memory: int
    decode_tps: float
    prefill_tps: float
    weight_bytes: int | None = None
    parallel: int = 32

    def rate(self, texts: int) -> float:
        """Return the tokens per second of so many texts together.

        A step reads all weights once, for which one text waits as long as it takes to decode a token; each text more
        costs what a token of a prompt costs, which is arithmetic alone.
        """
        return texts / (1 / self.decode_tps + (texts - 1) / max(self.prefill_tps, self.decode_tps))

    def scaled(self, weight_bytes: int) -> Machine:
        """Return the same machine with another model: both times grow with the weights."""
        if self.weight_bytes is None:
            return self
        factor = self.weight_bytes / weight_bytes
        return Machine(self.name, self.count, self.memory, self.decode_tps * factor, self.prefill_tps * factor, None,
                       self.parallel)  # fmt: skip


@dataclass(frozen=True)
class Share:
    """What the machines of a kind do of a batch."""

    machine: Machine
    parallel: int
    """Texts at a time on each; 0 if the model does not fit."""
    need: int
    """Bytes that each needs."""
    rate: float
    """Tokens per second of all of them, read and made."""
    tokens: float
    """Their part of all tokens, so that all end together."""


def read_machines(path: str) -> list[Machine]:
    """Read a list of machines.

    Parameters
    ----------
    path : str
        JSON: a list of objects with ``name``, ``count``, ``memory`` such as "8GB", and either ``bench``, a list that
        ``lowbit bench --json`` prints, of which the quickest entry counts, or ``decode_tps`` and ``prefill_tps``.

    Raises
    ------
    FormatError
        If it is no such list; the message names the machine.
    """
    with open(path, "rb") as file:
        data = file.read(8 << 20)
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: no JSON ({error})") from None
    if not isinstance(entries, list) or not entries:
        raise FormatError(f"{path}: must be a list of machines")
    return [_machine(path, i, entry) for i, entry in enumerate(entries, 1)]


def _machine(path: str, number: int, entry: Any) -> Machine:
    if not isinstance(entry, dict):
        raise FormatError(f"{path}: machine {number} must be an object")
    name = str(entry.get("name", f"machine {number}"))
    try:
        unknown = set(entry) - KNOWN
        if unknown:
            raise ValueError(f"{min(unknown)} is not known")
        bench = entry.get("bench")
        found = entry if bench is None else max(bench, key=lambda one: float(one["decode_tps"]))
        weight_bytes = found.get("weight_bytes_per_token")
        machine = Machine(
            name, int(entry.get("count", 1)), parse_size(entry["memory"], "memory"), float(found["decode_tps"]),
            float(found["prefill_tps"]), None if weight_bytes is None else int(weight_bytes),
            int(entry.get("parallel", 32)),
        )  # fmt: skip
    except KeyError as error:
        raise FormatError(f"{path}: {name}: {error.args[0]} is missing") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{path}: {name}: {error}") from None
    speeds = machine.decode_tps, machine.prefill_tps, float(machine.weight_bytes or 1)
    if not 1 <= machine.count <= MOST_MACHINES or not 1 <= machine.parallel <= 4096:
        raise FormatError(f"{path}: {name}: count and parallel must be at least 1")
    if not all(0 < speed < 1e12 for speed in speeds):
        raise FormatError(f"{path}: {name}: speeds must be above 0")
    return machine


def plan_batch(
    machines: Sequence[Machine], tokens: float, prompt_share: float, weight_bytes: int, fixed_bytes: int,
    text_bytes: int,
) -> list[Share]:  # fmt: skip
    """Share a batch among machines, so that all end at the same time.

    Parameters
    ----------
    machines : sequence of Machine
    tokens : float
        Read and made.
    prompt_share : float
        The part of them that is read.
    weight_bytes : int
        That the model reads for each token.
    fixed_bytes, text_bytes : int
        Memory of the model, and of the keys and values of one text.

    Returns
    -------
    list of Share
        In the order of `machines`.
    """
    shares = []
    for machine in machines:
        scaled = machine.scaled(weight_bytes)
        parallel = min(machine.parallel, max(0, machine.memory - fixed_bytes) // max(text_bytes, 1))
        rate = 0.0
        if parallel:
            made = (1 - prompt_share) / scaled.rate(parallel)
            rate = machine.count / (prompt_share / max(scaled.prefill_tps, scaled.decode_tps) + made)
        shares.append((scaled, parallel, fixed_bytes + max(parallel, 1) * text_bytes, rate))
    total = sum(rate for *_, rate in shares)
    return [Share(m, parallel, need, rate, tokens * rate / total if total else 0.0)
            for m, parallel, need, rate in shares]  # fmt: skip
