"""Many machines: how work is shared among them, what a batch will take, and a simulation of it."""

from __future__ import annotations

from .machines import Machine, Share, plan_batch, read_machines
from .sharing import GROUP, groups_at_a_time, lines_of_group
from .simulation import Fleet, Run, simulate

__all__ = ["GROUP", "Fleet", "Machine", "Run", "Share", "groups_at_a_time", "lines_of_group", "plan_batch",
           "read_machines", "simulate"]  # fmt: skip
