"""A job that runs and is to go on: it starts, serves, drains, is handed over, or fails to do so in time.

The agent's words count, and its silence, for as long as somebody could have heard it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from penstock.core import adapters, handover
from penstock.core.decisions import BeginHandover, Drain, Reason
from penstock.core.jobs import Job
from penstock.core.leaving import after_agent, cancel
from penstock.core.model import Attempt, Phase, ReplicaState, job_name
from penstock.core.scene import Outlook, Scene
from penstock.core.sentences import clock


def staying(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    """The job runs and is to go on."""
    if attempt.phase in (Phase.FAILED, Phase.ENDED):
        return after_agent(scene, attempt, job)
    if attempt.phase is not Phase.NONE and attempt.ready_at is not None and job.taken_early:
        return _preempted_soon(scene, attempt, job)
    if silent_since := _silent_since(scene, attempt):
        limit_s = scene.deployment.spec.probes.report_timeout_s
        message = (
            f"the agent of job {job.job_id} has been silent since {clock(silent_since, scene.now)},"
            f" longer than {limit_s} s"
        )
        state = ReplicaState.READY if attempt.phase is Phase.READY else ReplicaState.STARTING
        return _give_up(scene, attempt, job, Reason.REPORT_TIMEOUT, message, state)
    if attempt.phase is Phase.DRAINING:
        message = attempt.phase_message or f"job {job.job_id} drains"
        return _handed_over(
            scene, attempt, job, scene.decide(Reason.DRAINING, ReplicaState.DRAINING, message)
        )
    if attempt.phase is Phase.READY:
        return _handed_over(scene, attempt, job, _ready(scene, attempt, job))
    return _starting(scene, attempt, job)


def _ready(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    """The agent says that it serves. An adapter that it has not yet is no reason to take the model from others."""
    message = f"takes requests at {attempt.endpoint} (job {job.job_id})"
    lacking = adapters.lacks(scene.deployment, replace(scene.replica, state=ReplicaState.READY))
    if not lacking:
        return scene.decide(Reason.READY, ReplicaState.READY, message)
    failed = any(lack.message for lack in lacking)
    reason = Reason.ADAPTER_FAILED if failed else Reason.ADAPTERS_LOADING
    return scene.decide(reason, ReplicaState.READY, f"{message}; {adapters.told(lacking)}")


def _preempted_soon(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    """Slurm has brought the job's end forward: it preempts it after a grace time, and tells the batch shell nothing of
    that (unless PreemptParameters has send_user_signal). What it has to finish it can finish only now."""
    message = f"Slurm takes the nodes of job {job.job_id} for another one; it finishes its requests"
    if attempt.signalled_at is not None:
        return scene.decide(Reason.PREEMPTING, ReplicaState.DRAINING, message)
    name = job_name(scene.deployment.name, attempt.token)
    drain = Drain(scene.replica.uid, attempt.token, job.job_id, name)
    return scene.decide(Reason.PREEMPTING, ReplicaState.DRAINING, message, drain)


def _handed_over(scene: Scene, attempt: Attempt, job: Job, outlook: Outlook) -> Outlook:
    """A replica that has served, with the handover that it is in, or that begins now."""
    spec, estimates = scene.spec, scene.estimates
    job_ends_at = handover.end_of(attempt, job, scene.threats)
    if attempt.handover_at is not None and handover.handed_over(attempt):
        ends_at = handover.limit_at(attempt, job)
        until = f"; the job ends at {clock(ends_at, scene.now)}" if ends_at is not None else ""
        message = (
            f"{outlook.message}; its successor is due since {clock(attempt.handover_at, scene.now)}{until}"
        )
        told = scene.decide(outlook.decision.reason, outlook.state, message)
        return replace(told, handed_over=True, ends_at=job_ends_at)
    if estimates is None:
        return outlook
    found = handover.due(spec, attempt, job, estimates, scene.now, scene.threats)
    if found is None or scene.now < found.at:
        return outlook
    message = handover.sentence(found, spec, estimates)
    begun = scene.decide(Reason.HANDOVER, outlook.state, message, BeginHandover(attempt.token))
    return replace(begun, handed_over=True, ends_at=job_ends_at)


def _starting(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    limit_s = scene.deployment.spec.probes.startup_timeout_s
    since = attempt.running_since
    deadline = since + timedelta(seconds=limit_s) if since is not None else None
    if deadline is not None and scene.now >= deadline:
        message = f"job {job.job_id} generated no token within {limit_s} s of its start"
        return _give_up(scene, attempt, job, Reason.STARTUP_TIMEOUT, message, ReplicaState.STARTING)
    doing = attempt.phase_message or "the agent has not registered yet"
    if attempt.phase is not Phase.NONE and not attempt.phase_message:
        doing = "the engine is being started"
    where = f"on {job.nodes}" if job.nodes else "without a node"
    until = ""
    if deadline is not None and not scene.deployment.paused:
        until = f"; given up at {clock(deadline, scene.now)}"
    message = f"job {job.job_id} runs {where}: {doing}{until}"
    return scene.decide(Reason.STARTING, ReplicaState.STARTING, message)


def _give_up(
    scene: Scene, attempt: Attempt, job: Job, reason: Reason, message: str, state: ReplicaState
) -> Outlook:
    """Cancels the job of a replica that fails; `state` is what it is shown as while nothing may be given up."""
    if scene.deployment.paused:
        return scene.decide(Reason.PAUSED, state, f"{message}; left as it is while the deployment is paused")
    return cancel(scene, attempt, job, reason, message)


def _silent_since(scene: Scene, attempt: Attempt) -> datetime | None:
    """Since when the agent is silent, if that is too long. Silence counts only while somebody could have heard it."""
    if attempt.reported_at is None or scene.heard is None:
        return None
    since = max(attempt.reported_at, scene.heard.since)
    if attempt.running_since is not None:  # While the job was halted its agent was, too.
        since = max(since, attempt.running_since)
    allowed = timedelta(seconds=scene.deployment.spec.probes.report_timeout_s)
    return since if scene.heard.until - since > allowed else None
