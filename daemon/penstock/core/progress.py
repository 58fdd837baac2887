"""How a rollout goes: which revision is stable, since when a canary is whole, and whether the current revision failed.

Facts are gathered into the deployment's RolloutRecord, which `rollout` acts by; nothing is made or let go here. A
revision fails when one of its replicas is not ready so long after its job's start (never counted from the queue, nor
while the job was halted), when its attempts have failed too often in a row, or when the revision has spent its budget
of failures. A revision that was once stable fails no more: what ends its replicas then is not the rollout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from penstock.core.budget import HeldBack
from penstock.core.canary import canary_counts, is_canary
from penstock.core.conditions import last_lines
from penstock.core.model import Deployment, Failure, Replica, ReplicaState, RolloutRecord

MESSAGE_MAX = 900
"""Characters: as a revision's cause it must find room beside a few words."""

TRIES = 8
"""Attempts of one replica that fail in a row until its revision has failed, or as many as its policy allows in an hour
where that is more. With the default back-off the eighth comes after 10 + 20 + 40 + 80 + 160 + 300 + 300 = 910 s of
waiting, at least 682 s with the jitter: longer than a file server takes to come back. The budget alone would not do:
the few replicas of a surge, each waiting longer and longer, never spend in an hour what all the replicas of a large
deployment may."""


def rollout_record(
    deployment: Deployment,
    replicas: Sequence[Replica],
    held: Mapping[str, HeldBack],
    now: datetime,
    failures: Sequence[Failure] = (),
) -> RolloutRecord:
    """The record after a look at `replicas`: all of the deployment, in their states of now. `held`: by uid, those that
    may not be tried now. `failures`: the deployment's of the last hour."""
    record = deployment.rollout
    if deployment.deleted_at is not None or deployment.paused:
        return record
    mine = [one for one in replicas if one.revision == deployment.revision and not one.leaving]
    ready = sum(one.state is ReplicaState.READY for one in mine)
    if is_canary(deployment):
        record = _bake(deployment, record, ready, now)
    else:
        record = replace(record, canary_since=None)
        if ready >= deployment.spec.replicas > 0:
            record = _stable(record, deployment.revision)
    record = replace(record, trusted_revisions=_trusted(deployment, record, replicas))
    if deployment.revision in (record.stable_revision, record.failed_revision) or deployment.rollout_paused:
        return record
    for one in sorted(mine, key=lambda one: one.number):
        if why := _failure(deployment, one, held.get(one.uid), now, failures):
            message = f"{one.name}: {why}"
            return replace(
                record,
                canary_since=None,
                trusted_revisions=tuple(
                    number for number in record.trusted_revisions if number != deployment.revision
                ),
                failed_revision=deployment.revision,
                failed_message=message if len(message) <= MESSAGE_MAX else f"{message[: MESSAGE_MAX - 3]}...",
            )
    return record


def deadline_s(deployment: Deployment) -> int:
    """From a job's start until its replica is ready."""
    return deployment.spec.rollout.progress_deadline_s or deployment.spec.probes.startup_timeout_s


def _stable(record: RolloutRecord, revision: int) -> RolloutRecord:
    if record.failed_revision == revision:  # It became ready all the same.
        record = replace(record, failed_revision=0, failed_message="")
    return replace(record, stable_revision=revision)


def _trusted(deployment: Deployment, record: RolloutRecord, replicas: Sequence[Replica]) -> tuple[int, ...]:
    """No more than there are replicas: a revision that has none left is forgotten."""
    known = set(record.trusted_revisions)
    if not is_canary(deployment):
        known.add(deployment.revision)
    served = {one.revision for one in replicas if not one.leaving and one.has_served}
    return tuple(
        number
        for number in sorted(known & served)
        if number > record.stable_revision and number != record.failed_revision
    )


def _bake(deployment: Deployment, record: RolloutRecord, ready: int, now: datetime) -> RolloutRecord:
    new, _ = canary_counts(deployment.spec.rollout, deployment.spec.replicas)
    if (
        ready < new or deployment.rollout_paused
    ):  # Nobody is surprised when it is resumed: it bakes anew then.
        return replace(record, canary_since=None)
    since = record.canary_since or now
    canary = deployment.spec.rollout.canary
    bake_s = canary.bake_s if canary is not None else None
    if bake_s is not None and now >= since + timedelta(seconds=bake_s):
        return replace(record, canary_since=None, baked_revision=deployment.revision)
    return replace(record, canary_since=since)


def _failure(
    deployment: Deployment,
    replica: Replica,
    held: HeldBack | None,
    now: datetime,
    failures: Sequence[Failure],
) -> str:
    """Why the replica makes its revision's rollout fail; empty: it does not."""
    attempt = replica.attempt
    if held is not None and held.until is not None and attempt is not None:
        how = f": {attempt.end_message}" if attempt.end_message else ""
        lost = f"{held.failed} of the {held.allowed} failures an hour that the revision may lose are spent"
        return f"{lost}{how}{last_lines(attempt)}"
    if attempt is not None and not attempt.live and not attempt.refusal:
        # What Slurm refused or lost never began, or nobody knows how it ended: that tells nothing of the revision.
        began = replica.failures - sum(
            one.state is None and (one.replica, one.revision) == (replica.name, replica.revision)
            for one in failures
        )
        if began >= max(TRIES, deployment.spec.restart.max_failures_per_hour or 0):
            how = f": {attempt.end_message}" if attempt.end_message else ""
            return f"{began} attempts failed in a row{how}{last_lines(attempt)}"
    attempt = replica.live_attempt
    if attempt is None or attempt.running_since is None:
        return ""
    # The start-up time-out may have given it up in this very tick: what it is judged by is that it was never ready.
    given_up = replica.state is ReplicaState.STOPPING and attempt.ready_at is None
    if replica.state is not ReplicaState.STARTING and not given_up:
        return ""
    limit_s = deadline_s(deployment)
    if now < attempt.running_since + timedelta(seconds=limit_s):
        return ""
    doing = f": {attempt.phase_message}" if attempt.phase_message else ""
    return (
        f"job {attempt.job_id} generated no token within {limit_s} s of its start{doing}{last_lines(attempt)}"
    )
