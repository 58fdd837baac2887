"""How a job is brought to its end: told to drain, then cancelled; at once where it serves nobody, or where a deletion
asks for it. A cancellation without effect is repeated.
"""

from __future__ import annotations

from datetime import timedelta

from penstock.core.decisions import Cancel, Drain, Reason
from penstock.core.jobs import Job, JobState
from penstock.core.model import Attempt, Phase, ReplicaState, job_name
from penstock.core.scene import Outlook, Scene
from penstock.core.sentences import clock
from penstock.core.slurm_words import HALTED_STATES

DRAIN_GRACE_S = 30
"""On top of the drain time-out: the engine needs up to 10 s to leave after its last stream, and SIGTERM takes a while
to arrive."""

REPEAT_AFTER_S = 60
"""A cancellation that had no effect is repeated after this time: Slurm's KillWait (30 s by default) and once more."""


def leave(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    """The replica is to go, or its job was told to end before."""
    if attempt.cancelled_at is not None:
        message = f"job {job.job_id} is cancelled again: it has not ended"
        return cancel(scene, attempt, job, Reason.CANCEL, message)
    if scene.deployment.force_delete and scene.deployment.deleted_at is not None:
        message = f"job {job.job_id} is cancelled at once, as the deletion asks"
        return cancel(scene, attempt, job, Reason.CANCEL, message)
    if job.waiting or job.state is JobState.CONFIGURING:
        return cancel(scene, attempt, job, Reason.CANCEL, f"job {job.job_id} is cancelled before it runs")
    if attempt.phase in (Phase.FAILED, Phase.ENDED):
        return after_agent(scene, attempt, job)
    allowed = timedelta(seconds=scene.spec.drain_timeout_s + DRAIN_GRACE_S)
    # A signal that never gets through must not keep the replica for ever: then the intent's time counts.
    began_at = attempt.signalled_at or attempt.drain_at
    if began_at is not None and scene.now >= began_at + allowed:
        message = f"job {job.job_id} was told to drain at {clock(began_at, scene.now)} and is cancelled"
        return cancel(scene, attempt, job, Reason.DRAIN_TIMEOUT, message)
    if attempt.drain_at is not None and attempt.signalled_at is None and job.state in HALTED_STATES:
        cut_at = clock(attempt.drain_at + allowed, scene.now)
        message = (
            f"job {job.job_id} is suspended in Slurm and hears no signal; cancelled at {cut_at} at the latest"
        )
        return scene.decide(Reason.SUSPENDED, ReplicaState.DRAINING, message)
    if attempt.signalled_at is None:
        name = job_name(scene.deployment.name, attempt.token)
        drain = Drain(scene.replica.uid, attempt.token, job.job_id, name)
        message = f"job {job.job_id} is told to drain"
        return scene.decide(Reason.DRAIN, ReplicaState.DRAINING, message, drain)
    cut_at = clock(attempt.signalled_at + allowed, scene.now)
    message = f"job {job.job_id} finishes its requests; cancelled at {cut_at} at the latest"
    return scene.decide(Reason.DRAINING, ReplicaState.DRAINING, message)


def cancel(scene: Scene, attempt: Attempt, job: Job, reason: Reason, message: str) -> Outlook:
    """Has the job cancelled, unless it was told so a moment ago."""
    told_at = attempt.cancelled_at
    if told_at is not None and scene.now < told_at + timedelta(seconds=REPEAT_AFTER_S):
        message = f"job {job.job_id} was cancelled at {clock(told_at, scene.now)} and has not ended yet"
        return scene.decide(Reason.STOPPING, ReplicaState.STOPPING, message)
    name = job_name(scene.deployment.name, attempt.token)
    return scene.decide(reason, ReplicaState.STOPPING, message, Cancel(attempt.token, job.job_id, name))


def after_agent(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    """The agent has said its last word, and its job has not ended."""
    said = attempt.phase_message or "it ends"
    if attempt.reported_at is None or scene.lately(attempt.reported_at, REPEAT_AFTER_S):
        return scene.decide(Reason.STOPPING, ReplicaState.STOPPING, f"job {job.job_id} is ending: {said}")
    message = f"job {job.job_id} lives on after its agent said: {said}"
    return cancel(scene, attempt, job, Reason.CANCEL, message)
