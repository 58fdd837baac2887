"""A job that has no nodes, or stands still on them: it is queued, held by somebody, or suspended.

Waiting is no failure, and no time-out of the replica runs (rule 9). How long is waited before another placement is
tried, or another job takes its place, is the spec's and the constants' here. What an administrator holds is left alone.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from penstock.core import maintenance
from penstock.core.decisions import Reason, Withdraw
from penstock.core.jobs import Job
from penstock.core.leaving import cancel
from penstock.core.model import Attempt, Deployment, Phase, ReplicaState, job_name
from penstock.core.placements import named, placed
from penstock.core.scene import Outlook, Scene
from penstock.core.sentences import clock, queue_wait, why_blocked
from penstock.core.slurm_words import Wait, waits_for
from penstock.core.spread import spreads
from penstock.core.walltime import job_number, unbounded_s

PACK_WAIT_S = 15
"""How long a job waits for room on nodes that it was told to run on beside others, or apart from them: with room it
starts in seconds. What it was told may be long untrue: a job that is requeued keeps it."""

SUSPENDED_MAX_S = 300
"""A job that is halted for longer is replaced. Time slices (SchedulerTimeSlice, 30 s by default) are over sooner, and a
job that was preempted by suspension may stand still for days; nobody says which of them it is."""

NEVER_WITHDRAWN = (Wait.ITS_TURN, Wait.HELD, Wait.HELD_BY_SLURM)
"""Jobs that wait for this would wait so at any placement."""

USER_HOLD = "JobHeldUser"


def queued(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    """The job waits for nodes, or for somebody."""
    if not _waits_anew(scene, attempt, job):
        return _queued(scene, attempt, job)
    from_now = replace(scene, replica=replace(scene.replica, since=scene.now))
    return replace(_queued(from_now, attempt, job), waits_anew=True)


def _waits_anew(scene: Scene, attempt: Attempt, job: Job) -> bool:
    """Whether it has had nodes since it last waited, and its replica was shown as queued all the while: it was halted
    on them, or ran and was requeued between two looks. Then the replica's `since` is of the earlier wait."""
    seen, replica = attempt.job, scene.replica
    if seen is None or replica.state is not ReplicaState.QUEUED or replica.since >= scene.now:
        return False
    return not seen.waiting or seen.restarts != job.restarts


def _queued(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    wait = waits_for(job.state, job.reason)
    if wait in (Wait.HELD, Wait.HELD_BY_SLURM):
        return _held(scene, attempt, job, wait)
    if wait not in NEVER_WITHDRAWN and not scene.deployment.paused and patience_is_over(scene, attempt):
        return _given_up(scene, attempt, job)
    if wait not in NEVER_WITHDRAWN and not scene.deployment.paused and _found_no_room(scene, attempt):
        reason, where = no_room(scene.deployment)
        message = f"job {job.job_id} found no room {where}; one that may run anywhere follows"
        return scene.decide(reason, ReplicaState.QUEUED, message, _withdraw(scene, attempt, job))
    if wait is Wait.SOMEBODY:
        return scene.decide(Reason.QUEUE_BLOCKED, ReplicaState.QUEUED, why_blocked(job))
    if _would_wait_out_maintenance(scene, attempt, job):
        asked = f"{job.time_limit_s // 60} min" if job.time_limit_s is not None else "unlimited time"
        message = f"job {job.job_id} would wait out a maintenance, for it asks for {asked}"
        message += "; one that ends before takes its place"
        return cancel(scene, attempt, job, Reason.MAINTENANCE_AHEAD, message)
    return scene.decide(Reason.QUEUED, ReplicaState.QUEUED, queue_wait(job, scene.now))


def _would_wait_out_maintenance(scene: Scene, attempt: Attempt, job: Job) -> bool:
    deployment, replica = scene.deployment, scene.replica
    if deployment.paused or replica.revision != deployment.revision:
        return False  # Of an older spec's limits nothing is known here; that one goes soon anyway.
    number = job_number(replica, attempt.number)
    unbounded = unbounded_s(
        placed(deployment.spec, replica, attempt.placement), number, scene.bounds.partition_s
    )
    return maintenance.waits_for_nothing(job, unbounded, scene.bounds)


def patience_is_over(scene: Scene, attempt: Attempt) -> bool:
    """Whether the job has waited for as long as is waited at its placement, and there is another one.

    Counted from when it was first seen to wait in this run (`_waits_anew`), by our clock. What runs, or ran, is not
    waiting: whoever registered has had nodes.
    """
    spec, replica = scene.deployment.spec, scene.replica
    listed = spec.placements_of(burst=replica.burst)
    if attempt.placement + 1 >= len(listed) or replica.state is not ReplicaState.QUEUED:
        return False
    patience = timedelta(seconds=listed[attempt.placement].patience_s)
    return attempt.phase is Phase.NONE and scene.now >= replica.since + patience


def _given_up(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    spec, replica = scene.deployment.spec, scene.replica
    here = named(spec, replica, attempt.placement)
    after = named(spec, replica, attempt.placement + 1)
    message = (
        f"job {job.job_id} waits at {here} since {clock(replica.since, scene.now)}; {after} is tried next"
    )
    return scene.decide(
        Reason.PLACEMENT_GIVEN_UP, ReplicaState.QUEUED, message, _withdraw(scene, attempt, job)
    )


def _withdraw(scene: Scene, attempt: Attempt, job: Job) -> Withdraw:
    return Withdraw(attempt.token, job.job_id, job_name(scene.deployment.name, attempt.token))


def no_room(deployment: Deployment) -> tuple[Reason, str]:
    """Why a job is withdrawn that its deployment's other replicas kept to some nodes, and where it found no room."""
    if spreads(deployment):
        return Reason.SPREAD_GIVEN_UP, "apart from the deployment's replicas"
    return Reason.PACK_GIVEN_UP, "beside the deployment's replicas"


def _found_no_room(scene: Scene, attempt: Attempt) -> bool:
    """Whether the job has waited for long enough for nodes that run other replicas, or that do not."""
    since = scene.replica.since
    return (
        attempt.packed
        and scene.replica.state is ReplicaState.QUEUED
        and attempt.phase is Phase.NONE
        and scene.now >= since + timedelta(seconds=PACK_WAIT_S)
    )


def _held(scene: Scene, attempt: Attempt, job: Job, wait: Wait) -> Outlook:
    """What an administrator holds is his to release: submitting another one would only evade him."""
    message = f"job {job.job_id} is held in Slurm ({job.reason or job.state})"
    admin = wait is Wait.HELD and job.reason != USER_HOLD
    if admin or scene.respects or scene.deployment.paused:
        if admin:
            message += ", until an administrator releases it"
        elif scene.respects:
            until = f"`scontrol release {job.job_id}`"
            message += f"; it stays so until {until}: spec.outside_changes is respect"
        return scene.decide(Reason.HELD, ReplicaState.QUEUED, message)
    return cancel(scene, attempt, job, Reason.HELD, f"{message} and is replaced")


def halted(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    """Slurm halts the job: it serves nobody, and routing leaves it."""
    message = f"job {job.job_id} is suspended in Slurm"
    since = attempt.halted_since or scene.now
    is_over = scene.now >= since + timedelta(seconds=SUSPENDED_MAX_S)
    if is_over and not (scene.respects or scene.deployment.paused):
        message += f" since {clock(since, scene.now)} and is replaced"
        return cancel(scene, attempt, job, Reason.SUSPENDED_TOO_LONG, message)
    return scene.decide(Reason.SUSPENDED, ReplicaState.QUEUED, message)
