"""What the controller may decide, and the words it says it in.

A `Decision` is a reason from a closed list, one sentence with its numbers, and zero or more actions; none means
"not now". An `Action` is one effect, named so exactly that carrying it out needs no further judgement: `reconcile`
commits the intent, `execute` has one idempotent branch for each. The duties of the executor are written on the action.

Sentences hold no running clocks ("for 35 s"): a decision that stands says the same thing each tick, and so is one row.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

from penstock.core.jobs import Job
from penstock.core.model import RolloutRecord
from penstock.core.walltime import NO_BOUNDS, Bounds


class Reason(enum.Enum):
    """Every reason there is, with what it means. Part of the API: docs/reasons.md is made from this list."""

    # Deployments
    SCALE_UP = ("ScaleUp", "There are fewer replicas than wanted; new ones are made.")
    SCALE_DOWN = ("ScaleDown", "There are more replicas than wanted; some are drained.")
    ROLLOUT_SURGE = (
        "RolloutSurge",
        "The spec changed; a replica of the new revision is made before an old one goes.",
    )
    ROLLOUT_RETIRE = (
        "RolloutRetire",
        "A replica of an old revision is drained, because the new revision is ready for it.",
    )
    ROLLOUT_WAIT = ("RolloutWait", "An old replica stays until a new one is ready. Not now.")
    HANDOVER = (
        "Handover",
        "A replica's job must end soon, or its node is to be freed; its successor is made, or takes over.",
    )
    HANDOVER_WAIT = (
        "HandoverWait",
        "A replica that is handed over stays until its successor is ready. Not now.",
    )
    ROLLOUT_CANARY = (
        "RolloutCanary",
        "A share of the replicas runs the new revision beside the stable one, until it is promoted or fails. Not now.",
    )
    ROLLOUT_PAUSED = (
        "RolloutPaused",
        "The rollout stands still until it is resumed; replicas are kept as they are, and replaced when they end.",
    )
    ROLLOUT_FAILED = (
        "RolloutFailed",
        "A replica of the new revision did not become ready in time, or failed too often; the rollout is stopped.",
    )
    ROLLED_BACK = (
        "RolledBack",
        "The rollout failed, and the deployment goes back to its stable revision by itself, as its spec asks.",
    )
    DELETING = ("Deleting", "The deployment is being deleted; its replicas are drained or cancelled.")
    DELETED = ("Deleted", "The deployment's last job has ended; the deployment is removed.")
    PAUSED = (
        "Paused",
        "The deployment is paused: nothing is started, given up or replaced; what was leaving goes on leaving.",
    )
    STEADY = ("Steady", "Everything is as wanted. Nothing to do.")
    PROGRESSING = ("Progressing", "Replicas are on their way to being ready.")
    # Replicas
    SUBMIT = ("Submit", "A new attempt is written down and submitted to Slurm.")
    BACK_OFF = ("BackOff", "The last attempt failed; the next one waits. Not now.")
    BUDGET_SPENT = (
        "BudgetSpent",
        "As many attempts failed within an hour as the deployment may lose; no more is tried for a while. Not now.",
    )
    CRASH_LOOPING = (
        "CrashLooping",
        "Attempts of a replica failed several times in a row. Said of the deployment as a condition.",
    )
    PACED = (
        "Paced",
        "The last attempt ended through no fault of its own; the next one waits a minute at most. Not now.",
    )
    SPREADING = (
        "Spreading",
        "It is submitted when another replica's job has its node, so that it can be on another one. Not now.",
    )
    PACKING = (
        "Packing",
        "It is submitted when another replica's job has its node, so that it can be on the same one. Not now.",
    )
    SUBMISSION_DOUBTFUL = (
        "SubmissionDoubtful",
        "It is not known whether Slurm took the submission; it is looked up first. Not now.",
    )
    SUBMISSION_PUT_OFF = (
        "SubmissionPutOff",
        "Slurm was not asked for the job: it did not answer, or something was in the way. It is asked soon. Not now.",
    )
    RESUBMIT = ("Resubmit", "Slurm certainly does not have the job; the same attempt is submitted again.")
    SUBMISSION_REFUSED = ("SubmissionRefused", "Slurm said no to the submission.")
    ADOPT = ("Adopt", "A live job with this attempt's token was found in Slurm and is taken over.")
    QUEUED = ("Queued", "The job waits in Slurm's queue. Not a failure, and no time-out runs.")
    MAINTENANCE_AHEAD = (
        "MaintenanceAhead",
        "The job asks for so long that it would wait out a maintenance; it is replaced by one that ends before.",
    )
    PLACEMENT_GIVEN_UP = (
        "PlacementGivenUp",
        "The job waited for longer than its placement's patience; it is withdrawn, and the next placement is tried.",
    )
    PACK_GIVEN_UP = (
        "PackGivenUp",
        "The job waited for room beside its deployment's replicas; it is withdrawn, and the next one goes anywhere.",
    )
    SPREAD_GIVEN_UP = (
        "SpreadGivenUp",
        "The job waited for a node without its deployment's replicas; it is withdrawn, and the next one goes anywhere.",
    )
    SUSPENDED = (
        "Suspended",
        "Slurm has halted the job; it serves nobody until it is let go on. Not a failure, and no time-out runs.",
    )
    SUSPENDED_TOO_LONG = (
        "SuspendedTooLong",
        "Slurm has halted the job for longer than is waited for; it is cancelled, and another one submitted.",
    )
    QUEUE_BLOCKED = (
        "QueueBlocked",
        "The job waits for a reason that waiting does not mend: somebody must act. Said as a condition, too.",
    )
    HELD = ("Held", "The job is held in Slurm; it is replaced, or stays so, as spec.outside_changes says.")
    JOB_ALTERED = (
        "JobAltered",
        "Somebody, or Slurm, altered the job; it is left so, and counts as it is now.",
    )
    JOB_UNMARKED = (
        "JobUnmarked",
        "Somebody, or Slurm, rewrote the job's comment or name, so that it does not bear our mark; it is neither"
        " touched nor replaced until it does. Said as a condition, too. Not now.",
    )
    STARTING = ("Starting", "The job runs; the engine has not generated its first token yet.")
    READY = ("Ready", "The replica takes requests.")
    ADAPTERS_LOADING = (
        "AdaptersLoading",
        "The replica takes requests, but not for all adapters yet; they are being loaded. Not now.",
    )
    ADAPTER_FAILED = (
        "AdapterFailed",
        "The replica takes requests, but cannot load an adapter; it tries again. Said as a condition, too. Not now.",
    )
    STARTUP_TIMEOUT = (
        "StartupTimeout",
        "The engine did not generate a token in time since the job's start; the job is cancelled.",
    )
    REPORT_TIMEOUT = ("ReportTimeout", "The agent has been silent for too long; the job is cancelled.")
    JOB_ENDED = ("JobEnded", "The job ended although nobody asked it to; the replica will be started again.")
    PREEMPTING = (
        "Preempting",
        "Slurm ends the job after a grace time to make room for another one; it takes no new requests.",
    )
    PREEMPTED = ("Preempted", "Slurm ended the job to make room for another one. No failure.")
    NODE_FAILED = (
        "NodeFailed",
        "The job's node failed it. Counted against the node, not against the revision.",
    )
    CANCELLED_OUTSIDE = (
        "CancelledOutside",
        "Somebody cancelled the job; another one is submitted, or it stays so, as spec.outside_changes says.",
    )
    JOB_MISSING = (
        "JobMissing",
        "Slurm answers, but does not list the job any more; that must last before it is believed. Not now.",
    )
    JOB_LOST = ("JobLost", "Slurm has not listed the job for long enough; it is gone.")
    JOB_STATE_UNKNOWN = (
        "JobStateUnknown",
        "Slurm gives the job a state that this release does not know. Nothing is done.",
    )
    DRAIN = ("Drain", "The replica takes no new requests, finishes the running ones and ends.")
    DRAINING = ("Draining", "The replica finishes its running requests. Not now.")
    DRAIN_TIMEOUT = ("DrainTimeout", "Draining took longer than allowed; the job is cancelled.")
    STOPPING = ("Stopping", "The job was told to end and has not ended yet. Not now.")
    CANCEL = ("Cancel", "The job is cancelled: the replica is to go and serves nobody.")
    REMOVE = ("Remove", "The replica is to go and its job has ended; it is removed.")
    # The cluster
    CLUSTER_REACHABLE = (
        "ClusterReachable",
        "Slurm answers, and every job that bears our mark belongs to an attempt.",
    )
    CLUSTER_UNREACHABLE = (
        "ClusterUnreachable",
        "Slurm could not be asked, so nothing is started or stopped. Not now.",
    )
    ORPHAN_FOUND = (
        "OrphanFound",
        "A job bears our mark but belongs to no attempt; it is cancelled if that lasts. Not now.",
    )
    ORPHAN_CANCELLED = (
        "OrphanCancelled",
        "A job that bears our mark and belongs to no attempt is cancelled.",
    )

    def __init__(self, word: str, meaning: str) -> None:
        self.word = word
        self.meaning = meaning


@dataclass(frozen=True, slots=True)
class CreateReplica:
    """Make a replica of this revision. The database only."""

    deployment_uid: str
    revision: int
    burst: bool = False


@dataclass(frozen=True, slots=True)
class Submit:
    """Write down a new attempt of this replica (token, secret, script), commit, then call sbatch once.

    What comes back is written down: a job id, a refusal, or nothing when it is not known.
    """

    replica_uid: str
    exclude: tuple[str, ...] = ()
    """Names of nodes that it must not run on."""
    bounds: Bounds = NO_BOUNDS
    """What its time limit must keep."""
    placement: int = 0
    """Which of the replica's placements it is submitted to."""
    beside: tuple[str, ...] = ()
    """Names of nodes that it must run on, for they run replicas of its deployment."""
    apart: bool = False
    """Some of `exclude` are there because they run replicas of its deployment."""


