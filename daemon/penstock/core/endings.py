"""How an attempt ended, who is to blame for it, and when the next one is.

Knows nothing of what is running: what comes in has ended, by Slurm's word or because there never was a job.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from penstock.core import backoff
from penstock.core.decisions import EndAttempt, Reason, RemoveReplica
from penstock.core.jobs import Job, JobState
from penstock.core.model import Attempt, Phase, ReplicaState
from penstock.core.placements import named
from penstock.core.scene import LEFT_CANCELLED, Outlook, Scene
from penstock.core.sentences import clock, job_end
from penstock.core.slurm_words import STATES, Blame, waits_for
from penstock.core.waiting import NEVER_WITHDRAWN, no_room, patience_is_over

PACE_S = 60
"""After an end that is nobody's failure the next attempt follows at once, but not sooner than this after the last one
was written down: whoever cancels our jobs in a loop, or a partition that preempts each at once, makes no storm."""


def ended(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    """Its job has ended, by the listing."""
    given_up = _was_given_up(scene, attempt, job)
    next_placement, taken = _goes_on(scene, attempt, job), _was_taken(scene, attempt, job)
    if next_placement:
        where = named(scene.deployment.spec, scene.replica, attempt.placement)
        message = f"job {job.job_id} was withdrawn from {where}"
    elif given_up:
        message = f"job {job.job_id} was withdrawn: no room {no_room(scene.deployment)[1]}"
    elif _cancelled_by_somebody(attempt, job) and not scene.replica.leaving:
        message = f"somebody cancelled job {job.job_id}"
    elif job.state is JobState.CANCELLED and not scene.replica.leaving:
        # What Slurm says beside it is why the job had waited, or the signal that ended it.
        message = f"job {job.job_id} was cancelled by Penstock"
    else:
        message = job_end(job, attempt.exit_code if attempt.exit_code is not None else job.exit_code)
    if taken:
        message += ", after Slurm had taken its nodes for another one"
    if attempt.phase is Phase.FAILED and attempt.phase_message:
        message += f": {attempt.phase_message}"
    reason = _ENDS.get(_blame(scene, attempt, job), Reason.JOB_ENDED)
    if job.state is JobState.PREEMPTED or taken:
        reason = Reason.PREEMPTED
    if given_up:
        reason = Reason.PLACEMENT_GIVEN_UP if next_placement else no_room(scene.deployment)[0]
    return end_attempt(scene, attempt, job, reason, message, failed=not scene.replica.leaving)


def _was_given_up(scene: Scene, attempt: Attempt, job: Job | None) -> bool:
    """Whether a cancellation was our withdrawal, by its mark, which is written before scancel is called. Somebody
    else's after that counts as ours; one before it is his, however long the job had waited when it was noticed.

    As it was last seen the job was one that is withdrawn, so not one that is held; and a mark of an earlier wait, after
    which the job ran and was requeued, says nothing.
    """
    if attempt.withdrawn_at is None or not _cancelled_by_somebody(attempt, job):
        return False
    seen, replica = attempt.job, scene.replica
    withdrawable = seen is not None and waits_for(seen.state, seen.reason) not in NEVER_WITHDRAWN
    waited = replica.state is ReplicaState.QUEUED and attempt.phase is Phase.NONE
    return withdrawable and waited and attempt.withdrawn_at >= replica.since


def _goes_on(scene: Scene, attempt: Attempt, job: Job | None) -> bool:
    """Whether it was withdrawn for the next placement, and not for want of company."""
    if attempt.withdrawn_at is None or not _was_given_up(scene, attempt, job):
        return False
    return not attempt.packed or patience_is_over(replace(scene, now=attempt.withdrawn_at), attempt)


def stays_cancelled(scene: Scene, last: Attempt) -> bool:
    """Whether somebody cancelled its last job, and that is to stay so."""
    withdrawn = scene.replica.placement > last.placement or last.packed
    return scene.respects and _cancelled_by_somebody(last, last.job) and not withdrawn


def _cancelled_by_somebody(attempt: Attempt, job: Job | None) -> bool:
    return job is not None and job.state is JobState.CANCELLED and attempt.cancelled_at is None


_ENDS = {Blame.NODE: Reason.NODE_FAILED, Blame.SOMEBODY: Reason.CANCELLED_OUTSIDE}


def _was_taken(scene: Scene, attempt: Attempt, job: Job) -> bool:
    """Whether it left in a preemption's grace time: Slurm calls that as the script ended. A replica that is to stay is
    told to drain for no other reason."""
    told = attempt.signalled_at is not None and attempt.ready_at is not None and attempt.cancelled_at is None
    by_itself = job.state in (JobState.COMPLETED, JobState.FAILED, JobState.TIMEOUT)
    return told and by_itself and not scene.replica.leaving


def _blame(scene: Scene, attempt: Attempt, job: Job | None) -> Blame:
    """Whom the end of an attempt is counted against."""
    if job is None:
        return Blame.REVISION
    if _was_taken(scene, attempt, job):
        return Blame.NOBODY
    if job.state is JobState.CANCELLED and attempt.cancelled_at is not None:
        # It was ours; one that did not run (held, suspended) had not failed.
        return Blame.NOBODY if attempt.running_since is None else Blame.REVISION
    if job.state in (JobState.TIMEOUT, JobState.COMPLETED) and attempt.ready_at is not None:
        return Blame.NOBODY
    return STATES[job.state].blame or Blame.REVISION


def end_attempt(
    scene: Scene, attempt: Attempt, job: Job | None, reason: Reason, message: str, *, failed: bool
) -> Outlook:
    """Writes the end of the attempt, and when the next one is.

    `failed`: the end was not asked for. `job`: None where there was none, or nobody knows how it ended.
    """
    replica, policy = scene.replica, scene.deployment.spec.restart
    failures, next_attempt_at, then, blamed = replica.failures, None, "", False
    blame, given_up = _blame(scene, attempt, job), _was_given_up(scene, attempt, job)
    placement = 0 if attempt.ready_at is not None else attempt.placement + _goes_on(scene, attempt, job)
    if failed:
        ended_at = _ended_at(scene, attempt, job)
        served = backoff.has_served(attempt, ended_at, policy)
        if blame is Blame.REVISION:
            failures = backoff.failures_after(replica, attempt, ended_at, policy)
            next_attempt_at = scene.now + backoff.delay(failures, policy, f"{replica.name}/{attempt.number}")
        else:
            failures = 0 if served else replica.failures
            next_attempt_at = max(scene.now, attempt.intended_at + timedelta(seconds=PACE_S))
            if given_up:  # There are only so many placements, and the next one asks for no company.
                next_attempt_at = scene.now
        blamed = blame is Blame.NODE or (blame is Blame.REVISION and not served)
        if scene.respects and _cancelled_by_somebody(attempt, job) and not given_up:
            then = f"; {LEFT_CANCELLED}"
        elif not scene.deployment.paused:
            at_once = next_attempt_at <= scene.now
            then = f"; next attempt {'at once' if at_once else clock(next_attempt_at, scene.now)}"
    exit_code = attempt.exit_code if attempt.exit_code is not None else (job.exit_code if job else None)
    end = EndAttempt(
        replica.uid,
        attempt.token,
        exit_code,
        job,
        failures,
        next_attempt_at,
        message,
        blamed,
        placement,
        found_no_room=attempt.packed and given_up,
    )
    if replica.leaving:
        return scene.decide(Reason.REMOVE, ReplicaState.REMOVED, message, end, RemoveReplica(replica.uid))
    return scene.decide(reason, ReplicaState.WAITING, message + then, end)


def _ended_at(scene: Scene, attempt: Attempt, job: Job | None) -> datetime:
    """When the job ended, by Slurm's clock, which may be an hour off: so not before its agent's last word, and not
    after now."""
    if job is None or job.ends_at is None:
        return scene.now
    earliest = attempt.reported_at or job.ends_at
    return min(scene.now, max(job.ends_at, earliest))
