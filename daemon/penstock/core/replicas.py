"""What to do about one replica: its attempt's row, its job in Slurm's listing and its agent's reports, put together.

One function for each situation, chosen in `plan_replica`, the only place that branches on the situation. Called only
when Slurm answered in full: a listing that failed never gets here (rule 3). What the deployment wants (how many
replicas, which ones go) was settled before and comes in as `replica.leaving`.

While a deployment is paused nothing is submitted and nothing is given up: a replica that is late or silent is left as
it is, and its sentence says so. A replica that was leaving before, or is drained by hand, goes on leaving.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from penstock.core import adapters, backoff, handover, maintenance
from penstock.core.altered import Altered
from penstock.core.budget import HeldBack
from penstock.core.decisions import (
    EFFECTS,
    Action,
    Adopt,
    BeginHandover,
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
    Withdraw,
)
from penstock.core.estimates import Estimates
from penstock.core.jobs import Job, JobState
from penstock.core.model import Attempt, Deployment, Phase, Replica, ReplicaState, job_name
from penstock.core.placements import named, placed
from penstock.core.sentences import clock, job_end, queue_wait, why_blocked
from penstock.core.slurm_words import (
    ENDING_STATES,
    HALTED_STATES,
    STATES,
    Blame,
    Wait,
    waits_for,
)
from penstock.core.spec import OutsideChanges, Spec
from penstock.core.suspects import NAMED, Suspect, told
from penstock.core.walltime import NO_BOUNDS, Bounds, job_number, unbounded_s, with_own_drain

DOUBT_FACTOR = 3
"""Doubt about a submission lasts this many of Slurm's message time-outs: a reply may be late by one, and the accepted
job must have had the time to appear in a listing that was itself begun in time. And it ends no sooner than one after
Slurm answers again: while slurmctld hangs requests wait at its door, and it serves them once it is free."""

MISSING_FOR_S = 30
"""A job that complete listings lack must be lacking for this long before it counts as gone: slurmctld forgets nothing
for MinJobAge (300 s by default), so a shorter gap is a slurmctld that was just started and has not read its state."""

DRAIN_GRACE_S = 30
"""On top of the drain time-out: the engine needs up to 10 s to leave after its last stream, and SIGTERM takes a while
to arrive."""

PACK_WAIT_S = 15
"""How long a job waits for room on nodes that it was told to run on beside others: with room it starts in seconds."""
REPEAT_AFTER_S = 60
"""A cancellation that had no effect is repeated after this time: Slurm's KillWait (30 s by default) and once more."""

PACE_S = 60
"""After an end that is nobody's failure the next attempt follows at once, but not sooner than this after the last one
was written down: whoever cancels our jobs in a loop, or a partition that preempts each at once, makes no storm."""

SUSPENDED_MAX_S = 300
"""A job that is halted for longer is replaced. Time slices (SchedulerTimeSlice, 30 s by default) are over sooner, and a
job that was preempted by suspension may stand still for days; nobody says which of them it is."""


NEVER_WITHDRAWN = (Wait.ITS_TURN, Wait.HELD, Wait.HELD_BY_SLURM)
"""Jobs that wait for this would wait so at any placement."""

USER_HOLD = "JobHeldUser"
_LEFT = "it stays so until somebody changes that (spec.outside_changes)"


