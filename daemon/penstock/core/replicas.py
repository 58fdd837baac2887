"""What to do about one replica: its attempt's row, its job in Slurm's listing and its agent's reports, put together.

One function for each situation, chosen in `plan_replica`, the only place that branches on the situation. Called only when Slurm answered in
full: a listing that failed never gets here (rule 3). What the deployment wants (how many replicas, which ones go) was settled before and
comes in as `replica.leaving`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from penstock.core import backoff
from penstock.core.decisions import (
    Action,
    Adopt,
    Cancel,
    Decision,
    Drain,
    EndAttempt,
    Reason,
    RecordJob,
    RecordMissing,
    RemoveReplica,
    Resubmit,
    Submit,
)
from penstock.core.jobs import Job, JobState
from penstock.core.model import Attempt, Deployment, Phase, Replica, ReplicaState, job_name
from penstock.core.sentences import clock, job_end, queue_wait

DOUBT_FACTOR = 3
"""Doubt about a submission lasts this many of Slurm's message time-outs: a reply may be late by one, and the accepted
job must have had the time to appear in a listing that was itself begun in time."""

MISSING_FOR_S = 30
"""A job that complete listings lack must be lacking for this long before it counts as gone: slurmctld forgets nothing
for MinJobAge (300 s by default), so a shorter gap is a slurmctld that was just started and has not read its state yet."""

DRAIN_GRACE_S = 30
"""On top of the drain time-out: the engine needs up to 10 s to leave after its last stream, and SIGTERM takes a while to arrive."""

REPEAT_AFTER_S = 60
"""A cancellation that had no effect is repeated after this time: Slurm's KillWait (30 s by default) and once more."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What was found out about one replica, and what follows."""

    decision: Decision
    state: ReplicaState
    message: str


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a decision about one replica rests on."""

    now: datetime
    deployment: Deployment
    replica: Replica
    job: Job | None
    """The attempt's job in the listing."""
    message_timeout_s: int
    reports_open_since: datetime | None
    """Since when somebody could hear the agents' reports without a break; None: nobody can."""

    def decide(self, reason: Reason, state: ReplicaState, message: str, *actions: Action) -> Outlook:
        decision = Decision(self.deployment.name, self.replica.name, reason, message, actions)
        return Outlook(decision, state, message)


def jobs_of(attempt: Attempt, jobs_by_token: Mapping[str, tuple[Job, ...]]) -> Job | None:
    """The attempt's job among those that bear its token: the one it is known by, else a live one, else any."""
    candidates = jobs_by_token.get(attempt.token, ())
    if attempt.job_id is not None:
        return next((job for job in candidates if job.job_id == attempt.job_id), None)
    return min(candidates, key=lambda job: (job.ended, job.job_id), default=None)


def plan_replica(scene: Scene) -> Outlook:
    attempt = scene.replica.live_attempt
    if attempt is None:
        return _without_attempt(scene)
    if attempt.job_id is None:
        return _unconfirmed(scene, attempt)
    if scene.job is None:
        return _missing(scene, attempt)
    return _with_job(scene, attempt, scene.job)


def _without_attempt(scene: Scene) -> Outlook:
    replica, now = scene.replica, scene.now
    if replica.leaving:
        return scene.decide(
            Reason.REMOVE, ReplicaState.REMOVED, "its job has ended", RemoveReplica(replica.uid)
        )
    if scene.deployment.paused:
        return scene.decide(
            Reason.PAUSED, ReplicaState.WAITING, "the deployment is paused; nothing is submitted"
        )
    if replica.next_attempt_at is not None and now < replica.next_attempt_at:
        failed = f"{replica.failures} failed in a row" if replica.failures > 1 else "failed once"
        cause = (
            f": {replica.attempt.phase_message}" if replica.attempt and replica.attempt.phase_message else ""
        )
        message = f"{failed}{cause}; next attempt {clock(replica.next_attempt_at, now)}"
        return scene.decide(Reason.BACK_OFF, ReplicaState.WAITING, message)
    number = replica.attempt.number + 1 if replica.attempt is not None else 1
    message = f"attempt {number} of revision {replica.revision} is submitted"
    return scene.decide(Reason.SUBMIT, ReplicaState.SUBMITTING, message, Submit(replica.uid))


