"""Slurm's words for what becomes of a job: each state and each reason, what it means, what follows, what is shown.

One table of each, and everything that must know a word asks here: which jobs wait, stand still, end or have ended;
whom an end is counted against; whether waiting helps at all or somebody must act. docs/slurm.md is made from it.

The words are those of Slurm 22.05 through 26.05, read off its own libraries; the tests compare them with the libraries
that are at hand. A word that is not here is shown as Slurm says it, and nothing follows from it: an unknown state
neither lives nor has ended, and an unknown reason is a reason to wait.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass


class JobState(enum.StrEnum):
    """The base states and flags of a Slurm job (`JOB STATE CODES` in squeue(1)), and one for what we cannot read."""

    PENDING = "PENDING"
    CONFIGURING = "CONFIGURING"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    STOPPED = "STOPPED"
    COMPLETING = "COMPLETING"
    STAGE_OUT = "STAGE_OUT"
    SIGNALING = "SIGNALING"
    RESIZING = "RESIZING"
    REQUEUED = "REQUEUED"
    REQUEUE_FED = "REQUEUE_FED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    SPECIAL_EXIT = "SPECIAL_EXIT"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    PREEMPTED = "PREEMPTED"
    NODE_FAIL = "NODE_FAIL"
    BOOT_FAIL = "BOOT_FAIL"
    DEADLINE = "DEADLINE"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    LAUNCH_FAILED = "LAUNCH_FAILED"
    RECONFIG_FAIL = "RECONFIG_FAIL"
    REVOKED = "REVOKED"
    UNKNOWN = "UNKNOWN"


class Kind(enum.Enum):
    """What a state says of a job's processes."""

    WAITS = "no nodes yet, no processes"
    HAS_NODES = "its processes run, or are about to"
    HALTED = "its processes stand still until Slurm, or whoever halted them, lets them go on"
    ENDING = "its processes are told to go, or its files are copied out"
    ENDED = "it never runs again by itself; a human may still requeue it: then it waits again"
    UNKNOWN = "nothing"


class Blame(enum.Enum):
    """Whom an end that nobody of ours asked for is counted against."""

    REVISION = "the revision: back-off, and its budget of failures an hour"
    NODE = "the node alone"
    NOBODY = "nobody"
    SOMEBODY = "whoever did it: `spec.outside_changes` says what follows"


@dataclass(frozen=True, slots=True)
class StateRow:
    """One state. `does` and `shown` are sentences for docs/slurm.md."""

    kind: Kind
    meaning: str
    does: str
    shown: str
    blame: Blame | None = None
    """Of an ended state, and only of one."""
    accuses_node: bool = False
    """Whether such an end may be the node's fault: three within an hour on one node, and it is avoided."""


_WAIT = (
    "Waits: no time-out runs, and no failure is counted. After a placement's patience the next one is tried."
)
_HELD = "As for a held job, see JobHeldUser."
_LISTENS = (
    "Listens to its agent. Where Slurm has brought its end forward, which is how a preemption's grace time shows, it"
    " drains at once."
)
_LET = "Nothing: it goes on."
_ANEW = "Submits anew at once, but at most once a minute."
_BACK_OFF = "Submits anew after the back-off."
_ONCE_READY = (
    "Where it had been ready, that is nobody's failure: submits anew at once, but at most once a minute. Else submits"
    " anew after the back-off."
)

