"""How long a replica's job may run, and how long before its end it is told to drain.

The rule guarded here: replicas that came together do not go together. Each job's time limit is shortened by another
share of what the deployment allows (`spec.handover.stagger_percent`), in whole minutes, because Slurm counts in those:
a limit of a few minutes is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from penstock.core.model import Replica
from penstock.core.spec import Spec

LEAVE_MARGIN_S = 30
"""The engine's way out after its last stream, and SIGTERM's way in: on top of the drain time-out before the time
limit."""

GOLDEN = 0.618033988749895
"""Multiples of it, less their whole part, lie far from each other however many there are."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a submission's time limit must keep."""

    partition_s: int | None = None
    """What the partition gives a job that asks for nothing; None: no limit, or not known."""
    within_s: int | None = None
    """Before the maintenance that it would else wait out; None: nothing bounds it."""
    at_least_s: int | None = None
    """Slurm may shorten it further to this by itself; None: it may not."""
    told: str = ""
    """What the submission's sentence says of it."""


NO_BOUNDS = Bounds()


def with_own_drain(spec: Spec, replica: Replica) -> Spec:
    """The deployment's spec with the drain timeout that this replica's agent was told, which its revision has."""
    own_s = replica.drain_timeout_s
    return spec if own_s is None or own_s == spec.drain_timeout_s else replace(spec, drain_timeout_s=own_s)


def warning_s(spec: Spec, limit_s: int | None) -> int:
    """How long before its time limit the agent is told to drain. At most half of the limit: a replica is there to
    serve."""
    wanted = spec.drain_timeout_s + LEAVE_MARGIN_S
    return wanted if limit_s is None else min(wanted, limit_s // 2)


def time_limit_s(spec: Spec, number: int, bounds: Bounds) -> int | None:
    """What Slurm is asked for; None: nothing bounds the job, and its partition's default counts.

    `number` tells a deployment's jobs apart, and the same number gives the same limit.
    """
    limit_s = unbounded_s(spec, number, bounds.partition_s)
    if bounds.within_s is not None and (limit_s is None or bounds.within_s < limit_s):
        return bounds.within_s // 60 * 60
    return limit_s


def unbounded_s(spec: Spec, number: int, partition_s: int | None) -> int | None:
    """The same where no maintenance is in the way."""
    own_s = spec.placement.time_limit_s
    limit_s = own_s if own_s is not None else partition_s
    if limit_s is None or not spec.handover.enabled:
        return limit_s
    minutes = limit_s * spec.handover.stagger_percent // 100 // 60
    return limit_s - 60 * int(number * GOLDEN % 1 * (minutes + 1))


def job_number(replica: Replica, attempt_number: int) -> int:
    """Tells a deployment's jobs apart, those of one replica too."""
    return replica.number + attempt_number - 1
