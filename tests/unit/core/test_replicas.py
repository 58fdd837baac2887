"""Each situation that a replica can be in, one row each: what is decided, shown and said."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from penstock.core.budget import HeldBack
from penstock.core.decisions import (
    Action,
    Adopt,
    Cancel,
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
from penstock.core.model import Deployment, Heard, Phase, Replica, ReplicaState
from penstock.core.replicas import jobs_of, plan_replica
from penstock.core.scene import Scene
from penstock.core.spec import OutsideChanges
from penstock.core.states import check_move
from penstock.core.suspects import Suspect
from tests.worlds import NOW, at, attempt, deployment, drawn, job, ready_attempt, replica

S, R, J = ReplicaState, Reason, JobState

NAME = f"penstock-chat-{drawn(1)}"
CANCEL = Cancel(drawn(1), 7, NAME)
DRAIN = Drain("r1", drawn(1), 7, NAME)

CHAT = deployment()
PAUSED = deployment(paused=True)
DELETED = deployment(deleted_at=at(-5))
FORCED = deployment(deleted_at=at(-5), force_delete=True)

PENDING = job(J.PENDING, reason="Resources", started_at=at(180))
RUNNING = job()
FAILED = job(J.FAILED, exit_code=1, reason="NonZeroExitCode", ends_at=at(-3))


def known(listed: Job, state: ReplicaState = S.STARTING, **changes: object) -> Replica:
    """A replica whose recorded job is as listed, so that only what the row is about is decided."""
    return replica(its=attempt(job=listed, **changes), state=state)


def served(listed: Job = RUNNING, state: ReplicaState = S.READY, **changes: object) -> Replica:
    return replica(its=ready_attempt(job=listed, **changes), state=state)


def leaving(its: Replica) -> Replica:
    return replace(its, leaving=True)


def ended(
    message: str,
    *,
    exit_code: int | None = None,
    of: Job | None = None,
    failures: int = 1,
    next_s: float | None = 10,
    served: bool = False,
) -> EndAttempt:
    next_at = None if next_s is None else at(next_s)
    failed = next_s is not None and not served
    return EndAttempt("r1", drawn(1), exit_code, of, failures, next_at, message, failed)


@dataclass(frozen=True)
class Row:
    name: str
    replica: Replica
    job: Job | None
    reason: Reason
    state: ReplicaState
    says: str
    actions: tuple[Action, ...] = ()
    of: Deployment = CHAT
    heard_s: tuple[float, float] | None = (-3600, 0)
    """Since when, and until when, somebody heard the agents."""
    held_back: HeldBack | None = None
    avoiding: tuple[Suspect, ...] = ()
    past: Job | None = None


KILLED = (
    "job 7 ended as OUT_OF_MEMORY with exit code 1: it used more memory than it was given, as accounting says"
)
FAILED_BEFORE = replica(
    its=attempt(ended_at=at(-70), end_message="job 7 ended as FAILED"),
    failures=5,
    next_attempt_at=at(-1),
    state=S.WAITING,
)

ROWS = [
    # Without an attempt
    Row(
        "new",
        replica(),
        None,
        R.SUBMIT,
        S.SUBMITTING,
        "attempt 1 of revision 1 is submitted",
        (Submit("r1"),),
    ),
    Row(
        "next attempt is due",
        replica(its=attempt(ended_at=at(-10)), failures=1, next_attempt_at=NOW, state=S.WAITING),
        None,
        R.SUBMIT,
        S.SUBMITTING,
        "attempt 2 of revision 1 is submitted",
        (Submit("r1"),),
    ),
    Row(
        "first failure waits",
        replica(
            its=attempt(ended_at=at(-1), end_message="job 7 ended as TIMEOUT (TimeLimit)"),
            failures=1,
            next_attempt_at=at(9),
            state=S.WAITING,
        ),
        None,
        R.BACK_OFF,
        S.WAITING,
        "1 attempt failed: job 7 ended as TIMEOUT (TimeLimit); next attempt 14:00:09",
    ),
    Row(
        "third failure waits",
        replica(its=attempt(ended_at=at(-1)), failures=3, next_attempt_at=at(40), state=S.WAITING),
        None,
        R.BACK_OFF,
        S.WAITING,
        "3 attempts failed in a row; next attempt 14:00:40",
    ),
    Row(
        "the budget is spent",
        FAILED_BEFORE,
        None,
        R.BUDGET_SPENT,
        S.WAITING,
        "10 of the 10 failures an hour that revision 1 may lose are spent: job 7 ended as FAILED; next attempt"
        " 14:10:00, or at once when the deployment is restarted, its spec changed, or its"
        " spec.restart.max_failures_per_hour raised",
        held_back=HeldBack(10, 10, at(600)),
    ),
    Row(
        "the rest of the budget is under way",
        FAILED_BEFORE,
        None,
        R.BUDGET_SPENT,
        S.WAITING,
        "9 of the 10 failures an hour that revision 1 may lose are spent: job 7 ended as FAILED;"
        " next attempt when those under way are ready",
        held_back=HeldBack(9, 10, None),
    ),
    Row(
        "a node is avoided",
        FAILED_BEFORE,
        None,
        R.SUBMIT,
        S.SUBMITTING,
        "attempt 2 of revision 1 is submitted; not on gpu1:"
        " 3 attempts of chat failed there within an hour; avoided until 14:50:00",
        (Submit("r1", ("gpu1",)),),
        avoiding=(Suspect("gpu1", 3, ("chat",), at(3000)),),
    ),
    Row(
        "paused",
        replica(),
        None,
        R.PAUSED,
        S.WAITING,
        "nothing is submitted while the deployment is paused",
        of=PAUSED,
    ),
    Row(
        "paused after its job ended",
        replica(its=attempt(ended_at=at(-30)), failures=1, next_attempt_at=at(-20), state=S.WAITING),
        None,
        R.PAUSED,
        S.WAITING,
        "nothing is submitted while the deployment is paused",
        of=PAUSED,
    ),
    Row(
        "leaving before it ran",
        leaving(replica()),
        None,
        R.REMOVE,
        S.REMOVED,
        "nothing of it runs",
        (RemoveReplica("r1"),),
    ),
    # A submission whose job is not known
    Row(
        "doubtful",
        replica(its=attempt(job_id=None, submitted_at=at(-5)), state=S.SUBMITTING),
        None,
        R.SUBMISSION_DOUBTFUL,
        S.SUBMITTING,
        "not known whether Slurm took attempt 1; if it is not seen by 14:00:25, it did not",
    ),
    Row(
        "sbatch never called",
        replica(its=attempt(job_id=None, submitted_at=None, intended_at=at(-29)), state=S.SUBMITTING),
        None,
        R.SUBMISSION_PUT_OFF,
        S.SUBMITTING,
        "Slurm was not asked for attempt 1; it is asked at 14:00:01",
    ),
    Row(
        "sbatch never called, and time to",
        replica(its=attempt(job_id=None, submitted_at=None, intended_at=at(-30)), state=S.SUBMITTING),
        None,
        R.RESUBMIT,
        S.SUBMITTING,
        "Slurm does not have attempt 1; it is submitted now",
        (Resubmit("r1", drawn(1)),),
    ),
    Row(
        "certainly absent",
        replica(its=attempt(job_id=None, submitted_at=at(-30)), state=S.SUBMITTING),
        None,
        R.RESUBMIT,
        S.SUBMITTING,
        "Slurm does not have attempt 1; it is submitted again under the same token",
        (Resubmit("r1", drawn(1)),),
    ),
    Row(
        "found",
        replica(its=attempt(job_id=None, submitted_at=at(-5)), state=S.SUBMITTING),
        PENDING,
        R.ADOPT,
        S.SUBMITTING,
        "job 7 bears attempt 1's token and is taken over",
        (Adopt(drawn(1), PENDING),),
    ),
    Row(
        "found after a refusal of the second try",
        replica(its=attempt(job_id=None, refusal="QOSMaxSubmitJobPerUserLimit"), state=S.SUBMITTING),
        PENDING,
        R.ADOPT,
        S.SUBMITTING,
        "job 7 bears attempt 1's token and is taken over",
        (Adopt(drawn(1), PENDING),),
    ),
    Row(
        "refused",
        replica(its=attempt(job_id=None, refusal="Invalid account"), state=S.SUBMITTING),
        None,
        R.SUBMISSION_REFUSED,
        S.WAITING,
        "Slurm refused attempt 1: Invalid account; next attempt 14:00:10",
        (ended("Slurm refused attempt 1: Invalid account"),),
    ),
    Row(
        "refused, and Slurm keeps the failed job",
        replica(
            its=attempt(job_id=None, refusal="Requested node configuration is not available"),
            state=S.SUBMITTING,
        ),
        job(J.FAILED, reason="BadConstraints"),
        R.SUBMISSION_REFUSED,
        S.WAITING,
        "Slurm refused attempt 1: Requested node configuration is not available; next attempt 14:00:10",
        (ended("Slurm refused attempt 1: Requested node configuration is not available"),),
    ),
    Row(
        "doubtful and leaving waits too",
        leaving(replica(its=attempt(job_id=None, submitted_at=at(-5)), state=S.SUBMITTING)),
        None,
        R.SUBMISSION_DOUBTFUL,
        S.SUBMITTING,
        "not known whether Slurm took attempt 1; if it is not seen by 14:00:25, it did not",
    ),
    Row(
        "certainly absent and leaving",
        leaving(replica(its=attempt(job_id=None), state=S.SUBMITTING)),
        None,
        R.REMOVE,
        S.REMOVED,
        "attempt 1 never reached Slurm",
        (ended("attempt 1 never reached Slurm", failures=0, next_s=None), RemoveReplica("r1")),
    ),
    Row(
        "certainly absent and paused",
        replica(its=attempt(job_id=None), state=S.SUBMITTING),
        None,
        R.JOB_LOST,
        S.WAITING,
        "attempt 1 never reached Slurm",
        (ended("attempt 1 never reached Slurm", failures=0, next_s=None),),
        of=PAUSED,
    ),
    # A job that Slurm does not list
    Row(
        "missing from this listing",
        known(RUNNING),
        None,
        R.JOB_MISSING,
        S.STARTING,
        "Slurm does not list job 7; if that lasts until 14:00:30, it is gone",
        (RecordMissing(drawn(1), NOW),),
    ),
    Row(
        "still missing",
        known(RUNNING, missing_since=at(-20)),
        None,
        R.JOB_MISSING,
        S.STARTING,
        "Slurm does not list job 7; if that lasts until 14:00:10, it is gone",
    ),
    Row(
        "missing, but its agent speaks",
        served(missing_since=at(-300)),
        None,
        R.JOB_MISSING,
        S.READY,
        "Slurm does not list job 7, but its agent reports; it is left alone",
    ),
    Row(
        "missing, and its agent said farewell",
        served(missing_since=at(-30), phase=Phase.ENDED, reported_at=at(-1)),
        None,
        R.JOB_LOST,
        S.WAITING,
        "job 7 is gone from Slurm; next attempt 14:00:10",
        (ended("job 7 is gone from Slurm"),),
    ),
    Row(
        "missing, and its agent's report is a little ahead: another host wrote it",
        served(missing_since=at(-300), reported_at=at(2)),
        None,
        R.JOB_MISSING,
        S.READY,
        "Slurm does not list job 7, but its agent reports; it is left alone",
    ),
    Row(
        "gone, and its agent's report is of before the clock went back",
        served(missing_since=at(-31), reported_at=at(3600)),
        None,
        R.JOB_LOST,
        S.WAITING,
        "job 7 is gone from Slurm; next attempt 14:00:10",
        (ended("job 7 is gone from Slurm"),),
    ),
    Row(
        "gone",
        served(missing_since=at(-31), reported_at=at(-30)),
        None,
        R.JOB_LOST,
        S.WAITING,
        "job 7 is gone from Slurm; next attempt 14:00:10",
        (ended("job 7 is gone from Slurm"),),
    ),
    Row(
        "gone, and accounting knows how",
        known(RUNNING, missing_since=at(-5)),
        None,
        R.JOB_ENDED,
        S.WAITING,
        f"{KILLED}; next attempt 14:00:10",
        (
            ended(
                KILLED,
                exit_code=1,
                of=(killed := job(J.OUT_OF_MEMORY, comment="", exit_code=1)),
            ),
        ),
        past=killed,
    ),
    Row(
        "gone, and accounting says that it runs",
        known(RUNNING, missing_since=at(-5)),
        None,
        R.JOB_MISSING,
        S.STARTING,
        "Slurm does not list job 7; if that lasts until 14:00:25, it is gone",
        past=job(comment=""),
    ),
    Row(
        "gone, accounting says that it ended, but its agent speaks",
        served(missing_since=at(-5)),
        None,
        R.JOB_MISSING,
        S.READY,
        "Slurm does not list job 7, but its agent reports; it is left alone",
        past=job(J.NODE_FAIL, comment=""),
    ),
    Row(
        "gone, and its agent had said why",
        known(
            RUNNING,
            missing_since=at(-31),
            phase=Phase.FAILED,
            phase_message="CUDA out of memory",
            exit_code=70,
        ),
        None,
        R.JOB_LOST,
        S.WAITING,
        "job 7 is gone from Slurm: CUDA out of memory; next attempt 14:00:10",
        (ended("job 7 is gone from Slurm: CUDA out of memory", exit_code=70),),
    ),
    Row(
        "gone while leaving",
        leaving(known(RUNNING, S.DRAINING, missing_since=at(-31))),
        None,
        R.REMOVE,
        S.REMOVED,
        "job 7 is gone from Slurm",
        (ended("job 7 is gone from Slurm", failures=0, next_s=None), RemoveReplica("r1")),
    ),
    Row(
        "listed again",
        served(missing_since=at(-20)),
        RUNNING,
        R.READY,
        S.READY,
        "takes requests at gpu1:4000 (job 7)",
        (RecordMissing(drawn(1), None),),
    ),
    # A job that waits
    Row(
        "queued",
        known(PENDING, S.QUEUED),
        PENDING,
        R.QUEUED,
        S.QUEUED,
        "queued in Slurm as job 7, Resources, estimated start 14:03",
    ),
    Row(
        "queued, first seen",
        replica(its=attempt()),
        PENDING,
        R.QUEUED,
        S.QUEUED,
        "queued in Slurm as job 7, Resources, estimated start 14:03",
        (RecordJob(drawn(1), PENDING),),
    ),
    Row(
        "queued, the estimate has passed",
        known(late := job(J.PENDING, reason="Priority", started_at=at(-1)), S.QUEUED),
        late,
        R.QUEUED,
        S.QUEUED,
        "queued in Slurm as job 7, Priority",
    ),
    Row(
        "queued without a reason",
        known(mute := job(J.PENDING), S.QUEUED),
        mute,
        R.QUEUED,
        S.QUEUED,
        "queued in Slurm as job 7, no reason given yet",
    ),
    Row(
        "requeued after it was ready",
        served(again := job(J.PENDING, restarts=1, reason="BeginTime")),
        again,
        R.QUEUED,
        S.QUEUED,
        "queued in Slurm as job 7, requeued 1 time, BeginTime",
    ),
    Row(
        "runs again, and the agent's words are of the run before",
        served(
            second := job(restarts=1, started_at=at(-1)), S.QUEUED, reported_at=at(-400), ready_at=at(-900)
        ),
        second,
        R.STARTING,
        S.STARTING,
        "job 7 runs on gpu1: the agent has not registered yet; given up at 14:09:59",
    ),
    Row(
        "requeued and leaving",
        leaving(known(PENDING, S.DRAINING, signalled_at=at(-20), drain_at=at(-20))),
        PENDING,
        R.CANCEL,
        S.STOPPING,
        "job 7 is cancelled before it runs",
        (CANCEL,),
    ),
    Row(
        "requeued after it was cancelled",
        known(PENDING, S.STOPPING, cancelled_at=at(-60)),
        PENDING,
        R.CANCEL,
        S.STOPPING,
        "job 7 is cancelled again: it has not ended",
        (CANCEL,),
    ),
    Row(
        "suspended",
        served(held := job(J.SUSPENDED), reported_at=at(-900)),
        held,
        R.SUSPENDED,
        S.QUEUED,
        "job 7 is suspended in Slurm",
    ),
    Row(
        "runs on after it was suspended: its silence counts from now",
        replica(its=ready_attempt(job=held, running_since=None, reported_at=at(-900)), state=S.QUEUED),
        RUNNING,
        R.READY,
        S.READY,
        "takes requests at gpu1:4000 (job 7)",
        (RecordJob(drawn(1), RUNNING, NOW),),
    ),
    Row(
        "runs on after it was suspended while it started",
        replica(its=attempt(job=held, running_since=None), state=S.QUEUED),
        slow_start := job(started_at=at(-9000)),
        R.STARTING,
        S.STARTING,
        "job 7 runs on gpu1: the agent has not registered yet; given up at 14:10:00",
        (RecordJob(drawn(1), slow_start, NOW),),
    ),
    Row(
        "Slurm's clock is an hour behind: the start is when it was seen",
        known(behind := job(started_at=at(-3610), submitted_at=at(-3700)), running_since=at(-10)),
        behind,
        R.STARTING,
        S.STARTING,
        "job 7 runs on gpu1: the agent has not registered yet; given up at 14:09:50",
    ),
    Row(
        "Slurm's clock is an hour ahead: the start is when it was seen",
        known(ahead := job(started_at=at(3000), submitted_at=at(2900)), running_since=at(-600)),
        ahead,
        R.STARTUP_TIMEOUT,
        S.STOPPING,
        "job 7 generated no token within 600 s of its start",
        (CANCEL,),
    ),
    Row(
        "a state of a later Slurm",
        served(odd := job(J.UNKNOWN, state_text="HIBERNATING")),
        odd,
        R.JOB_STATE_UNKNOWN,
        S.READY,
        "Slurm says job 7 is 'HIBERNATING', which this release does not know",
    ),
    # A job that runs
    Row(
        "starting",
        known(RUNNING),
        RUNNING,
        R.STARTING,
        S.STARTING,
        "job 7 runs on gpu1: the agent has not registered yet; given up at 14:09:00",
    ),
    Row(
        "the agent has registered",
        known(RUNNING, phase=Phase.REGISTERED, reported_at=at(-1)),
        RUNNING,
        R.STARTING,
        S.STARTING,
        "job 7 runs on gpu1: the engine is being started; given up at 14:09:00",
    ),
    Row(
        "the agent says what it does",
        known(RUNNING, phase=Phase.STARTING, phase_message="loading weights", reported_at=at(-1)),
        RUNNING,
        R.STARTING,
        S.STARTING,
        "job 7 runs on gpu1: loading weights; given up at 14:09:00",
    ),
    Row(
        "its nodes are being made ready anew, whatever its agent said before",
        known(bare := job(J.CONFIGURING, started_at=None, nodes=""), phase=Phase.READY, reported_at=at(-1)),
        bare,
        R.STARTING,
        S.STARTING,
        "job 7 has its nodes, and Slurm makes them ready",
    ),
    Row(
        "startup time-out",
        known(slow := job(started_at=at(-600))),
        slow,
        R.STARTUP_TIMEOUT,
        S.STOPPING,
        "job 7 generated no token within 600 s of its start",
        (CANCEL,),
    ),
    Row(
        "startup time-out while paused",
        known(slow),
        slow,
        R.PAUSED,
        S.STARTING,
        "job 7 generated no token within 600 s of its start; left as it is while the deployment is paused",
        of=PAUSED,
    ),
    Row("ready", served(), RUNNING, R.READY, S.READY, "takes requests at gpu1:4000 (job 7)"),
    Row(
        "ready while paused",
        served(),
        RUNNING,
        R.READY,
        S.READY,
        "takes requests at gpu1:4000 (job 7)",
        of=PAUSED,
    ),
    Row(
        "silent",
        served(reported_at=at(-61), running_since=at(-90)),
        RUNNING,
        R.REPORT_TIMEOUT,
        S.STOPPING,
        "the agent of job 7 has been silent since 13:58:59, longer than 60 s",
        (CANCEL,),
    ),
    Row(
        "silent while paused",
        served(reported_at=at(-61), running_since=at(-90)),
        RUNNING,
        R.PAUSED,
        S.READY,
        "the agent of job 7 has been silent since 13:58:59, longer than 60 s;"
        " left as it is while the deployment is paused",
        of=PAUSED,
    ),
    Row(
        "silent, but nobody could have heard it",
        served(reported_at=at(-900)),
        RUNNING,
        R.READY,
        S.READY,
        "takes requests at gpu1:4000 (job 7)",
        heard_s=None,
    ),
    Row(
        "silent, but ears were opened only lately",
        served(reported_at=at(-900)),
        RUNNING,
        R.READY,
        S.READY,
        "takes requests at gpu1:4000 (job 7)",
        heard_s=(-60, 0),
    ),
    Row(
        "silent, but who could have heard it has been gone for a while",
        served(reported_at=at(-75)),
        RUNNING,
        R.READY,
        S.READY,
        "takes requests at gpu1:4000 (job 7)",
        heard_s=(-3600, -15),
    ),
    Row(
        "drains by itself",
        served(phase=Phase.DRAINING, phase_message="the time limit is near"),
        RUNNING,
        R.DRAINING,
        S.DRAINING,
        "the time limit is near",
    ),
    Row(
        "the engine failed",
        served(phase=Phase.FAILED, phase_message="the engine exited with 1", reported_at=at(-2)),
        RUNNING,
        R.STOPPING,
        S.STOPPING,
        "job 7 is ending: the engine exited with 1",
    ),
    Row(
        "the engine failed and the job lives on",
        served(phase=Phase.FAILED, phase_message="the engine exited with 1", reported_at=at(-60)),
        RUNNING,
        R.CANCEL,
        S.STOPPING,
        "job 7 lives on after its agent said: the engine exited with 1",
        (CANCEL,),
    ),
    Row(
        "the engine failed before the clock went back, and the job lives on",
        served(phase=Phase.FAILED, phase_message="the engine exited with 1", reported_at=at(3600)),
        RUNNING,
        R.CANCEL,
        S.STOPPING,
        "job 7 lives on after its agent said: the engine exited with 1",
        (CANCEL,),
    ),
    Row(
        "cancelled and not ended yet",
        known(RUNNING, S.STOPPING, cancelled_at=at(-59)),
        RUNNING,
        R.STOPPING,
        S.STOPPING,
        "job 7 was cancelled at 13:59:01 and has not ended yet",
    ),
    Row(
        "cancelled without effect",
        known(RUNNING, S.STOPPING, cancelled_at=at(-60)),
        RUNNING,
        R.CANCEL,
        S.STOPPING,
        "job 7 is cancelled again: it has not ended",
        (CANCEL,),
    ),
    # A job that ends
    Row("completing", served(going := job(J.COMPLETING)), going, R.STOPPING, S.STOPPING, "job 7 is ending"),
    Row("staging out", served(out := job(J.STAGE_OUT)), out, R.STOPPING, S.STOPPING, "job 7 is ending"),
    Row(
        "ended unasked",
        served(),
        FAILED,
        R.JOB_ENDED,
        S.WAITING,
        "job 7 ended as FAILED with exit code 1 (NonZeroExitCode); next attempt 14:00:10",
        (ended("job 7 ended as FAILED with exit code 1 (NonZeroExitCode)", exit_code=1, of=FAILED),),
    ),
    Row(
        "ended unasked while paused",
        served(),
        FAILED,
        R.JOB_ENDED,
        S.WAITING,
        "job 7 ended as FAILED with exit code 1 (NonZeroExitCode)",
        (ended("job 7 ended as FAILED with exit code 1 (NonZeroExitCode)", exit_code=1, of=FAILED),),
        of=PAUSED,
    ),
    Row(
        "ended, and the agent had said why",
        replace(served(phase=Phase.FAILED, phase_message="CUDA out of memory", exit_code=70), failures=2),
        FAILED,
        R.JOB_ENDED,
        S.WAITING,
        "job 7 ended as FAILED with exit code 70 (NonZeroExitCode): CUDA out of memory; next attempt 14:00:40",
        (
            ended(
                "job 7 ended as FAILED with exit code 70 (NonZeroExitCode): CUDA out of memory",
                exit_code=70,
                of=FAILED,
                failures=3,
                next_s=40,
            ),
        ),
    ),
    Row(
        "ended after long service: a new row of failures",
        replace(served(ready_at=at(-603)), failures=5),
        FAILED,
        R.JOB_ENDED,
        S.WAITING,
        "job 7 ended as FAILED with exit code 1 (NonZeroExitCode); next attempt 14:00:10",
        (
            ended(
                "job 7 ended as FAILED with exit code 1 (NonZeroExitCode)",
                exit_code=1,
                of=FAILED,
                served=True,
            ),
        ),
    ),
    Row(
        "ended after long service, by a Slurm whose clock is an hour behind",
        replace(served(ready_at=at(-700), reported_at=at(-4)), failures=5),
        early := job(J.FAILED, exit_code=1, ends_at=at(-3603)),
        R.JOB_ENDED,
        S.WAITING,
        "job 7 ended as FAILED with exit code 1; next attempt 14:00:10",
        (ended("job 7 ended as FAILED with exit code 1", exit_code=1, of=early, served=True),),
    ),
    Row(
        "ended long ago, seen only now: the time after its end is no service",
        replace(served(ready_at=at(-900), reported_at=at(-702)), failures=1),
        old := job(J.FAILED, ends_at=at(-700)),
        R.JOB_ENDED,
        S.WAITING,
        "job 7 ended as FAILED; next attempt 14:00:20",
        (ended("job 7 ended as FAILED", of=old, failures=2, next_s=20),),
    ),
    Row(
        "ended while leaving",
        leaving(served(signalled_at=at(-9), drain_at=at(-9), state=S.DRAINING)),
        done := job(J.COMPLETED, exit_code=0, ends_at=at(-1)),
        R.REMOVE,
        S.REMOVED,
        "job 7 ended as COMPLETED",
        (
            ended("job 7 ended as COMPLETED", exit_code=0, of=done, failures=0, next_s=None),
            RemoveReplica("r1"),
        ),
    ),
    # A replica that is to go
    Row(
        "leaving from the queue",
        leaving(known(PENDING, S.QUEUED)),
        PENDING,
        R.CANCEL,
        S.STOPPING,
        "job 7 is cancelled before it runs",
        (CANCEL,),
    ),
    Row(
        "leaving while its nodes boot",
        leaving(known(bare)),
        bare,
        R.CANCEL,
        S.STOPPING,
        "job 7 is cancelled before it runs",
        (CANCEL,),
    ),
    Row(
        "leaving: drained first",
        leaving(served()),
        RUNNING,
        R.DRAIN,
        S.DRAINING,
        "job 7 is told to drain",
        (DRAIN,),
    ),
    Row(
        "leaving: the signal did not get through",
        leaving(served(drain_at=at(-5), state=S.DRAINING)),
        RUNNING,
        R.DRAIN,
        S.DRAINING,
        "job 7 is told to drain",
        (DRAIN,),
    ),
    Row(
        "leaving: drains",
        leaving(served(drain_at=at(-5), signalled_at=at(-4), state=S.DRAINING)),
        RUNNING,
        R.DRAINING,
        S.DRAINING,
        "job 7 finishes its requests; cancelled at 14:01:26 at the latest",
    ),
    Row(
        "leaving: drains while paused",
        leaving(served(drain_at=at(-5), signalled_at=at(-4), state=S.DRAINING)),
        RUNNING,
        R.DRAINING,
        S.DRAINING,
        "job 7 finishes its requests; cancelled at 14:01:26 at the latest",
        of=PAUSED,
    ),
    Row(
        "leaving: drained for too long",
        leaving(served(drain_at=at(-95), signalled_at=at(-90), state=S.DRAINING)),
        RUNNING,
        R.DRAIN_TIMEOUT,
        S.STOPPING,
        "job 7 was told to drain at 13:58:30 and is cancelled",
        (CANCEL,),
    ),
    Row(
        "leaving: the signal never got through",
        leaving(served(drain_at=at(-90), state=S.DRAINING)),
        RUNNING,
        R.DRAIN_TIMEOUT,
        S.STOPPING,
        "job 7 was told to drain at 13:58:30 and is cancelled",
        (CANCEL,),
    ),
    Row(
        "leaving: the agent has ended, the job not yet",
        leaving(
            served(
                phase=Phase.ENDED,
                phase_message="drained",
                drain_at=at(-9),
                signalled_at=at(-9),
                state=S.DRAINING,
            )
        ),
        RUNNING,
        R.STOPPING,
        S.STOPPING,
        "job 7 is ending: drained",
    ),
    Row(
        "leaving after its engine failed: nothing to drain",
        leaving(served(phase=Phase.FAILED, phase_message="the engine exited with 1", state=S.STOPPING)),
        RUNNING,
        R.STOPPING,
        S.STOPPING,
        "job 7 is ending: the engine exited with 1",
    ),
    Row(
        "leaving after it was cancelled",
        leaving(known(RUNNING, S.STOPPING, cancelled_at=at(-10))),
        RUNNING,
        R.STOPPING,
        S.STOPPING,
        "job 7 was cancelled at 13:59:50 and has not ended yet",
    ),
    Row(
        "leaving: suspended is drained when it goes on, or cut",
        leaving(served(held)),
        held,
        R.DRAIN,
        S.DRAINING,
        "job 7 is told to drain",
        (DRAIN,),
    ),
    Row(
        "deleted: drained",
        leaving(served()),
        RUNNING,
        R.DRAIN,
        S.DRAINING,
        "job 7 is told to drain",
        (DRAIN,),
        of=DELETED,
    ),
    Row(
        "deleted at once",
        leaving(served()),
        RUNNING,
        R.CANCEL,
        S.STOPPING,
        "job 7 is cancelled at once, as the deletion asks",
        (CANCEL,),
        of=FORCED,
    ),
    Row(
        "deleted while paused",
        leaving(served()),
        RUNNING,
        R.DRAIN,
        S.DRAINING,
        "job 7 is told to drain",
        (DRAIN,),
        of=deployment(paused=True, deleted_at=at(-5)),
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_situation(row: Row) -> None:
    heard = None if row.heard_s is None else Heard(at(row.heard_s[0]), at(row.heard_s[1]))
    scene = Scene(
        NOW,
        row.of,
        row.replica,
        row.job,
        10,
        heard,
        held_back=row.held_back,
        avoiding=row.avoiding,
        past=row.past,
    )
    outlook = plan_replica(scene)
    assert outlook.decision.subject == ("chat", "chat-1")
    assert (outlook.decision.reason, outlook.state) == (row.reason, row.state)
    assert outlook.message == row.says
    assert outlook.decision.message == row.says
    assert outlook.decision.actions == row.actions
    check_move("chat-1", row.replica.state, outlook.state)


def test_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_a_changed_job_is_written_down_beside_the_decision() -> None:
    row = replica(its=ready_attempt(job=PENDING, missing_since=at(-9)), state=S.QUEUED)
    outlook = plan_replica(Scene(NOW, CHAT, row, RUNNING, 10, None))
    assert outlook.decision.actions == (RecordJob(drawn(1), RUNNING, NOW), RecordMissing(drawn(1), None))


def test_an_ended_job_is_written_down_once() -> None:
    outlook = plan_replica(Scene(NOW, CHAT, served(), FAILED, 10, None))
    assert not [action for action in outlook.decision.actions if isinstance(action, RecordJob)]


@pytest.mark.parametrize(
    ("job_id", "states", "expected"),
    [
        (None, [], None),
        (None, [(1, J.FAILED), (3, J.PENDING), (2, J.RUNNING)], 2),
        (None, [(1, J.FAILED), (2, J.CANCELLED)], 1),
        (3, [(1, J.RUNNING), (3, J.PENDING)], 3),
        (3, [(1, J.RUNNING)], None),
    ],
)
def test_which_job_is_the_attempts(
    job_id: int | None, states: list[tuple[int, JobState]], expected: int | None
) -> None:
    jobs = tuple(job(state, job_id=number) for number, state in states)
    found = jobs_of(attempt(job_id=job_id), {drawn(1): jobs})
    assert (found.job_id if found else None) == expected


@dataclass(frozen=True)
class End:
    """How an attempt ended that was intended 100 s ago, and what follows: whose failure, and when the next comes."""

    job: Job
    reason: Reason
    failures: int
    failed: bool
    next_s: float
    its: dict[str, object] = field(default_factory=dict)


FRESH: dict[str, object] = {"intended_at": at(-20)}
HAD_BEEN_READY: dict[str, object] = {"ready_at": at(-50), "running_since": at(-60)}

ENDS = [
    End(job(J.PREEMPTED), R.PREEMPTED, 2, False, 0),
    End(job(J.PREEMPTED), R.PREEMPTED, 2, False, 40, FRESH),
    End(job(J.REVOKED), R.JOB_ENDED, 2, False, 0),
    End(job(J.NODE_FAIL), R.NODE_FAILED, 2, True, 0),
    End(job(J.BOOT_FAIL), R.NODE_FAILED, 2, True, 0),
    End(job(J.LAUNCH_FAILED), R.NODE_FAILED, 2, True, 40, FRESH),
    End(job(J.RECONFIG_FAIL), R.NODE_FAILED, 2, True, 0),
    End(job(J.OUT_OF_MEMORY), R.JOB_ENDED, 3, True, 40),
    End(job(J.DEADLINE), R.JOB_ENDED, 3, True, 40),
    End(job(J.FAILED, exit_code=1), R.JOB_ENDED, 3, True, 40),
    End(job(J.TIMEOUT), R.JOB_ENDED, 3, True, 40),
    End(job(J.TIMEOUT), R.JOB_ENDED, 2, False, 0, HAD_BEEN_READY),
    End(job(J.COMPLETED), R.JOB_ENDED, 3, True, 40),
    End(job(J.COMPLETED), R.JOB_ENDED, 2, False, 0, HAD_BEEN_READY),
    End(job(J.CANCELLED), R.CANCELLED_OUTSIDE, 2, False, 0),
    End(job(J.CANCELLED), R.CANCELLED_OUTSIDE, 2, False, 40, FRESH),
    # Cancelled by us: while it ran, or before.
    End(job(J.CANCELLED), R.JOB_ENDED, 3, True, 40, {"cancelled_at": at(-9), "running_since": at(-60)}),
    End(job(J.CANCELLED), R.JOB_ENDED, 2, False, 0, {"cancelled_at": at(-9)}),
]


@pytest.mark.parametrize("row", ENDS, ids=lambda row: f"{row.job.state} {'+'.join(row.its)}")
def test_whose_failure_an_end_is(row: End) -> None:
    known_as = {"job": job(), "running_since": None} | row.its
    one = replica(its=attempt(**known_as), state=S.STARTING, failures=2)
    outlook = plan_replica(Scene(NOW, CHAT, one, row.job, 10, None))
    (end,) = [action for action in outlook.decision.actions if isinstance(action, EndAttempt)]
    assert outlook.decision.reason is row.reason
    assert (end.failures, end.failed, end.next_attempt_at) == (row.failures, row.failed, at(row.next_s))
    assert ("at once" in outlook.message) == (row.next_s == 0)


def test_what_served_well_and_was_preempted_begins_a_new_row() -> None:
    one = replica(its=ready_attempt(ready_at=at(-900)), state=S.READY, failures=2)
    outlook = plan_replica(Scene(NOW, CHAT, one, job(J.PREEMPTED), 10, None))
    (end,) = [action for action in outlook.decision.actions if isinstance(action, EndAttempt)]
    assert (end.failures, end.failed) == (0, False)


RESPECTING = replace(CHAT, spec=replace(CHAT.spec, outside_changes=OutsideChanges.RESPECT))
BY_USER = job(J.PENDING, reason="JobHeldUser")
BY_ADMIN = job(J.PENDING, reason="JobHeldAdmin")
HALTED = job(J.SUSPENDED)
HALTED_LONG = served(HALTED, S.QUEUED, halted_since=at(-300))


@pytest.mark.parametrize(
    ("of", "its", "listed", "reason", "cancels"),
    [
        (CHAT, known(BY_USER, S.QUEUED), BY_USER, R.HELD, True),
        (RESPECTING, known(BY_USER, S.QUEUED), BY_USER, R.HELD, False),
        (PAUSED, known(BY_USER, S.QUEUED), BY_USER, R.HELD, False),
        (CHAT, known(BY_ADMIN, S.QUEUED), BY_ADMIN, R.HELD, False),
        (CHAT, known(it := job(J.PENDING, reason="JobHoldMaxRequeue"), S.QUEUED), it, R.HELD, True),
        (CHAT, known(it := job(J.SPECIAL_EXIT), S.QUEUED), it, R.HELD, True),
        (CHAT, known(it := job(J.REQUEUE_HOLD, reason="JobHeldUser"), S.QUEUED), it, R.HELD, True),
        (
            CHAT,
            known(it := job(J.PENDING, reason="PartitionTimeLimit"), S.QUEUED),
            it,
            R.QUEUE_BLOCKED,
            False,
        ),
        (CHAT, known(it := job(J.PENDING, reason="SomethingNew"), S.QUEUED), it, R.QUEUED, False),
        (CHAT, served(HALTED), HALTED, R.SUSPENDED, False),
        (CHAT, served(HALTED, S.QUEUED, halted_since=at(-299)), HALTED, R.SUSPENDED, False),
        (CHAT, HALTED_LONG, HALTED, R.SUSPENDED_TOO_LONG, True),
        (RESPECTING, HALTED_LONG, HALTED, R.SUSPENDED, False),
        (PAUSED, HALTED_LONG, HALTED, R.SUSPENDED, False),
        # Ready for longer, and halted only now.
        (CHAT, replace(served(HALTED), since=at(-301)), HALTED, R.SUSPENDED, False),
    ],
)
def test_what_waits_for_somebody(
    of: Deployment, its: Replica, listed: Job, reason: Reason, cancels: bool
) -> None:
    outlook = plan_replica(Scene(NOW, of, its, listed, 10, None))
    assert outlook.decision.reason is reason
    assert outlook.decision.actions == ((CANCEL,) if cancels else ())
    check_move("chat-1", its.state, outlook.state)


def test_a_job_that_is_halted_before_it_was_seen_to_run_is_waited_for_from_then_on() -> None:
    """It waited for an hour, started, and was suspended between two looks; shown as queued all the while."""
    queued = replace(known(job(J.PENDING), S.QUEUED), since=at(-3600))
    first = plan_replica(Scene(NOW, CHAT, queued, HALTED, 10, None))
    assert (first.decision.reason, first.state) == (R.SUSPENDED, S.QUEUED)
    assert first.decision.actions == (RecordJob(drawn(1), HALTED, None, NOW),)
    halted = replace(queued, attempt=attempt(job=HALTED, halted_since=NOW))
    for second in (5, 299):
        scene = Scene(at(second), CHAT, halted, HALTED, 10, None)
        assert plan_replica(scene) == replace(first, decision=replace(first.decision, actions=()))
    last = plan_replica(Scene(at(300), CHAT, halted, HALTED, 10, None))
    assert last.message == "job 7 is suspended in Slurm since 14:00:00 and is replaced"


def test_each_halt_of_a_job_is_waited_for_by_itself() -> None:
    """As in time slices; and a requeued job that is halted before it was seen otherwise begins anew, too."""
    runs_on = plan_replica(Scene(NOW, CHAT, HALTED_LONG, RUNNING, 10, None))
    assert runs_on.decision.actions == (RecordJob(drawn(1), RUNNING, NOW, None),)
    requeued = replace(HALTED, restarts=1)
    again = plan_replica(Scene(NOW, CHAT, HALTED_LONG, requeued, 10, None))
    assert (again.decision.reason, again.decision.actions) == (
        R.SUSPENDED,
        (RecordJob(drawn(1), requeued, None, NOW),),
    )


def test_a_cancelled_job_stays_so_where_that_is_respected() -> None:
    gone = job(J.CANCELLED)
    outlook = plan_replica(Scene(NOW, RESPECTING, known(RUNNING), gone, 10, None))
    stays = (
        "somebody cancelled job 7; it stays so until the deployment is restarted or gets another revision,"
        " or the replica is drained: spec.outside_changes is respect"
    )
    assert (outlook.decision.reason, outlook.state, outlook.message) == (
        R.CANCELLED_OUTSIDE,
        S.WAITING,
        stays,
    )
    after = replica(
        its=attempt(job=gone, ended_at=at(-900), end_message="somebody cancelled job 7"), state=S.WAITING
    )
    later = plan_replica(Scene(NOW, RESPECTING, after, None, 10, None))
    assert (later.decision.reason, later.message, later.decision.actions) == (R.CANCELLED_OUTSIDE, stays, ())
    assert plan_replica(Scene(NOW, CHAT, after, None, 10, None)).decision.reason is R.SUBMIT
    assert plan_replica(Scene(NOW, RESPECTING, leaving(after), None, 10, None)).decision.reason is R.REMOVE


@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        ({"time_limit_s": 3600}, {"time_limit_s": 7200}, "its time limit is 120 min instead of 60"),
        ({"partition": "gpu"}, {"partition": "long"}, "its partition is long instead of gpu"),
        ({"partition": "gpu,long"}, {"partition": "long"}, ""),
        ({"time_limit_s": None}, {"time_limit_s": 7200}, ""),
    ],
)
def test_an_altered_job_is_told_of_once(before: dict[str, object], now: dict[str, object], says: str) -> None:
    was, is_now = job(**before), job(**now)  # type: ignore[arg-type]
    outlook = plan_replica(Scene(NOW, CHAT, served(was), is_now, 10, None))
    assert outlook.state is S.READY
    if not says:
        assert outlook.decision.reason is R.READY
        return
    assert outlook.decision.reason is R.JOB_ALTERED
    assert outlook.decision.message == f"job 7 was altered in Slurm: {says}; it counts as it is now"
    assert plan_replica(Scene(NOW, CHAT, served(is_now), is_now, 10, None)).decision.reason is R.READY


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.SIGNALING])
@pytest.mark.parametrize(
    ("limit_s", "ends_s", "early"),
    [(3600, 3540, False), (3600, 3535, False), (3600, 5, True), (None, None, False), (None, 5, True),
     (None, 365 * 86_400, False)],
)  # fmt: skip
def test_a_preempted_job_uses_its_grace_to_drain(
    limit_s: int | None, ends_s: float | None, early: bool, state: JobState
) -> None:
    listed = job(state=state, time_limit_s=limit_s, ends_at=None if ends_s is None else at(ends_s))
    assert listed.taken_early is early
    if not early:
        return
    outlook = plan_replica(Scene(NOW, CHAT, served(listed), listed, 10, None))
    assert (outlook.decision.reason, outlook.state, outlook.decision.actions) == (
        R.PREEMPTING,
        S.DRAINING,
        (DRAIN,),
    )
    told = served(listed, S.DRAINING, drain_at=at(-1), signalled_at=at(-1), phase=Phase.DRAINING)
    again = plan_replica(Scene(NOW, CHAT, told, listed, 10, None))
    assert (again.decision.reason, again.decision.actions) == (R.PREEMPTING, ())
    starting = known(listed, phase=Phase.STARTING, running_since=at(-60))
    assert plan_replica(Scene(NOW, CHAT, starting, listed, 10, None)).decision.reason is R.STARTING


@pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.FAILED, JobState.TIMEOUT])
def test_who_left_in_the_grace_time_was_preempted_whatever_slurm_calls_it(state: JobState) -> None:
    over = job(state=state)
    told = served(over, S.DRAINING, drain_at=at(-5), signalled_at=at(-5), phase=Phase.ENDED)
    outlook = plan_replica(Scene(NOW, CHAT, told, over, 10, None))
    assert outlook.decision.reason is R.PREEMPTED
    assert f"ended as {state}" in outlook.message
    assert ", after Slurm had taken its nodes for another one; next attempt " in outlook.message
    (end,) = outlook.decision.actions
    assert isinstance(end, EndAttempt)
    assert (end.failures, end.failed) == (told.failures, False)


@pytest.mark.parametrize(("own_s", "cut"), [(None, True), (60, True), (600, False)])
def test_a_drain_takes_as_long_as_the_replicas_own_revision_allows(own_s: int | None, cut: bool) -> None:
    listed = job()
    old = replace(
        served(listed, S.DRAINING, drain_at=at(-200), signalled_at=at(-200), phase=Phase.DRAINING),
        leaving=True,
        drain_timeout_s=own_s,
    )
    outlook = plan_replica(Scene(NOW, CHAT, old, listed, 10, None))
    assert (outlook.decision.reason is R.DRAIN_TIMEOUT) is cut