STATES: Mapping[JobState, StateRow] = {
    JobState.PENDING: StateRow(
        Kind.WAITS, "It waits in the queue.", _WAIT, "queued, Slurm's reason, its estimate"
    ),
    JobState.CONFIGURING: StateRow(
        Kind.HAS_NODES, "It has its nodes, and Slurm boots or configures them.", "Waits.", "starting"
    ),
    JobState.RUNNING: StateRow(Kind.HAS_NODES, "It runs.", _LISTENS, "starting, then ready"),
    JobState.SUSPENDED: StateRow(
        Kind.HALTED,
        "Its processes are stopped: preempted by suspension, time-sliced, or suspended by an administrator.",
        "Takes it out of routing at once. After five minutes, unless outside changes are respected, its job is"
        " cancelled and another one submitted: it serves nobody, holds memory, and nobody knows for how long.",
        "queued, suspended in Slurm",
    ),
    JobState.STOPPED: StateRow(
        Kind.HALTED,
        "It was sent SIGSTOP and keeps its nodes.",
        "As for SUSPENDED.",
        "queued, suspended in Slurm",
    ),
    JobState.COMPLETING: StateRow(Kind.ENDING, "It ends; its nodes are not free yet.", "Waits.", "stopping"),
    JobState.STAGE_OUT: StateRow(Kind.ENDING, "Its burst buffer is copied out.", "Waits.", "stopping"),
    JobState.SIGNALING: StateRow(Kind.HAS_NODES, "It is being sent a signal.", _LET, "as it was"),
    JobState.RESIZING: StateRow(Kind.HAS_NODES, "Its size is being changed.", _LET, "as it was"),
    JobState.REQUEUED: StateRow(
        Kind.WAITS,
        "It was taken off its nodes (preempted, or its node died) and goes back to the queue under the same id.",
        "Waits; what its agent said in the earlier run counts no more.",
        "queued",
    ),
    JobState.REQUEUE_FED: StateRow(Kind.WAITS, "A federation requeues it.", "As for REQUEUED.", "queued"),
    JobState.REQUEUE_HOLD: StateRow(Kind.WAITS, "It was requeued and is held.", _HELD, "queued, held"),
    JobState.RESV_DEL_HOLD: StateRow(
        Kind.WAITS, "It is held, because its reservation was deleted.", _HELD, "queued, held"
    ),
    JobState.SPECIAL_EXIT: StateRow(
        Kind.WAITS, "It was requeued and held for its exit code's sake.", _HELD, "queued, held"
    ),
    JobState.COMPLETED: StateRow(
        Kind.ENDED,
        "Its script ended with 0, though nobody asked it to.",
        _ONCE_READY,
        "waiting",
        Blame.REVISION,
    ),
    JobState.CANCELLED: StateRow(
        Kind.ENDED,
        "It was cancelled: by us where that was decided, else by somebody.",
        f"Where it was not ours: repaired: {_ANEW[0].lower()}{_ANEW[1:]} Respected: it stays so until the deployment is"
        " restarted or gets another revision, or the replica is drained.",
        "waiting, CancelledOutside",
        Blame.SOMEBODY,
        accuses_node=True,
    ),
    JobState.FAILED: StateRow(
        Kind.ENDED,
        "Its script ended with an error or by a signal.",
        _BACK_OFF,
        "waiting",
        Blame.REVISION,
        accuses_node=True,
    ),
    JobState.TIMEOUT: StateRow(
        Kind.ENDED,
        "It reached its time limit.",
        _ONCE_READY,
        "waiting",
        Blame.REVISION,
    ),
    JobState.PREEMPTED: StateRow(
        Kind.ENDED, "A job of higher priority took its place.", _ANEW, "waiting, Preempted", Blame.NOBODY
    ),
    JobState.NODE_FAIL: StateRow(
        Kind.ENDED, "Its node died.", _ANEW, "waiting, NodeFailed", Blame.NODE, accuses_node=True
    ),
    JobState.BOOT_FAIL: StateRow(
        Kind.ENDED,
        "Its node could not be booted for it.",
        _ANEW,
        "waiting, NodeFailed",
        Blame.NODE,
        accuses_node=True,
    ),
    JobState.DEADLINE: StateRow(
        Kind.ENDED, "It reached the deadline it was submitted with.", _BACK_OFF, "waiting", Blame.REVISION
    ),
    JobState.OUT_OF_MEMORY: StateRow(
        Kind.ENDED, "It used more memory than it was given.", _BACK_OFF, "waiting", Blame.REVISION
    ),
    JobState.LAUNCH_FAILED: StateRow(
        Kind.ENDED,
        "Slurm could not start its script on the node.",
        _ANEW,
        "waiting, NodeFailed",
        Blame.NODE,
        accuses_node=True,
    ),
    JobState.RECONFIG_FAIL: StateRow(
        Kind.ENDED,
        "Its node could not be configured for it.",
        _ANEW,
        "waiting, NodeFailed",
        Blame.NODE,
        accuses_node=True,
    ),
    JobState.REVOKED: StateRow(
        Kind.ENDED, "A sibling runs in another cluster of the federation.", _ANEW, "waiting", Blame.NOBODY
    ),
    JobState.UNKNOWN: StateRow(
        Kind.UNKNOWN, "A word that this release does not know.", "Nothing, until it knows.", "as it was"
    ),
}


