"""How many failed attempts a deployment may lose in an hour, so that a broken model does not burn the account.

Counted for each revision over all its replicas, from what is recorded: a new spec or a restart is a new revision and
begins with a whole budget. What Slurm does by itself (preemption, a dead node) and what never got a job cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from penstock.core.model import Deployment, Failure, Phase, Replica
from penstock.core.slurm_words import BLAMELESS_STATES

WINDOW = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class HeldBack:
    """Why a replica that could be tried is not."""

    failed: int
    allowed: int
    until: datetime | None
    """None: until attempts that are under way have become ready, or have failed."""


def held_back(
    deployment: Deployment, replicas: Sequence[Replica], failures: Sequence[Failure], now: datetime
) -> Mapping[str, HeldBack]:
    """By uid the replicas of `deployment` that may not be tried now; all other ones may."""
    allowed = deployment.spec.restart.failures_allowed(deployment.spec.replicas)
    held: dict[str, HeldBack] = {}
    for revision in {replica.revision for replica in replicas}:
        counted = sorted(
            failure.ended_at
            for failure in failures
            if (failure.deployment, failure.revision) == (deployment.name, revision)
            and failure.state is not None
            and failure.state not in BLAMELESS_STATES
            and failure.ended_at > now - WINDOW
        )
        if not counted:
            continue
        mine = sorted((one for one in replicas if one.revision == revision), key=lambda one: one.number)
        room = allowed - len(counted) - sum(_unproven(replica) for replica in mine)
        due = [replica for replica in mine if _is_due(replica, now)]
        until = counted[-allowed] + WINDOW if len(counted) >= allowed else None
        for replica in due[max(0, room) :]:
            held[replica.uid] = HeldBack(len(counted), allowed, until)
    return held


def _unproven(replica: Replica) -> bool:
    attempt = replica.live_attempt
    return attempt is not None and attempt.phase is not Phase.READY


def _is_due(replica: Replica, now: datetime) -> bool:
    waits = replica.next_attempt_at is not None and now < replica.next_attempt_at
    return replica.live_attempt is None and not replica.leaving and not waits