@dataclass(frozen=True, slots=True)
class Resubmit:
    """Look the attempt's job up by name; adopt it if it is there, else call sbatch once with the same token."""

    replica_uid: str
    token: str
    exclude: tuple[str, ...] = ()
    """As in Submit."""
    bounds: Bounds = NO_BOUNDS
    """As in Submit."""
    beside: tuple[str, ...] = ()
    """As in Submit."""
    apart: bool = False
    """As in Submit."""


def packed(action: Submit | Resubmit) -> bool:
    """Whether where the deployment's other replicas run says where this job may: `Attempt.packed`."""
    return bool(action.beside) or action.apart


@dataclass(frozen=True, slots=True)
class Adopt:
    """Write the job's id to the attempt. The database only."""

    token: str
    job: Job


@dataclass(frozen=True, slots=True)
class RecordJob:
    """Write what Slurm says of the attempt's job, and since when it has been seen to run, or halted. The database
    only."""

    token: str
    job: Job
    running_since: datetime | None = None
    halted_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class RecordMissing:
    """Write since when complete listings lack the attempt's job; None: they have it again. Database only."""

    token: str
    since: datetime | None


@dataclass(frozen=True, slots=True)
class BeginHandover:
    """Write that a successor is to take over from this run of the attempt's job. The database only."""

    token: str