def _unconfirmed(scene: Scene, attempt: Attempt) -> Outlook:
    if scene.job is not None:
        message = f"job {scene.job.job_id} bears attempt {attempt.number}'s token and is taken over"
        return scene.decide(Reason.ADOPT, ReplicaState.SUBMITTING, message, Adopt(attempt.token, scene.job))
    doubtful_until = (attempt.submitted_at or attempt.intended_at) + timedelta(
        seconds=DOUBT_FACTOR * scene.message_timeout_s
    )
    if scene.now < doubtful_until:
        message = f"not known whether Slurm took attempt {attempt.number}; believed absent at {clock(doubtful_until, scene.now)}"
        return scene.decide(Reason.SUBMISSION_DOUBTFUL, ReplicaState.SUBMITTING, message)
    if scene.replica.leaving or scene.deployment.paused:
        return _end(
            scene,
            attempt,
            None,
            Reason.JOB_LOST,
            f"attempt {attempt.number} never reached Slurm",
            failed=False,
        )
    message = f"Slurm does not have attempt {attempt.number}; it is submitted again under the same token"
    return scene.decide(
        Reason.RESUBMIT, ReplicaState.SUBMITTING, message, Resubmit(scene.replica.uid, attempt.token)
    )


def _missing(scene: Scene, attempt: Attempt) -> Outlook:
    since = attempt.missing_since or scene.now
    believed_at = max(since, attempt.reported_at or since) + timedelta(seconds=MISSING_FOR_S)
    if scene.now < believed_at:
        message = f"Slurm does not list job {attempt.job_id}; believed at {clock(believed_at, scene.now)}"
        actions = (RecordMissing(attempt.token, since),) if attempt.missing_since is None else ()
        return scene.decide(Reason.JOB_MISSING, scene.replica.state, message, *actions)
    return _end(
        scene,
        attempt,
        None,
        Reason.JOB_LOST,
        f"job {attempt.job_id} is gone from Slurm",
        failed=not scene.replica.leaving,
    )