@dataclass(frozen=True, slots=True)
class Outlook:
    """What was found out about one replica, and what follows."""

    decision: Decision
    state: ReplicaState
    message: str
    handed_over: bool = False
    """A successor is to take over from it."""
    new_run: Attempt | None = None
    """Its attempt without what is stored of an earlier run, where this look is the first that saw the job requeued."""
    ends_at: datetime | None = None
    """Of one handed over: when its job ends; None: nothing is known to end it."""


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
    past: Job | None = None
    """What accounting says of the attempt's job, where it has vanished and accounting was asked."""
    held_back: HeldBack | None = None
    """The deployment's budget of failures does not allow this replica another attempt now."""
    avoiding: tuple[Suspect, ...] = ()
    """Nodes that a submission stays away from."""
    crowded: tuple[str, ...] = ()
    """Further ones that run replicas of the deployment already."""
    company: tuple[str, ...] = ()
    """Nodes that a submission asks for, because they run replicas of the deployment."""
    id_taken: bool = False
    """The job's id is another attempt's too. Slurm gives ids again after it has lost its state."""
    estimates: Estimates | None = None
    """What a successor would take; None: nothing is handed over now."""
    threats: tuple[handover.Threat, ...] = ()
    """What will take the job's nodes from it, besides its time limit."""
    bounds: Bounds = NO_BOUNDS
    """What the time limit of a submission must keep."""
    altered: Altered | None = None
    """`job` does not bear our mark any more."""
    answers_since: datetime | None = None
    """As in `Listing`."""

    @property
    def spec(self) -> Spec:
        """The deployment's, with the replica's own drain timeout."""
        return with_own_drain(self.deployment.spec, self.replica)

    def decide(self, reason: Reason, state: ReplicaState, message: str, *actions: Action) -> Outlook:
        """The outlook whose decision and replica say the same sentence."""
        decision = Decision(self.deployment.name, self.replica.name, reason, message, actions)
        return Outlook(decision, state, message)


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
        return _without_attempt(scene)
    if attempt.job_id is None:
        return _unconfirmed(scene, attempt)
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


def _without_attempt(scene: Scene) -> Outlook:
    replica, last, now = scene.replica, scene.replica.attempt, scene.now
    if replica.leaving:
        remove = RemoveReplica(replica.uid)
        return scene.decide(Reason.REMOVE, ReplicaState.REMOVED, "nothing of it runs", remove)
    if scene.deployment.paused:
        message = "nothing is submitted while the deployment is paused"
        return scene.decide(Reason.PAUSED, ReplicaState.WAITING, message)
    if last is not None and _stays_cancelled(scene, last):
        return scene.decide(Reason.CANCELLED_OUTSIDE, ReplicaState.WAITING, f"{last.end_message}; {_LEFT}")
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
    beside = () if last is not None and last.packed else scene.company
    message += told(scene.avoiding, now) + _elsewhere(scene) + _beside(beside) + scene.bounds.told
    submit = Submit(replica.uid, _names(scene), scene.bounds, replica.placement, beside)
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