def _of(kind: Kind) -> frozenset[JobState]:
    return frozenset(state for state, row in STATES.items() if row.kind is kind)


ENDED_STATES = _of(Kind.ENDED)
WAITING_STATES = _of(Kind.WAITS)
ENDING_STATES = _of(Kind.ENDING)
HALTED_STATES = _of(Kind.HALTED)
BLAMELESS_STATES = frozenset(
    state for state in ENDED_STATES if STATES[state].blame in (Blame.NODE, Blame.NOBODY)
)
"""Ends that say nothing of the model."""
ACCUSING_STATES = frozenset(state for state, row in STATES.items() if row.accuses_node)
HOLDING_STATES = frozenset({JobState.REQUEUE_HOLD, JobState.RESV_DEL_HOLD, JobState.SPECIAL_EXIT})
"""States that are a hold, whatever reason is given."""


class Wait(enum.Enum):
    """What a waiting job waits for, which says whether waiting helps."""

    ROOM = "waiting helps"
    ITS_TURN = "waiting helps, and it is no queue: no placement's patience runs out"
    SOMEBODY = "it never starts as it is: somebody must act"
    HELD = "somebody holds it"
    HELD_BY_SLURM = "Slurm holds it, and nobody releases it by himself"
    ENDED = "said of a job that has ended"


DOES: Mapping[Wait, str] = {
    Wait.ROOM: "Waits; after the placement's patience the next placement is tried.",
    Wait.ITS_TURN: "Waits.",
    Wait.SOMEBODY: "Waits, and says so: condition `Blocked` (an administrator may still change it). After the"
    " placement's patience the next placement is tried.",
    Wait.HELD: "Condition `Blocked`. Repaired: a job that its user holds is cancelled and another one submitted; what"
    " an administrator holds stays held. Respected: it stays held.",
    Wait.HELD_BY_SLURM: "Condition `Blocked`. Repaired: it is cancelled, and another one submitted. Respected: it stays"
    " held.",
    Wait.ENDED: "See the state.",
}


@dataclass(frozen=True, slots=True)
class ReasonRow:
    """One of Slurm's reasons."""

    meaning: str
    wait: Wait


_ROOM, _TURN, _BODY, _END = Wait.ROOM, Wait.ITS_TURN, Wait.SOMEBODY, Wait.ENDED