def _with_job(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    outlook = _by_job_state(scene, attempt, job)
    decision = outlook.decision
    if attempt.missing_since is not None:
        decision = replace(decision, actions=(RecordMissing(attempt.token, None), *decision.actions))
    if attempt.job != job and not job.ended:  # EndAttempt records an ended job itself.
        decision = replace(decision, actions=(RecordJob(attempt.token, job), *decision.actions))
    return replace(outlook, decision=decision)


def _by_job_state(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    if job.state is JobState.UNKNOWN:
        message = f"Slurm says job {job.job_id} is {job.state_text!r}, which this release does not know"
        return scene.decide(Reason.JOB_STATE_UNKNOWN, scene.replica.state, message)
    if job.ended:
        message = job_end(job, attempt.exit_code if attempt.exit_code is not None else job.exit_code)
        reason = Reason.REMOVE if scene.replica.leaving else Reason.JOB_ENDED
        return _end(scene, attempt, job, reason, message, failed=not scene.replica.leaving)
    if job.waiting:
        return _queued(scene, attempt, job)
    if job.state is JobState.COMPLETING:
        return scene.decide(Reason.STOPPING, ReplicaState.STOPPING, f"job {job.job_id} is ending")
    if scene.replica.leaving:
        return _leaving(scene, attempt, job)
    return _staying(scene, attempt, job)


def _end(
    scene: Scene, attempt: Attempt, job: Job | None, reason: Reason, message: str, *, failed: bool
) -> Outlook:
    replica, policy = scene.replica, scene.deployment.spec.restart
    failures, next_attempt_at = replica.failures, None
    if failed:
        failures = backoff.failures_after(replica, attempt, scene.now, policy)
        next_attempt_at = scene.now + backoff.delay(failures, policy)
        message = f"{message}; next attempt {clock(next_attempt_at, scene.now)}"
    exit_code = attempt.exit_code if attempt.exit_code is not None else (job.exit_code if job else None)
    end = EndAttempt(replica.uid, attempt.token, exit_code, job, failures, next_attempt_at, message)
    if replica.leaving:
        return scene.decide(Reason.REMOVE, ReplicaState.REMOVED, message, end, RemoveReplica(replica.uid))
    return scene.decide(reason, ReplicaState.WAITING, message, end)


def _queued(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    if scene.replica.leaving:
        return _cancel(scene, attempt, job, Reason.CANCEL, f"job {job.job_id} is cancelled in the queue")
    return scene.decide(Reason.QUEUED, ReplicaState.QUEUED, queue_wait(job, scene.now))


def _cancel(scene: Scene, attempt: Attempt, job: Job, reason: Reason, message: str) -> Outlook:
    told_at = attempt.cancelled_at
    if told_at is not None and scene.now < told_at + timedelta(seconds=REPEAT_AFTER_S):
        message = f"job {job.job_id} was cancelled at {clock(told_at, scene.now)} and has not ended yet"
        return scene.decide(Reason.STOPPING, ReplicaState.STOPPING, message)
    cancel = Cancel(attempt.token, job.job_id, job_name(scene.deployment.name, attempt.token))
    return scene.decide(reason, ReplicaState.STOPPING, message, cancel)


def _leaving(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    if scene.deployment.force_delete and scene.deployment.deleted_at is not None:
        return _cancel(
            scene, attempt, job, Reason.CANCEL, f"job {job.job_id} is cancelled at once, as the deletion asks"
        )
    if attempt.cancelled_at is not None:
        return _cancel(
            scene, attempt, job, Reason.CANCEL, f"job {job.job_id} is cancelled again: it has not ended"
        )
    if attempt.signalled_at is None or attempt.drain_at is None:
        message = f"job {job.job_id} is told to drain"
        drain = Drain(
            scene.replica.uid, attempt.token, job.job_id, job_name(scene.deployment.name, attempt.token)
        )
        return scene.decide(Reason.DRAIN, ReplicaState.DRAINING, message, drain)
    cut_at = attempt.signalled_at + timedelta(seconds=scene.deployment.spec.drain_timeout_s + DRAIN_GRACE_S)
    if scene.now < cut_at:
        message = (
            f"job {job.job_id} finishes its requests; cancelled at {clock(cut_at, scene.now)} at the latest"
        )
        return scene.decide(Reason.DRAINING, ReplicaState.DRAINING, message)
    message = f"job {job.job_id} has not ended {DRAIN_GRACE_S} s after its drain time-out"
    return _cancel(scene, attempt, job, Reason.DRAIN_TIMEOUT, message)


def _staying(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    now, probes = scene.now, scene.deployment.spec.probes
    if attempt.cancelled_at is not None:
        return _cancel(
            scene, attempt, job, Reason.CANCEL, f"job {job.job_id} is cancelled again: it has not ended"
        )
    if attempt.phase in (Phase.FAILED, Phase.ENDED):
        return _after_agent(scene, attempt, job)
    if silent_since := _silent_since(scene, attempt):
        message = f"the agent of job {job.job_id} has been silent since {clock(silent_since, now)}"
        return _cancel(
            scene, attempt, job, Reason.REPORT_TIMEOUT, f"{message}, longer than {probes.report_timeout_s} s"
        )
    if attempt.phase is Phase.DRAINING:
        message = attempt.phase_message or f"job {job.job_id} drains"
        return scene.decide(Reason.DRAINING, ReplicaState.DRAINING, message)
    if attempt.phase is Phase.READY:
        return scene.decide(
            Reason.READY, ReplicaState.READY, f"takes requests at {attempt.endpoint} (job {job.job_id})"
        )
    deadline = (
        job.started_at + timedelta(seconds=probes.startup_timeout_s) if job.started_at is not None else None
    )
    if deadline is not None and now >= deadline:
        message = f"job {job.job_id} generated no token within {probes.startup_timeout_s} s of its start"
        return _cancel(scene, attempt, job, Reason.STARTUP_TIMEOUT, message)
    doing = attempt.phase_message or "the agent has not registered yet"
    until = f"; given up at {clock(deadline, now)}" if deadline is not None else ""
    where = f"on {job.nodes}" if job.nodes else "without a node"
    return scene.decide(
        Reason.STARTING, ReplicaState.STARTING, f"job {job.job_id} runs {where}: {doing}{until}"
    )


def _after_agent(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    """The agent has said its last word, and its job has not ended."""
    said_at = attempt.reported_at or scene.now
    if scene.now < said_at + timedelta(seconds=REPEAT_AFTER_S):
        return scene.decide(
            Reason.STOPPING, ReplicaState.STOPPING, f"job {job.job_id}: {attempt.phase_message}"
        )
    return _cancel(
        scene,
        attempt,
        job,
        Reason.CANCEL,
        f"job {job.job_id} lives on after its agent said: {attempt.phase_message}",
    )


def _silent_since(scene: Scene, attempt: Attempt) -> datetime | None:
    """Since when the agent is silent, if that is too long. Silence counts only while somebody could have heard it."""
    if attempt.reported_at is None or scene.reports_open_since is None:
        return None
    since = max(attempt.reported_at, scene.reports_open_since)
    return (
        since
        if scene.now - since > timedelta(seconds=scene.deployment.spec.probes.report_timeout_s)
        else None
    )