@dataclass(frozen=True, slots=True)
class EndAttempt:
    """Write that the attempt has ended. The database only."""

    replica_uid: str
    token: str
    exit_code: int | None
    job: Job | None
    failures: int
    """The replica's failures in a row from now on."""
    next_attempt_at: datetime | None
    message: str
    failed: bool = False
    """Whether the revision or the node may be to blame: then it counts as a `Failure`."""
    placement: int = 0
    """Which of the replica's placements the next attempt is submitted to."""
    found_no_room: bool = False
    """It was withdrawn because where its deployment's replicas run it was to run, or was not, so the next attempt may
    run anywhere."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Write that the replica drains, which takes it out of routing; then send SIGTERM to its batch shell."""

    replica_uid: str
    token: str
    job_id: int
    name: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Write that the job is to end; then scancel it."""

    token: str
    job_id: int
    name: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Write that the job is withdrawn; then scancel it if it still waits. One that has started is left alone."""

    token: str
    job_id: int
    name: str


@dataclass(frozen=True, slots=True)
class CancelOrphan:
    """scancel a job that bears our mark and belongs to nothing."""

    job_id: int
    name: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Write that the replica is to go and not to come back. The database only."""

    replica_uid: str


@dataclass(frozen=True, slots=True)
class RemoveReplica:
    """Write that the replica is gone. The database only."""

    replica_uid: str


@dataclass(frozen=True, slots=True)
class RecordRollout:
    """Write what is remembered of the deployment's rollouts. The database only."""

    deployment_uid: str
    rollout: RolloutRecord


@dataclass(frozen=True, slots=True)
class GoBack:
    """Make the spec of revision `to` the wanted one again, as the revision after `revision`, with this record; replicas
    that run that spec already belong to the new one. Does nothing if `revision` is the wanted one no more. The database
    only."""

    deployment_uid: str
    revision: int
    to: int
    rollout: RolloutRecord
    cause: str


@dataclass(frozen=True, slots=True)
class RemoveDeployment:
    """Remove the deployment and what hangs on it. The database only."""

    deployment_uid: str


Action = (
    CreateReplica
    | Submit
    | Resubmit
    | Adopt
    | RecordJob
    | RecordMissing
    | BeginHandover
    | EndAttempt
    | Drain
    | Cancel
    | Withdraw
    | CancelOrphan
    | Leave
    | RemoveReplica
    | RecordRollout
    | GoBack
    | RemoveDeployment
)

EFFECTS = (Submit, Resubmit, Drain, Cancel, Withdraw, CancelOrphan)
"""The actions that mutate Slurm. All others are done once the decision is committed."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about one subject.

    `deployment` empty: about the cluster; `replica` empty: about the deployment.
    """

    deployment: str
    replica: str
    reason: Reason
    message: str
    actions: tuple[Action, ...] = ()

    @property
    def subject(self) -> tuple[str, str]:
        """What it is about; a plan holds one decision for each subject."""
        return self.deployment, self.replica
