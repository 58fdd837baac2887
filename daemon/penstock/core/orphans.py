"""Jobs that bear our mark and belong to no attempt: where they come from, and when they go.

A mark without a row means that the database forgot (restored from an old backup), or that Slurm accepted late what was
given up, or that the job was submitted twice. Such a job holds GPUs and serves nobody: its agent's token is nobody's,
so it can be neither adopted nor routed to. It is cancelled when it has been seen for a while, never at once: a human
who has just restored the wrong backup must have the time to notice. How long it has been seen is counted from the first
listing that showed it, not from its submission, which is by Slurm's clock. A job without the mark is nobody's here and
is never touched (rule 2); nor is one whose mark and name disagree, which somebody copied or forged: that one is told
of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

from penstock.core.decisions import CancelOrphan, Decision, Reason
from penstock.core.jobs import Job, JobState
from penstock.core.model import MARK, Listing, Observation, marked_token
from penstock.core.sentences import clock
from penstock.core.slurm_words import ENDING_STATES

ORPHAN_GRACE_S = 60
"""Time for a human to stop the controller; and longer than any commit that a listing may have overtaken."""

NAMED = 3
"""Of many orphans the sentence names the first few: a restored backup may leave hundreds."""


def plan_orphans(observation: Observation, jobs_by_token: Mapping[str, tuple[Job, ...]]) -> Decision:
    """The cluster's decision for a tick in which Slurm answered: which marked jobs are nobody's, and what is done."""
    orphans = sorted(_orphans(observation, jobs_by_token), key=lambda job: job.job_id)
    now = observation.now
    due = [job for job in orphans if now >= _cancel_at(observation, job)]
    forged = _told(_forged(observation))
    if due:
        message = f"{_described(observation, due)}; cancelled{forged}"
        actions = tuple(CancelOrphan(job.job_id, job.name) for job in due)
        return Decision("", "", Reason.ORPHAN_CANCELLED, message, actions)
    if orphans:
        first = clock(min(_cancel_at(observation, job) for job in orphans), now)
        message = f"{_described(observation, orphans)}; cancelled at {first}"
        if any(_is_forgotten(observation, job) for job in orphans):
            message += (
                ", unless the controller is stopped before then and the database that knows them is restored"
            )
        return Decision("", "", Reason.ORPHAN_FOUND, message + forged)
    message = f"Slurm answers, and every job of ours belongs to an attempt{forged}"
    return Decision("", "", Reason.CLUSTER_REACHABLE, message)


def _orphans(observation: Observation, jobs_by_token: Mapping[str, tuple[Job, ...]]) -> Iterator[Job]:
    owners = {
        attempt.token: attempt
        for replica in observation.replicas
        if (attempt := replica.live_attempt) is not None
    }
    for token, jobs in jobs_by_token.items():
        owner = owners.get(token)
        for job in jobs:
            if job.ended or job.state in ENDING_STATES or job.state is JobState.UNKNOWN:
                continue
            # While the owner's own job is not known, any of these may be it.
            if owner is None or (owner.job_id is not None and job.job_id != owner.job_id):
                yield job


def _forged(observation: Observation) -> list[Job]:
    """Live jobs whose comment begins as our mark does, and is none; those that attempts know are told of by them."""
    if not isinstance(observation.slurm, Listing):
        return []
    begins = re.compile(rf"{re.escape(f'{MARK} {observation.installation}')}(\s|$)")
    known = {
        attempt.job_id for replica in observation.replicas if (attempt := replica.live_attempt) is not None
    }
    found = [
        job
        for job in observation.slurm.jobs
        if not job.ended
        and begins.match(job.comment)
        and job.job_id not in known
        and marked_token(job, observation.installation) is None
    ]
    return sorted(found, key=lambda job: job.job_id)


def _told(forged: list[Job]) -> str:
    if not forged:
        return ""
    ids = ", ".join(str(job.job_id) for job in forged[:NAMED])
    if len(forged) == 1:
        who = f"job {ids} has a comment like our mark, and its name or its token does not agree: it is left alone"
    else:
        more = f" and {len(forged) - NAMED} more" if len(forged) > NAMED else ""
        who = f"jobs {ids}{more} have comments like our mark, and their names or tokens differ: they are left alone"
    return f"; {who}; scontrol update JobId={forged[0].job_id} Comment='' if it is yours"


def _cancel_at(observation: Observation, job: Job) -> datetime:
    seen_since = observation.strays_since.get(job.job_id, observation.now)
    grace_s = ORPHAN_GRACE_S if observation.orphan_grace_s is None else observation.orphan_grace_s
    return seen_since + timedelta(seconds=grace_s)


def _is_forgotten(observation: Observation, job: Job) -> bool:
    """Whether no attempt, live or ended, has the job's token."""
    token = marked_token(job, observation.installation)
    return token not in observation.known_tokens and not any(
        replica.live_attempt and replica.live_attempt.token == token for replica in observation.replicas
    )


def _described(observation: Observation, orphans: list[Job]) -> str:
    named = "; ".join(_one(observation, job) for job in orphans[:NAMED])
    return f"{named}; and {len(orphans) - NAMED} more" if len(orphans) > NAMED else named


def _one(observation: Observation, job: Job) -> str:
    token = marked_token(job, observation.installation)
    live = any(
        replica.live_attempt and replica.live_attempt.token == token for replica in observation.replicas
    )
    if live:
        owner = "an attempt that another job is running"
    elif token in observation.known_tokens:
        owner = "an attempt that has ended"
    else:
        owner = "no attempt in the database"
    return f"job {job.job_id} ({job.name}) bears our mark and belongs to {owner}"