def _unconfirmed(scene: Scene, attempt: Attempt) -> Outlook:
    job = scene.job
    # Slurm keeps some submissions that it refused for a while, as failed jobs; a live one outweighs its refusal.
    if attempt.refusal and (job is None or job.ended):
        message = f"Slurm refused attempt {attempt.number}: {attempt.refusal}"
        return _end(
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
        return _end(scene, attempt, None, Reason.JOB_LOST, message, failed=False)
    how = "it is submitted again under the same token" if asked else "it is submitted now"
    message = f"Slurm does not have attempt {attempt.number}; {how}"
    # One that was to run anywhere stays so: an earlier one found no room.
    beside = scene.company if attempt.packed else ()
    message += told(scene.avoiding, scene.now) + _elsewhere(scene) + _beside(beside) + scene.bounds.told
    resubmit = Resubmit(scene.replica.uid, attempt.token, _names(scene), scene.bounds, beside)
    return scene.decide(Reason.RESUBMIT, ReplicaState.SUBMITTING, message, resubmit)


def _doubtful_until(scene: Scene, attempt: Attempt) -> datetime:
    """Until when Slurm may still come to have it."""
    timeout = timedelta(seconds=scene.message_timeout_s)
    until = (attempt.submitted_at or attempt.intended_at) + DOUBT_FACTOR * timeout
    return until if scene.answers_since is None else max(until, scene.answers_since + timeout)


def _missing(scene: Scene, attempt: Attempt) -> Outlook:
    if scene.past is not None and scene.past.ended and not _speaks(scene, attempt):
        return _ended_in_the_past(scene, attempt, scene.past)
    if scene.id_taken:
        message = f"job {attempt.job_id} is gone from Slurm, and its id is another job's now"
        return _end(scene, attempt, None, Reason.JOB_LOST, message, failed=not scene.replica.leaving)
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
    return _end(scene, attempt, None, Reason.JOB_LOST, message, failed=not scene.replica.leaving)


def _ended_in_the_past(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    """Slurm has forgotten the job, and accounting has not."""
    how = job_end(job, attempt.exit_code if attempt.exit_code is not None else job.exit_code)
    message = f"{how}, as accounting says{_last_word(attempt)}"
    return _end(scene, attempt, job, Reason.JOB_ENDED, message, failed=not scene.replica.leaving)


def _last_word(attempt: Attempt) -> str:
    said = attempt.phase in (Phase.FAILED, Phase.ENDED) and attempt.phase_message
    return f": {attempt.phase_message}" if said else ""


def _speaks(scene: Scene, attempt: Attempt) -> bool:
    """Whether the agent was heard so lately that its job must be there, whatever the listing says."""
    if attempt.reported_at is None or attempt.phase in (Phase.FAILED, Phase.ENDED):
        return False
    return scene.now < attempt.reported_at + timedelta(seconds=MISSING_FOR_S)


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
    if (
        said != (job, running_since, halted_since) and not job.ended
    ):  # EndAttempt records an ended job itself.
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
        return _ended(scene, attempt, job)
    if job.state in ENDING_STATES:
        return scene.decide(Reason.STOPPING, ReplicaState.STOPPING, f"job {job.job_id} is ending")
    if scene.replica.leaving or attempt.cancelled_at is not None:
        return _leaving(scene, attempt, job)
    if job.waiting:
        return _queued(scene, attempt, job)
    if job.state in HALTED_STATES:
        return _halted(scene, attempt, job)
    if (
        job.state is JobState.CONFIGURING
    ):  # Whatever its agent said, that was before: its nodes are being booted.
        message = f"job {job.job_id} has its nodes, and Slurm makes them ready"
        return scene.decide(Reason.STARTING, ReplicaState.STARTING, message)
    return _staying(scene, attempt, job)


def _queued(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    """The job waits for nodes, or for somebody."""
    wait = waits_for(job.state, job.reason)
    if wait in (Wait.HELD, Wait.HELD_BY_SLURM):
        return _held(scene, attempt, job, wait)
    if wait not in NEVER_WITHDRAWN and not scene.deployment.paused and _patience_is_over(scene, attempt):
        return _given_up(scene, attempt, job)
    if wait not in NEVER_WITHDRAWN and not scene.deployment.paused and _found_no_company(scene, attempt):
        message = f"job {job.job_id} found no room beside the deployment's replicas; one that may run anywhere follows"
        return scene.decide(
            Reason.PACK_GIVEN_UP, ReplicaState.QUEUED, message, _withdraw(scene, attempt, job)
        )
    if wait is Wait.SOMEBODY:
        return scene.decide(Reason.QUEUE_BLOCKED, ReplicaState.QUEUED, why_blocked(job))
    if _would_wait_out_maintenance(scene, attempt, job):
        asked = f"{job.time_limit_s // 60} min" if job.time_limit_s is not None else "unlimited time"
        message = f"job {job.job_id} would wait out a maintenance, for it asks for {asked}"
        message += "; one that ends before takes its place"
        return _cancel(scene, attempt, job, Reason.MAINTENANCE_AHEAD, message)
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


def _patience_is_over(scene: Scene, attempt: Attempt) -> bool:
    """Whether the job has waited for as long as is waited at its placement, and there is another one.

    Counted from when it was first seen to wait in this run, by our clock. What runs, or ran, is not waiting: whoever
    registered has had nodes.
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


def _found_no_company(scene: Scene, attempt: Attempt) -> bool:
    """Whether the job has waited for long enough for nodes that run other replicas."""
    since = scene.replica.since
    return (
        attempt.packed
        and scene.replica.state is ReplicaState.QUEUED
        and attempt.phase is Phase.NONE
        and scene.now >= since + timedelta(seconds=PACK_WAIT_S)
    )


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
    return not attempt.packed or _patience_is_over(replace(scene, now=attempt.withdrawn_at), attempt)


def _held(scene: Scene, attempt: Attempt, job: Job, wait: Wait) -> Outlook:
    """What an administrator holds is his to release: submitting another one would only evade him."""
    message = f"job {job.job_id} is held in Slurm ({job.reason or job.state})"
    admin = wait is Wait.HELD and job.reason != USER_HOLD
    if admin or _respects(scene) or scene.deployment.paused:
        message += ", until it is released" if admin else f"; {_LEFT}" * _respects(scene)
        return scene.decide(Reason.HELD, ReplicaState.QUEUED, message)
    return _cancel(scene, attempt, job, Reason.HELD, f"{message} and is replaced")


def _halted(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    """Slurm halts the job: it serves nobody, and routing leaves it."""
    message = f"job {job.job_id} is suspended in Slurm"
    since = attempt.halted_since or scene.now
    is_over = scene.now >= since + timedelta(seconds=SUSPENDED_MAX_S)
    if is_over and not (_respects(scene) or scene.deployment.paused):
        message += f" since {clock(since, scene.now)} and is replaced"
        return _cancel(scene, attempt, job, Reason.SUSPENDED_TOO_LONG, message)
    return scene.decide(Reason.SUSPENDED, ReplicaState.QUEUED, message)


def _respects(scene: Scene) -> bool:
    return scene.deployment.spec.outside_changes is OutsideChanges.RESPECT


def _stays_cancelled(scene: Scene, last: Attempt) -> bool:
    withdrawn = scene.replica.placement > last.placement or last.packed
    return _respects(scene) and _cancelled_by_somebody(last, last.job) and not withdrawn


def _cancelled_by_somebody(attempt: Attempt, job: Job | None) -> bool:
    return job is not None and job.state is JobState.CANCELLED and attempt.cancelled_at is None


def _ended(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    given_up = _was_given_up(scene, attempt, job)
    next_placement = _goes_on(scene, attempt, job)
    if next_placement:
        where = named(scene.deployment.spec, scene.replica, attempt.placement)
        message = f"job {job.job_id} was withdrawn from {where}"
    elif given_up:
        message = f"job {job.job_id} was withdrawn: no room beside the deployment's replicas"
    elif _cancelled_by_somebody(attempt, job) and not scene.replica.leaving:
        message = f"somebody cancelled job {job.job_id}"
    else:
        message = job_end(job, attempt.exit_code if attempt.exit_code is not None else job.exit_code)
    if attempt.phase is Phase.FAILED and attempt.phase_message:
        message += f": {attempt.phase_message}"
    reason = _ENDS.get(_blame(attempt, job), Reason.JOB_ENDED)
    if job.state is JobState.PREEMPTED:
        reason = Reason.PREEMPTED
    if given_up:
        reason = Reason.PLACEMENT_GIVEN_UP if next_placement else Reason.PACK_GIVEN_UP
    return _end(scene, attempt, job, reason, message, failed=not scene.replica.leaving)


_ENDS = {Blame.NODE: Reason.NODE_FAILED, Blame.SOMEBODY: Reason.CANCELLED_OUTSIDE}


def _blame(attempt: Attempt, job: Job | None) -> Blame:
    """Whom the end of an attempt is counted against."""
    if job is None:
        return Blame.REVISION
    if job.state is JobState.CANCELLED and attempt.cancelled_at is not None:
        # It was ours; one that did not run (held, suspended) had not failed.
        return Blame.NOBODY if attempt.running_since is None else Blame.REVISION
    if job.state in (JobState.TIMEOUT, JobState.COMPLETED) and attempt.ready_at is not None:
        return Blame.NOBODY
    return STATES[job.state].blame or Blame.REVISION


def _end(
    scene: Scene, attempt: Attempt, job: Job | None, reason: Reason, message: str, *, failed: bool
) -> Outlook:
    replica, policy = scene.replica, scene.deployment.spec.restart
    failures, next_attempt_at, then, blamed = replica.failures, None, "", False
    blame, given_up = _blame(attempt, job), _was_given_up(scene, attempt, job)
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
        if _respects(scene) and _cancelled_by_somebody(attempt, job) and not given_up:
            then = f"; {_LEFT}"
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


def _cancel(scene: Scene, attempt: Attempt, job: Job, reason: Reason, message: str) -> Outlook:
    told_at = attempt.cancelled_at
    if told_at is not None and scene.now < told_at + timedelta(seconds=REPEAT_AFTER_S):
        message = f"job {job.job_id} was cancelled at {clock(told_at, scene.now)} and has not ended yet"
        return scene.decide(Reason.STOPPING, ReplicaState.STOPPING, message)
    cancel = Cancel(attempt.token, job.job_id, job_name(scene.deployment.name, attempt.token))
    return scene.decide(reason, ReplicaState.STOPPING, message, cancel)


def _leaving(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    """The replica is to go, or its job was told to end before."""
    if attempt.cancelled_at is not None:
        message = f"job {job.job_id} is cancelled again: it has not ended"
        return _cancel(scene, attempt, job, Reason.CANCEL, message)
    if scene.deployment.force_delete and scene.deployment.deleted_at is not None:
        message = f"job {job.job_id} is cancelled at once, as the deletion asks"
        return _cancel(scene, attempt, job, Reason.CANCEL, message)
    if job.waiting or job.state is JobState.CONFIGURING:
        return _cancel(scene, attempt, job, Reason.CANCEL, f"job {job.job_id} is cancelled before it runs")
    if attempt.phase in (Phase.FAILED, Phase.ENDED):
        return _after_agent(scene, attempt, job)
    allowed = timedelta(seconds=scene.spec.drain_timeout_s + DRAIN_GRACE_S)
    # A signal that never gets through must not keep the replica for ever: then the intent's time counts.
    began_at = attempt.signalled_at or attempt.drain_at
    if began_at is not None and scene.now >= began_at + allowed:
        message = f"job {job.job_id} was told to drain at {clock(began_at, scene.now)} and is cancelled"
        return _cancel(scene, attempt, job, Reason.DRAIN_TIMEOUT, message)
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


def _staying(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    """The job runs and is to go on."""
    if attempt.phase in (Phase.FAILED, Phase.ENDED):
        return _after_agent(scene, attempt, job)
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


def _after_agent(scene: Scene, attempt: Attempt, job: Job) -> Outlook:
    """The agent has said its last word, and its job has not ended."""
    said = attempt.phase_message or "it ends"
    if attempt.reported_at is None or scene.now < attempt.reported_at + timedelta(seconds=REPEAT_AFTER_S):
        return scene.decide(Reason.STOPPING, ReplicaState.STOPPING, f"job {job.job_id} is ending: {said}")
    message = f"job {job.job_id} lives on after its agent said: {said}"
    return _cancel(scene, attempt, job, Reason.CANCEL, message)


def _give_up(
    scene: Scene, attempt: Attempt, job: Job, reason: Reason, message: str, state: ReplicaState
) -> Outlook:
    """Cancels the job of a replica that fails; `state` is what it is shown as while nothing may be given up."""
    if scene.deployment.paused:
        return scene.decide(Reason.PAUSED, state, f"{message}; left as it is while the deployment is paused")
    return _cancel(scene, attempt, job, reason, message)


def _silent_since(scene: Scene, attempt: Attempt) -> datetime | None:
    """Since when the agent is silent, if that is too long. Silence counts only while somebody could have heard it."""
    if attempt.reported_at is None or scene.reports_open_since is None:
        return None
    since = max(attempt.reported_at, scene.reports_open_since)
    if attempt.running_since is not None:  # While the job was halted its agent was, too.
        since = max(since, attempt.running_since)
    allowed = timedelta(seconds=scene.deployment.spec.probes.report_timeout_s)
    return since if scene.now - since > allowed else None