_SINGLE = {
    "None": ("No reason has been found yet.", _TURN),
    "Resources": ("It is the next, and too little is free.", _ROOM),
    "Priority": ("Jobs of higher priority are ahead of it.", _ROOM),
    "Dependency": ("Another job must end first: the lock against doubled submissions.", _TURN),
    "DependencyNeverSatisfied": ("A job that it depends on ended in the wrong way.", _BODY),
    "BeginTime": ("Its earliest start is not reached: after a requeue, for a while.", _TURN),
    "Cleaning": ("Its last run is still being cleaned up.", _TURN),
    "Prolog": ("The prolog runs on its nodes.", _TURN),
    "SchedDefer": ("It was not looked at when it was submitted; the next pass does.", _TURN),
    "ReqNodeNotAvail": ("Nodes that it needs are down, drained or reserved.", _ROOM),
    "PartitionDown": ("The partition is down: it starts no job until an administrator lets it.", _BODY),
    "PartitionInactive": ("The partition is inactive: it neither takes nor starts a job.", _BODY),
    "PartitionNodeLimit": ("It asks for more nodes than the partition gives, or they are down.", _BODY),
    "PartitionTimeLimit": ("Its time limit is above the partition's.", _BODY),
    "PartitionConfig": ("It asks for what the partition is not configured to give.", _BODY),
    "Licenses": ("The licenses that it needs are in use.", _ROOM),
    "Reservation": ("Its reservation has not begun, or has no room.", _ROOM),
    "ReservationDeleted": ("Its reservation was deleted.", Wait.HELD_BY_SLURM),
    "ReservationInvalid": ("Its reservation is not one that it may use.", _BODY),
    "JobHeldUser": ("Its user holds it.", Wait.HELD),
    "JobHeldAdmin": ("An administrator holds it.", Wait.HELD),
    "JobHoldMaxRequeue": ("It was requeued more often than the cluster allows.", Wait.HELD_BY_SLURM),
    "launch failed requeued held": (
        "Slurm could not start it on its node, and holds it.",
        Wait.HELD_BY_SLURM,
    ),
    "job requeued in held state": ("It was requeued and is held.", Wait.HELD_BY_SLURM),
    "user env retrieval failed requeued held": (
        "Its user's environment could not be had, and Slurm holds it.",
        Wait.HELD_BY_SLURM,
    ),
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions": (
        "Nodes that it needs are down, drained or wanted by a partition of higher priority.",
        _ROOM,
    ),
    "BadConstraints": ("No node can ever have what it asks for.", _BODY),
    "Constraints": ("No node that it may use has the features it asks for now.", _ROOM),
    "NodeDown": ("A node that it needs, or ran on, is down.", _ROOM),
    "SystemFailure": ("Slurm itself failed, or its file system.", _BODY),
    "InvalidAccount": ("Its account does not exist, or not for this user.", _BODY),
    "InvalidQOS": ("Its QOS does not exist, or not for this account.", _BODY),
    "AccountNotAllowed": ("The partition does not take its account.", _BODY),
    "QOSNotAllowed": ("The partition, or its account, does not take its QOS.", _BODY),
    "AccountingPolicy": ("A limit of accounting is reached.", _ROOM),
    "AssociationJobLimit": ("The account's or user's jobs are as many as allowed.", _ROOM),
    "AssociationResourceLimit": ("The account's or user's resources are as many as allowed.", _ROOM),
    "AssociationTimeLimit": ("The account's or user's time is spent.", _ROOM),
    "QOSJobLimit": ("The QOS's jobs are as many as allowed.", _ROOM),
    "QOSResourceLimit": ("The QOS's resources are as many as allowed.", _ROOM),
    "QOSTimeLimit": ("The QOS's time is spent.", _ROOM),
    "QOSUsageThreshold": ("The account has used more than the QOS lets it.", _ROOM),
    "MaxMemPerLimit": ("It asks for more memory a CPU or node than the partition gives.", _BODY),
    "MaxPoweredUpNodes": ("As many nodes are powered up as may be.", _ROOM),
    "JobArrayTaskLimit": ("As many tasks of its array run as may; ours is none.", _ROOM),
    "BurstBufferResources": ("The burst buffer has too little room.", _ROOM),
    "BurstBufferStageIn": ("Its files are copied into the burst buffer.", _TURN),
    "BurstBufferOperation": ("An operation of the burst buffer failed.", _BODY),
    "PowerNotAvail": ("The power cap leaves it no power (until 23.02).", _ROOM),
    "PowerReserved": ("Its power is reserved for others (until 23.02).", _ROOM),
    "FrontEndDown": ("No front end node is up (until 23.11).", _ROOM),
    "BlockMaxError": ("Of a Blue Gene system; no more in use.", _ROOM),
    "BlockFreeAction": ("Of a Blue Gene system; no more in use.", _ROOM),
    "FedJobLock": ("The federation has not agreed yet who starts it.", _TURN),
    "NvidiaImexChannels": ("All IMEX channels of NVIDIA are in use.", _ROOM),
    "MpiPortsBusy": ("All ports reserved for MPI are in use.", _ROOM),
    "DeadLine": ("It can no more end before its deadline.", _BODY),
    "InactiveLimit": ("It was inactive for too long.", _END),
    "TimeLimit": ("It reached its time limit.", _END),
    "NonZeroExitCode": ("Its script ended with an error.", _END),
    "RaisedSignal": ("A signal ended its script.", _END),
    "JobLaunchFailure": ("Slurm could not start it: its folder or its node is amiss.", _END),
    "OutOfMemory": ("It used more memory than it was given.", _END),
}

_SCOPES = {
    "Assoc": "of the account or user",
    "QOS": "of the QOS",
    "": "of the QOS",
}
_TRES = {
    "Cpu": "CPUs", "CPU": "CPUs", "Mem": "memory", "Memory": "memory", "Node": "nodes", "Energy": "energy",
    "GRES": "GPUs and the like", "License": "licenses", "BB": "burst buffer", "Billing": "billing units",
    "Unknown": "a resource that it does not name", "Jobs": "running jobs", "SubmitJobs": "submitted jobs",
    "SubmitJob": "submitted jobs", "Wall": "wall time", "WallDuration": "wall time",
}  # fmt: skip
_LIMIT = re.compile(
    rf"(?P<scope>Assoc|QOS)?(?P<bound>Grp|Max|Min)(?P<tres>{'|'.join(sorted(_TRES, key=len, reverse=True))})"
    r"(?P<time>(?P<run>Run)?Min(?:ute)?s)?(?:Per(?P<per>Job|Node|User|Account))?(?:Limit|NotSatisfied)?"
)


