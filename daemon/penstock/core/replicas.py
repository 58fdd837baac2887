"""What to do about one replica: its attempt's row, its job in Slurm's listing and its agent's reports, put together.

One function for each situation (`submitting`, `waiting`, `running`, `leaving`, `endings`), chosen in `plan_replica`,
the only place that branches on the situation. Called only when Slurm answered in full: a listing that failed never
gets here (rule 3). What the deployment wants (how many replicas, which ones go) was settled before and comes in as
`replica.leaving`.

While a deployment is paused nothing is submitted and nothing is given up: a replica that is late or silent is left as
it is, and its sentence says so. A replica that was leaving before, or is drained by hand, goes on leaving.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from penstock.core.altered import Altered
from penstock.core.decisions import EFFECTS, Reason, RecordJob, RecordMissing
from penstock.core.endings import end_attempt, ended
from penstock.core.jobs import Job, JobState
from penstock.core.leaving import leave
from penstock.core.model import Attempt, Phase, ReplicaState
from penstock.core.running import staying
from penstock.core.scene import Outlook, Scene
from penstock.core.sentences import clock, job_end
from penstock.core.slurm_words import ENDING_STATES, HALTED_STATES
from penstock.core.submitting import unconfirmed, without_attempt
from penstock.core.waiting import halted, queued

MISSING_FOR_S = 30
"""A job that complete listings lack must be lacking for this long before it counts as gone: slurmctld forgets nothing
for MinJobAge (300 s by default), so a shorter gap is a slurmctld that was just started and has not read its state."""


def jobs_of(attempt: Attempt, jobs_by_token: Mapping[str, tuple[Job, ...]]) -> Job | None:
    """The attempt's job among those that bear its token: the one it is known by, else a live one, else any."""
    candidates = jobs_by_token.get(attempt.token, ())
    if attempt.job_id is not None:
        return next((job for job in candidates if job.job_id == attempt.job_id), None)
    return min(candidates, key=lambda job: (job.ended, job.job_id), default=None)


def plan_replica(scene: Scene) -> Outlook:
    """Decides about one replica; the first situation that fits is the one it is in."""
    attempt = scene.replica.live_attempt
    if attempt is None:
        return without_attempt(scene)
    if attempt.job_id is None:
        return unconfirmed(scene, attempt)
    if scene.job is None:
        return _missing(scene, attempt)
    outlook = _with_job(scene, attempt, scene.job)
    if scene.altered is not None and not scene.job.ended:
        return _untouched(scene, scene.altered, outlook)
    return outlook


def _untouched(scene: Scene, altered: Altered, outlook: Outlook) -> Outlook:
    """The job is the attempt's and does not bear our mark: what is seen of it is written down, and no more."""
    decided = outlook.decision.actions
    actions = tuple(action for action in decided if not isinstance(action, EFFECTS))
    state = outlook.state if actions == decided else scene.replica.state
    left = scene.decide(Reason.JOB_UNMARKED, state, altered.message, *actions)
    return replace(outlook, decision=left.decision, state=left.state, message=left.message)


def _missing(scene: Scene, attempt: Attempt) -> Outlook:
    if scene.past is not None and scene.past.ended and not _speaks(scene, attempt):
        return _ended_in_the_past(scene, attempt, scene.past)
    if scene.id_taken:
        message = f"job {attempt.job_id} is gone from Slurm, and its id is another job's now"
        return end_attempt(scene, attempt, None, Reason.JOB_LOST, message, failed=not scene.replica.leaving)
    since = attempt.missing_since or scene.now
    actions = (RecordMissing(attempt.token, since),) if attempt.missing_since is None else ()
    if _speaks(scene, attempt):
        message = f"Slurm does not list job {attempt.job_id}, but its agent reports; it is left alone"
        return scene.decide(Reason.JOB_MISSING, scene.replica.state, message, *actions)
    believed_at = since + timedelta(seconds=MISSING_FOR_S)
    if scene.now < believed_at:
        message = (
            f"Slurm does not list job {attempt.job_id};"
            f" if that lasts until {clock(believed_at, scene.now)}, it is gone"
        )
        return scene.decide(Reason.JOB_MISSING, scene.replica.state, message, *actions)
    message = f"job {attempt.job_id} is gone from Slurm{_last_word(attempt)}"
    return end_attempt(scene, attempt, None, Reason.JOB_LOST, message, failed=not scene.replica.leaving)


