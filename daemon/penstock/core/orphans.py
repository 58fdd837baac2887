"""Jobs that bear our mark and belong to no attempt: where they come from, and when they go.

A mark without a row means that the database forgot (restored from an old backup), or that Slurm accepted late what was given up, or that
the job was submitted twice. Such a job holds GPUs and serves nobody. It is cancelled when it has been there for a while, never at once:
the row may be in the very transaction that this listing overtook. A job without the mark is nobody's here and is never touched (rule 2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta

from penstock.core.decisions import CancelOrphan, Decision, Reason
from penstock.core.jobs import Job, JobState
from penstock.core.model import Listing, Observation
from penstock.core.sentences import clock

ORPHAN_GRACE_S = 60
"""Longer than any submission takes from Slurm's acceptance to the row's update."""


def plan_orphans(
    observation: Observation, listing: Listing, jobs_by_token: Mapping[str, tuple[Job, ...]]
) -> list[Decision]:
    owners = {
        replica.attempt.token: replica.attempt
        for replica in observation.replicas
        if replica.attempt is not None and replica.attempt.live
    }
    decisions: list[Decision] = []
    for token, jobs in jobs_by_token.items():
        owner = owners.get(token)
        for job in _unowned(jobs, owner is not None, owner.job_id if owner else None):
            decisions.append(_orphan(observation, token, job))
    return decisions


def _unowned(jobs: tuple[Job, ...], owned: bool, job_id: int | None) -> Iterator[Job]:
    for job in jobs:
        if job.ended or job.state in (JobState.COMPLETING, JobState.UNKNOWN):
            continue
        if not owned or (job_id is not None and job.job_id != job_id):
            yield job


def _orphan(observation: Observation, token: str, job: Job) -> Decision:
    known = "an attempt that has ended" if token in observation.known_tokens else "no attempt in the database"
    cancel_at = (job.submitted_at or observation.now) + timedelta(seconds=ORPHAN_GRACE_S)
    if observation.now < cancel_at:
        message = f"job {job.job_id} ({job.name}) bears our mark and belongs to {known}; cancelled at {clock(cancel_at, observation.now)}"
        return Decision("", job.name, Reason.ORPHAN_FOUND, message)
    message = f"job {job.job_id} ({job.name}) bears our mark and belongs to {known}"
    return Decision("", job.name, Reason.ORPHAN_CANCELLED, message, (CancelOrphan(job.job_id, job.name),))