def _limit(word: str) -> ReasonRow | None:
    """The row of a limit: Slurm builds these words by a rule, and so does the table."""
    match = _LIMIT.fullmatch(word)
    if match is None:
        return None
    scope, bound, tres, per = (
        _SCOPES[match["scope"] or ""],
        match["bound"],
        _TRES[match["tres"]],
        match["per"],
    )
    what = f"{tres} times minutes" if match["time"] else tres
    if match["run"]:
        what += " of running jobs"
    each = {"Job": " a job", "Node": " a node", "User": " a user", "Account": " an account"}.get(
        per or "", ""
    )
    if bound == "Min":
        return ReasonRow(f"It asks for less than the least{each} {scope}: {what}.", Wait.SOMEBODY)
    if per in ("Job", "Node"):
        return ReasonRow(f"It asks for more than the limit{each} {scope}: {what}.", Wait.SOMEBODY)
    whose = ", for all of its jobs together," if bound == "Grp" else ""
    return ReasonRow(f"The limit{each} {scope}{whose} is reached: {what}.", Wait.ROOM)


LIMITS = """
    AssocGrpBB AssocGrpBBMinutes AssocGrpBBRunMinutes AssocGrpBilling AssocGrpBillingMinutes
    AssocGrpBillingRunMinutes AssocGrpCPUMinutesLimit AssocGrpCPURunMinutesLimit AssocGrpCpuLimit AssocGrpEnergy
    AssocGrpEnergyMinutes AssocGrpEnergyRunMinutes AssocGrpGRES AssocGrpGRESMinutes AssocGrpGRESRunMinutes
    AssocGrpJobsLimit AssocGrpLicense AssocGrpLicenseMinutes AssocGrpLicenseRunMinutes AssocGrpMemLimit
    AssocGrpMemMinutes AssocGrpMemRunMinutes AssocGrpNodeLimit AssocGrpNodeMinutes AssocGrpNodeRunMinutes
    AssocGrpSubmitJobsLimit AssocGrpUnknown AssocGrpUnknownMinutes AssocGrpUnknownRunMinutes AssocGrpWallLimit
    AssocMaxBBMinutesPerJob AssocMaxBBPerJob AssocMaxBBPerNode AssocMaxBillingMinutesPerJob AssocMaxBillingPerJob
    AssocMaxBillingPerNode AssocMaxCpuMinutesPerJobLimit AssocMaxCpuPerJobLimit AssocMaxCpuPerNode
    AssocMaxEnergyMinutesPerJob AssocMaxEnergyPerJob AssocMaxEnergyPerNode AssocMaxGRESMinutesPerJob
    AssocMaxGRESPerJob AssocMaxGRESPerNode AssocMaxJobsLimit AssocMaxLicenseMinutesPerJob AssocMaxLicensePerJob
    AssocMaxMemMinutesPerJob AssocMaxMemPerJob AssocMaxMemPerNode AssocMaxNodeMinutesPerJob
    AssocMaxNodePerJobLimit AssocMaxSubmitJobLimit AssocMaxUnknownMinutesPerJob AssocMaxUnknownPerJob
    AssocMaxUnknownPerNode AssocMaxWallDurationPerJobLimit MaxBBPerAccount MaxBBRunMinsPerAccount
    MaxBBRunMinsPerUser MaxBillingPerAccount MaxBillingRunMinsPerAccount MaxBillingRunMinsPerUser MaxCpuPerAccount
    MaxCpuRunMinsPerAccount MaxCpuRunMinsPerUser MaxEnergyPerAccount MaxEnergyRunMinsPerAccount
    MaxEnergyRunMinsPerUser MaxGRESPerAccount MaxGRESRunMinsPerAccount MaxGRESRunMinsPerUser MaxJobsPerAccount
    MaxLicensePerAccount MaxLicenseRunMinsPerAccount MaxLicenseRunMinsPerUser MaxMemoryPerAccount
    MaxMemoryRunMinsPerAccount MaxMemoryRunMinsPerUser MaxNodePerAccount MaxNodeRunMinsPerAccount
    MaxNodeRunMinsPerUser MaxSubmitJobsPerAccount MaxUnknownPerAccount MaxUnknownRunMinsPerAccount
    MaxUnknownRunMinsPerUser QOSGrpBB QOSGrpBBMinutes QOSGrpBBRunMinutes QOSGrpBilling QOSGrpBillingMinutes
    QOSGrpBillingRunMinutes QOSGrpCPUMinutesLimit QOSGrpCPURunMinutesLimit QOSGrpCpuLimit QOSGrpEnergy
    QOSGrpEnergyMinutes QOSGrpEnergyRunMinutes QOSGrpGRES QOSGrpGRESMinutes QOSGrpGRESRunMinutes QOSGrpJobsLimit
    QOSGrpLicense QOSGrpLicenseMinutes QOSGrpLicenseRunMinutes QOSGrpMemLimit QOSGrpMemoryMinutes
    QOSGrpMemoryRunMinutes QOSGrpNodeLimit QOSGrpNodeMinutes QOSGrpNodeRunMinutes QOSGrpSubmitJobsLimit
    QOSGrpUnknown QOSGrpUnknownMinutes QOSGrpUnknownRunMinutes QOSGrpWallLimit QOSMaxBBPerJob QOSMaxBBPerNode
    QOSMaxBBPerUser QOSMaxBillingMinutesPerJob QOSMaxBillingPerJob QOSMaxBillingPerNode QOSMaxBillingPerUser
    QOSMaxCpuMinutesPerJobLimit QOSMaxCpuPerJobLimit QOSMaxCpuPerNode QOSMaxCpuPerUserLimit
    QOSMaxEnergyMinutesPerJob QOSMaxEnergyPerJob QOSMaxEnergyPerNode QOSMaxEnergyPerUser QOSMaxGRESMinutesPerJob
    QOSMaxGRESPerJob QOSMaxGRESPerNode QOSMaxGRESPerUser QOSMaxJobsPerUserLimit QOSMaxLicenseMinutesPerJob
    QOSMaxLicensePerJob QOSMaxLicensePerUser QOSMaxMemoryMinutesPerJob QOSMaxMemoryPerJob QOSMaxMemoryPerNode
    QOSMaxMemoryPerUser QOSMaxNodeMinutesPerJob QOSMaxNodePerJobLimit QOSMaxNodePerUserLimit
    QOSMaxSubmitJobPerUserLimit QOSMaxUnknownMinutesPerJob QOSMaxUnknownPerJob QOSMaxUnknownPerNode
    QOSMaxUnknownPerUser QOSMaxWallDurationPerJobLimit QOSMinBB QOSMinBilling QOSMinCpuNotSatisfied QOSMinEnergy
    QOSMinGRES QOSMinLicense QOSMinMemory QOSMinNode QOSMinUnknown
""".split()

REASONS: Mapping[str, ReasonRow] = {
    **{word: ReasonRow(meaning, wait) for word, (meaning, wait) in _SINGLE.items()},
    **{word: row for word in LIMITS if (row := _limit(word)) is not None},
}
"""By Slurm's own word."""

_BY_PLAIN = {word.replace(" ", "_").casefold(): row for word, row in REASONS.items()}


def reason_row(reason: str) -> ReasonRow | None:
    """The row of what a listing gives as the reason; None for a word that is not known. Slurm writes some of them with
    more behind (`ReqNodeNotAvail, UnavailableNodes:gpu[1-2]`), and with _ for blanks."""
    text = reason.strip().strip("()").replace(" ", "_").casefold()
    if text in _BY_PLAIN:
        return _BY_PLAIN[text]
    return _BY_PLAIN.get(re.split(r"[,:(]", text, maxsplit=1)[0])


def waits_for(state: JobState, reason: str) -> Wait:
    """What a waiting job in this state and for this reason waits for."""
    row = reason_row(reason) if reason else None
    wait = row.wait if row is not None else Wait.ITS_TURN if not reason else Wait.ROOM
    if state in HOLDING_STATES and wait is not Wait.HELD:
        return Wait.HELD_BY_SLURM
    return wait
