"""A replica whose attempt is not in Slurm: it has none, or nobody knows yet whether Slurm took it.

The rule guarded here is the first: on any doubt the attempt's token is looked for, for longer than Slurm's message
time-out, before the attempt is submitted again; and what was submitted keeps its token.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from penstock.core.budget import HeldBack
from penstock.core.decisions import Adopt, Reason, RemoveReplica, Resubmit, Submit
from penstock.core.endings import end_attempt, stays_cancelled
from penstock.core.model import Attempt, ReplicaState
from penstock.core.placements import described, named
from penstock.core.scene import LEFT_CANCELLED, Outlook, Scene
from penstock.core.sentences import clock
from penstock.core.suspects import NAMED, told

DOUBT_FACTOR = 3
"""Doubt about a submission lasts this many of Slurm's message time-outs: a reply may be late by one, and the accepted
job must have had the time to appear in a listing that was itself begun in time. And it ends no sooner than one after
Slurm answers again: while slurmctld hangs requests wait at its door, and it serves them once it is free."""


def without_attempt(scene: Scene) -> Outlook:
    """No attempt is live: it goes, waits, or is submitted."""
    replica, last, now = scene.replica, scene.replica.attempt, scene.now
    if replica.leaving:
        remove = RemoveReplica(replica.uid)
        return scene.decide(Reason.REMOVE, ReplicaState.REMOVED, "nothing of it runs", remove)
    if scene.deployment.paused:
        message = "nothing is submitted while the deployment is paused"
        return scene.decide(Reason.PAUSED, ReplicaState.WAITING, message)
    if last is not None and stays_cancelled(scene, last):
        return scene.decide(
            Reason.CANCELLED_OUTSIDE, ReplicaState.WAITING, f"{last.end_message}; {LEFT_CANCELLED}"
        )
    if replica.next_attempt_at is not None and now < replica.next_attempt_at:
        if replica.failures == 0:
            how = f"{last.end_message}; " if last is not None and last.end_message else ""
            message = f"{how}next attempt {clock(replica.next_attempt_at, now)}"
            return scene.decide(Reason.PACED, ReplicaState.WAITING, message)
        failed = (
            f"{replica.failures} attempts failed in a row" if replica.failures > 1 else "1 attempt failed"
        )
        how = f": {last.end_message}" if last is not None and last.end_message else ""
        message = f"{failed}{how}; next attempt {clock(replica.next_attempt_at, now)}"
        return scene.decide(Reason.BACK_OFF, ReplicaState.WAITING, message)
    if scene.held_back is not None:
        return _held_back(scene, scene.held_back)
    number = last.number + 1 if last is not None else 1
    where = named(scene.deployment.spec, replica, replica.placement)
    message = f"attempt {number} of revision {replica.revision} is submitted{f' to {where}' * bool(where)}"
    if last is not None and last.packed:  # It found no room where the others are, or are not.
        scene = _anywhere(scene)
    message += _told(scene)
    names, apart = _names(scene), bool(scene.crowded)
    submit = Submit(replica.uid, names, scene.bounds, replica.placement, scene.company, apart)
    return scene.decide(Reason.SUBMIT, ReplicaState.SUBMITTING, message, submit)


def _held_back(scene: Scene, held: HeldBack) -> Outlook:
    replica, last = scene.replica, scene.replica.attempt
    how = f": {last.end_message}" if last is not None and last.end_message else ""
    lost = f"{held.failed} of the {held.allowed} failures an hour that revision {replica.revision} may lose are spent"
    then = (
        f"next attempt {clock(held.until, scene.now)}, or at once when the deployment is restarted, its spec changed,"
        " or its spec.restart.max_failures_per_hour raised"
        if held.until is not None
        else "next attempt when those under way are ready"
    )
    return scene.decide(Reason.BUDGET_SPENT, ReplicaState.WAITING, f"{lost}{how}; {then}")


def unconfirmed(scene: Scene, attempt: Attempt) -> Outlook:
    """An attempt is written down, and no job of it is known."""
    job = scene.job
    # Slurm keeps some submissions that it refused for a while, as failed jobs; a live one outweighs its refusal.
    if attempt.refusal and (job is None or job.ended):
        message = f"Slurm refused attempt {attempt.number}{_to(scene, attempt)}: {attempt.refusal}"
        return end_attempt(
            scene, attempt, None, Reason.SUBMISSION_REFUSED, message, failed=not scene.replica.leaving
        )
    if job is not None and scene.id_taken:
        message = (
            f"job {job.job_id} bears attempt {attempt.number}'s token; its id is still another attempt's"
        )
        return scene.decide(Reason.SUBMISSION_DOUBTFUL, ReplicaState.SUBMITTING, message)
    if job is not None:
        message = f"job {job.job_id} bears attempt {attempt.number}'s token and is taken over"
        return scene.decide(Reason.ADOPT, ReplicaState.SUBMITTING, message, Adopt(attempt.token, job))
    doubtful_until = _doubtful_until(scene, attempt)
    # A database that was restored from a backup may have lost the mark: so what is not marked waits as long.
    asked = attempt.submitted_at is not None
    if scene.now < doubtful_until and not asked:
        when = clock(doubtful_until, scene.now)
        message = f"Slurm was not asked for attempt {attempt.number}; it is asked at {when}"
        return scene.decide(Reason.SUBMISSION_PUT_OFF, ReplicaState.SUBMITTING, message)
    if scene.now < doubtful_until:
        message = (
            f"not known whether Slurm took attempt {attempt.number};"
            f" if it is not seen by {clock(doubtful_until, scene.now)}, it did not"
        )
        return scene.decide(Reason.SUBMISSION_DOUBTFUL, ReplicaState.SUBMITTING, message)
    if scene.replica.leaving or scene.deployment.paused:
        message = f"attempt {attempt.number} never reached Slurm"
        return end_attempt(scene, attempt, None, Reason.JOB_LOST, message, failed=False)
    how = "it is submitted again under the same token" if asked else "it is submitted now"
    message = f"Slurm does not have attempt {attempt.number}; {how}"
    # One that was to run anywhere stays so: an earlier one found no room.
    if not attempt.packed:
        scene = _anywhere(scene)
    message += _told(scene)
    names, apart = _names(scene), bool(scene.crowded)
    resubmit = Resubmit(scene.replica.uid, attempt.token, names, scene.bounds, scene.company, apart)
    return scene.decide(Reason.RESUBMIT, ReplicaState.SUBMITTING, message, resubmit)


def _to(scene: Scene, attempt: Attempt) -> str:
    """Where it was to run: Slurm's refusals name neither a partition nor a constraint. The spec of a revision that is
    not the current one is not known here."""
    if scene.replica.revision != scene.deployment.revision:
        return ""
    where = described(scene.deployment.spec, scene.replica, attempt.placement)
    return f" to {where}" * bool(where)


def _doubtful_until(scene: Scene, attempt: Attempt) -> datetime:
    """Until when Slurm may still come to have it."""
    timeout = timedelta(seconds=scene.message_timeout_s)
    until = (attempt.submitted_at or attempt.intended_at) + DOUBT_FACTOR * timeout
    return until if scene.answers_since is None else max(until, scene.answers_since + timeout)


def _anywhere(scene: Scene) -> Scene:
    """As if where the deployment's other replicas run did not matter."""
    return replace(scene, company=(), crowded=())


def _told(scene: Scene) -> str:
    """Where a submission may run and where not, and for how long, as the end of a sentence."""
    return told(scene.avoiding, scene.now) + _elsewhere(scene) + _beside(scene.company) + scene.bounds.told


def _names(scene: Scene) -> tuple[str, ...]:
    return (*(suspect.node for suspect in scene.avoiding), *scene.crowded)


def _elsewhere(scene: Scene) -> str:
    """Why a submission keeps clear of further nodes."""
    if not scene.crowded:
        return ""
    more = f" and {len(scene.crowded) - NAMED} more" if len(scene.crowded) > NAMED else ""
    return f"; not on {', '.join(scene.crowded[:NAMED])}{more}, with replicas of it already"


def _beside(nodes: tuple[str, ...]) -> str:
    more = f" and {len(nodes) - NAMED} more" if len(nodes) > NAMED else ""
    return f"; on {', '.join(nodes[:NAMED])}{more}, beside replicas of it" if nodes else ""