def _ended_in_the_past(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    """Slurm has forgotten the job, and accounting has not."""
    how = job_end(job, attempt.exit_code if attempt.exit_code is not None else job.exit_code)
    message = f"{how}, as accounting says{_last_word(attempt)}"
    return end_attempt(scene, attempt, job, Reason.JOB_ENDED, message, failed=not scene.replica.leaving)


def _last_word(attempt: Attempt) -> str:
    said = attempt.phase in (Phase.FAILED, Phase.ENDED) and attempt.phase_message
    return f": {attempt.phase_message}" if said else ""


def _speaks(scene: Scene, attempt: Attempt) -> bool:
    """Whether the agent was heard so lately that its job must be there, whatever the listing says."""
    if attempt.reported_at is None or attempt.phase in (Phase.FAILED, Phase.ENDED):
        return False
    return scene.lately(attempt.reported_at, MISSING_FOR_S)


def _with_job(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    running_since, halted_since = _running_since(scene, attempt, job), _halted_since(scene, attempt, job)
    this_run = replace(_of_this_run(attempt, job), running_since=running_since, halted_since=halted_since)
    outlook = _by_job_state(scene, this_run, job)
    decision = outlook.decision
    altered = _alterations(attempt.job, job)
    if altered and not job.ended and not decision.actions:
        message = f"job {job.job_id} was altered in Slurm: {altered}; it counts as it is now"
        decision = replace(decision, reason=Reason.JOB_ALTERED, message=message)
    if attempt.missing_since is not None:
        decision = replace(decision, actions=(RecordMissing(attempt.token, None), *decision.actions))
    said = (attempt.job, attempt.running_since, attempt.halted_since)
    # EndAttempt records an ended job itself.
    if said != (job, running_since, halted_since) and not job.ended:
        record = RecordJob(attempt.token, job, running_since, halted_since)
        decision = replace(decision, actions=(record, *decision.actions))
    requeued = attempt.job is not None and attempt.job.restarts != job.restarts
    return replace(outlook, decision=decision, new_run=this_run if requeued else None)


def _alterations(before: Job | None, job: Job) -> str:
    """What is another than when the job was last recorded, of what a listing shows. It is said once."""
    if before is None:
        return ""
    found = []
    limits = before.time_limit_s, job.time_limit_s
    if limits[0] is not None and limits[1] is not None and limits[0] != limits[1]:
        found.append(f"its time limit is {limits[1] // 60} min instead of {limits[0] // 60}")
    # Of several partitions Slurm keeps the one in which it starts the job.
    if (
        before.partition
        and job.partition
        and not {*job.partition.split(",")} <= {*before.partition.split(",")}
    ):
        found.append(f"its partition is {job.partition} instead of {before.partition}")
    return ", ".join(found)


def _running_since(scene: Scene, attempt: Attempt, job: Job) -> datetime | None:
    """Since when this run has been seen to run, by our clock: Slurm's may be an hour off, and while a job was halted
    neither its engine nor its agent could do anything."""
    if job.waiting or job.state in HALTED_STATES or job.state is JobState.CONFIGURING:
        return None
    same_run = attempt.job is not None and attempt.job.restarts == job.restarts
    if job.state is not JobState.RUNNING:
        return attempt.running_since if same_run else None
    return attempt.running_since if same_run and attempt.running_since is not None else scene.now


def _halted_since(scene: Scene, attempt: Attempt, job: Job) -> datetime | None:
    """Since when this run has been seen halted, by our clock."""
    if job.state not in HALTED_STATES:
        return None
    same_run = attempt.job is not None and attempt.job.restarts == job.restarts
    return attempt.halted_since if same_run and attempt.halted_since is not None else scene.now


def _of_this_run(attempt: Attempt, job: Job) -> Attempt:
    """The attempt without what its agent said in an earlier run of the job: Slurm has requeued it since."""
    if attempt.restart_count is None or job.restarts <= attempt.restart_count:
        return attempt
    return replace(
        attempt,
        phase=Phase.NONE,
        phase_message="",
        endpoint="",
        reported_at=None,
        ready_at=None,
        exit_code=None,
    )


def _by_job_state(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    if job.state is JobState.UNKNOWN:
        message = f"Slurm says job {job.job_id} is {job.state_text!r}, which this release does not know"
        return scene.decide(Reason.JOB_STATE_UNKNOWN, scene.replica.state, message)
    if job.ended:
        return ended(scene, attempt, job)
    if job.state in ENDING_STATES:
        return scene.decide(Reason.STOPPING, ReplicaState.STOPPING, f"job {job.job_id} is ending")
    if scene.replica.leaving or attempt.cancelled_at is not None:
        return leave(scene, attempt, job)
    if job.waiting:
        return queued(scene, attempt, job)
    if job.state in HALTED_STATES:
        return halted(scene, attempt, job)
    if (
        job.state is JobState.CONFIGURING
    ):  # Whatever its agent said, that was before: its nodes are being booted.
        message = f"job {job.job_id} has its nodes, and Slurm makes them ready"
        return scene.decide(Reason.STARTING, ReplicaState.STARTING, message)
    return staying(scene, attempt, job)
