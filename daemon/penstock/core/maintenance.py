"""Nodes that are to be given back: drained ones, and those that a maintenance reservation takes at a time.

Slurm itself starts no job that would run into such a reservation; it lets the job wait instead, until the maintenance
is over. So where a reservation leaves no node for a job it is asked for a shorter time limit that ends before, as long
as that is worth a cold start; and a job that runs on such a node is handed over to another one, where there is another
one.

Slurm's times are compared with our own clock here. The authentication of Slurm's messages refuses clocks that are five
minutes apart, and a limit that is too long by that only waits: nothing is killed by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from penstock.core.estimates import Estimates
from penstock.core.handover import Threat
from penstock.core.jobs import Cluster, Job, Maintenance
from penstock.core.node_lists import known_nodes
from penstock.core.sentences import clock
from penstock.core.spec import Spec
from penstock.core.suspects import able
from penstock.core.walltime import Bounds, warning_s

LATENCY_S = 60
"""From a submission to the job's start on free nodes at the most; a limit that fits to the second fits no more then."""

LEAST_SHARE = 4
"""Slurm may shorten a bounded job by itself, for it may have waited, but to no less than this part of what it was asked
for. Where jobs of others wait, backfill gives the least that is allowed (seen with 22.05), though more would fit: with
a cold start as the least there would be a successor a minute until the maintenance begins."""


def threats(
    job: Job, placed: Sequence[Spec], cluster: Cluster | None, leaving: frozenset[str]
) -> tuple[Threat, ...]:
    """What will take this running job's nodes from it, where another node could take its successor.

    `placed`: the spec at each placement of the replica, in the order in which a successor tries them. `leaving`:
    `cluster.leaving`, which is asked for once for all jobs.
    """
    if cluster is None or not (leaving or cluster.maintenance):
        return ()
    mine = set(known_nodes(job.nodes))
    drained = sorted(mine & leaving)
    found = []
    if drained and _patience_s(placed, cluster, frozenset()) is not None:
        found.append(Threat(f"node {', '.join(drained)} is drained"))
    for one in cluster.maintenance:
        taken = sorted(mine & set(one.nodes))
        starts_later = job.started_at is not None and one.begins_at > job.started_at
        # One that its own limit ends before is in nobody's way; its successor would be threatened in its turn.
        outlives = job.time_limit_s is None or job.ends_at is None or job.ends_at > one.begins_at
        if not (taken and starts_later and outlives):
            continue
        patience_s = _patience_s(placed, cluster, frozenset(one.nodes))
        if patience_s is not None:
            why = f"maintenance {one.name} takes node {', '.join(taken)}"
            found.append(Threat(why, one.begins_at, patience_s))
    return tuple(found)


def bounds(spec: Spec, cluster: Cluster | None, estimates: Estimates, now: datetime) -> Bounds:
    """What a job that is submitted now must keep."""
    if cluster is None:
        return Bounds()
    own_s = spec.placement.time_limit_s
    partition_s = _partition_s(spec, cluster) if own_s is None else None
    coming = _in_the_way(spec, cluster, own_s if own_s is not None else partition_s, now)
    if coming is None:
        return Bounds(partition_s)
    left_s = int((coming.begins_at - now).total_seconds()) - LATENCY_S
    least_s = estimates.cold_start_s + spec.handover.margin_s + warning_s(spec, left_s)
    at = clock(coming.begins_at, now)
    if left_s < max(least_s, 60):
        return Bounds(
            partition_s,
            told=f"; it starts after maintenance {coming.name}, which begins at {at}: too soon for a cold start of"
            f" {estimates.cold_start_s} s",
        )
    at_least_s = max(least_s, left_s // LEAST_SHARE)
    return Bounds(partition_s, left_s, at_least_s, f"; it must end before maintenance {coming.name} at {at}")


def waits_for_nothing(job: Job, unbounded_s: int | None, within: Bounds) -> bool:
    """Whether a waiting job asks for so long that only the maintenance is waited for, and could ask for less.

    `unbounded_s`: what its limit is where nothing bounds it. One that was bounded already is left to Slurm.
    """
    if within.within_s is None or (job.time_limit_s is not None and job.time_limit_s <= within.within_s):
        return False
    return unbounded_s is None or job.time_limit_s is None or job.time_limit_s >= unbounded_s


def _in_the_way(spec: Spec, cluster: Cluster, limit_s: int | None, now: datetime) -> Maintenance | None:
    """The next maintenance that a job would run into on every node that it could have."""
    ahead = [
        one
        for one in cluster.maintenance
        if one.begins_at > now
        and (limit_s is None or (one.begins_at - now).total_seconds() < limit_s + LATENCY_S)
        and not _enough(spec, cluster, frozenset(one.nodes))
    ]
    return min(ahead, key=lambda one: one.begins_at, default=None)


def _patience_s(placed: Sequence[Spec], cluster: Cluster, without: frozenset[str]) -> int | None:
    """How long a successor waits in vain before it is at a placement that has nodes for it; None: none has."""
    passed_s = 0
    for spec in placed:
        if _enough(spec, cluster, without):
            return passed_s
        passed_s += spec.placement.patience_s
    return None


def _enough(spec: Spec, cluster: Cluster, without: frozenset[str]) -> bool:
    return len(able(spec, cluster, without)) >= spec.resources.nodes


def _partition_s(spec: Spec, cluster: Cluster) -> int | None:
    names = {name for name in spec.placement.partition.split(",") if name}
    found = [one for one in cluster.partitions if (one.name in names if names else one.is_default)]
    limits = [one.default_time_s or one.max_time_s for one in found]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known and len(known) == len(limits) else None
