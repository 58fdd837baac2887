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
from penstock.core.model import Deployment, Replica, ReplicaState, RolloutRecord

MESSAGE_MAX = 900
"""Characters: as a revision's cause it must find room beside a few words."""

TRIES = 5
"""Attempts of one replica that fail in a row until its revision has failed: with the default back-off ten minutes and
more. The budget alone would not do: the few replicas of a surge, each waiting longer and longer, never spend in an hour
what all the replicas of a large deployment may."""


def rollout_record(
    deployment: Deployment, replicas: Sequence[Replica], held: Mapping[str, HeldBack], now: datetime
) -> RolloutRecord:
    """The record after a look at `replicas`: all of the deployment, in their states of now. `held`: by uid, those that
    may not be tried now."""
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
    if deployment.revision in (record.stable_revision, record.failed_revision) or deployment.rollout_paused:
        return record
    for one in sorted(mine, key=lambda one: one.number):
        if why := _failure(deployment, one, held.get(one.uid), now):
            message = f"{one.name}: {why}"
            return replace(
                record,
                canary_since=None,
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


def _bake(deployment: Deployment, record: RolloutRecord, ready: int, now: datetime) -> RolloutRecord:
    new, _ = canary_counts(deployment.spec.rollout, deployment.spec.replicas)
    if ready < new:
        return replace(record, canary_since=None)
    since = record.canary_since or now
    canary = deployment.spec.rollout.canary
    bake_s = canary.bake_s if canary is not None else None
    stood = bake_s is not None and now >= since + timedelta(seconds=bake_s)
    if stood and not deployment.rollout_paused:
        return replace(record, canary_since=None, baked_revision=deployment.revision)
    return replace(record, canary_since=since)


def _failure(deployment: Deployment, replica: Replica, held: HeldBack | None, now: datetime) -> str:
    """Why the replica makes its revision's rollout fail; empty: it does not."""
    attempt = replica.attempt
    if held is not None and held.until is not None and attempt is not None:
        how = f": {attempt.end_message}" if attempt.end_message else ""
        lost = f"{held.failed} of the {held.allowed} failures an hour that the revision may lose are spent"
        return f"{lost}{how}{last_lines(attempt)}"
    if replica.failures >= TRIES and attempt is not None and not attempt.live:
        how = f": {attempt.end_message}" if attempt.end_message else ""
        return f"{replica.failures} attempts failed in a row{how}{last_lines(attempt)}"
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
