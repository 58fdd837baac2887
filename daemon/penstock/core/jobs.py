"""A Slurm job, as the rest of Penstock sees it.

Slurm's own words, made into values: states of the closed list in `slurm_words`, times as aware UTC datetimes, amounts
with their unit in the name. Nothing here knows how a job is read from a cluster or written to one; `penstock.slurm`
does that, and hands these values to the planner.

The rule guarded here: a state that this release does not know is `JobState.UNKNOWN`, and is neither live nor
ended. Unknown is not absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from penstock.core.slurm_words import ENDED_STATES, WAITING_STATES
from penstock.core.slurm_words import JobState as JobState

MESSAGE_TIMEOUT_S = 100
"""Stands for Slurm's MessageTimeout until Slurm has said it. The default is 10; slurmctld warns of more than 100, so a
doubt that counts with it is long enough at any site that heeds the warning."""


NO_LIMIT_S = 364 * 86_400
"""Slurm gives a job without a limit an end that is a year after its start."""
EARLY_S = 10
"""An end that much before the limit is no rounding."""


@dataclass(frozen=True, slots=True)
class Job:
    """One line of Slurm's queue."""

    job_id: int
    name: str
    comment: str
    state: JobState
    state_text: str = ""
    """What Slurm said, kept for the reader where `state` is UNKNOWN."""
    reason: str = ""
    """Slurm's reason, in its own spelling: why the job waits, or why it ended. Empty when Slurm says None."""
    partition: str = ""
    nodes: str = ""
    """Slurm's own compressed node list, such as `gpu[01-03]`; empty while the job waits."""
    submitted_at: datetime | None = None
    started_at: datetime | None = None
    """When it started; for a waiting job Slurm's estimate, which may be missing."""
    ends_at: datetime | None = None
    time_limit_s: int | None = None
    """None: unlimited, or not known yet."""
    exit_code: int | None = None
    """The script's exit code, once it has ended."""
    exit_signal: int | None = None
    restarts: int = 0
    """How often Slurm has requeued this job. The job id stays; the count tells the runs apart."""

    @property
    def ended(self) -> bool:
        return self.state in ENDED_STATES

    @property
    def taken_early(self) -> bool:
        """Whether the job runs and Slurm will end it before its time limit: so a preemption's grace time shows. As that
        begins the job is shown as SIGNALING for a moment."""
        if (
            self.state not in (JobState.RUNNING, JobState.SIGNALING)
            or self.started_at is None
            or self.ends_at is None
        ):
            return False
        limit_s = NO_LIMIT_S if self.time_limit_s is None else self.time_limit_s
        return self.ends_at < self.started_at + timedelta(seconds=limit_s - EARLY_S)

    @property
    def waiting(self) -> bool:
        return self.state in WAITING_STATES


@dataclass(frozen=True, slots=True)
class Submission:
    """Everything Slurm is told when a replica is submitted. Holds no secret: Slurm shows or stores all of it."""

    name: str
    """Unique for ever (it ends in the attempt's token), for `--dependency=singleton` and for finding it again."""
    comment: str
    script: str
    """The whole batch script, shebang first."""
    work_dir: str
    output: str
    """Where standard output and error go; its folder exists already (Slurm fails the job otherwise)."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclude_nodes: tuple[str, ...] = ()
    require_nodes: tuple[str, ...] = ()
    """It runs on all of these, and waits until it can."""
    time_limit_s: int | None = None
    """None: the partition's default. Rounded up to whole minutes, as Slurm does."""
    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int | None = None
    time_min_s: int | None = None
    """Slurm may start it with a shorter limit than asked for, but with none below this (`--time-min`)."""
    memory_per_node_mib: int | None = None
    gres: str | None = None
    """Generic resources a node, as in `--gres`: `gpu:2`, `gpu:a100:4`."""
    exclusive: bool = False
    warn_signal_s: int | None = None
    """Send the batch shell SIGTERM this long before the time limit (`--signal=B:TERM@N`)."""
    singleton: bool = True
    extra_options: Mapping[str, str] = field(default_factory=dict)
    """Further long options of sbatch without their dashes; an empty value means a flag."""


@dataclass(frozen=True, slots=True)
class Partition:
    """One of Slurm's partitions, with the limits that a job in it must keep."""

    name: str
    up: bool
    is_default: bool
    max_time_s: int | None
    """None: no limit."""
    default_time_s: int | None
    max_nodes: int | None
    total_nodes: int
    total_cpus: int
    nodes: tuple[str, ...]
    allowed_accounts: tuple[str, ...] | None = None
    """None: all."""
    allowed_qos: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """One compute node: what it has, what of that is taken, and its state in Slurm's words."""

    name: str
    state: str
    """Slurm's own words, base state first, flags joined by `+`: `IDLE`, `DOWN+DRAIN`."""
    cpus: int
    memory_mib: int
    gpus: Mapping[str, int]
    """GPU type -> how many; the type is empty where the site names none."""
    partitions: tuple[str, ...]
    features: tuple[str, ...] = ()
    reason: str = ""
    cpus_allocated: int = 0
    memory_allocated_mib: int = 0
    gpus_allocated: int = 0

    @property
    def usable(self) -> bool:
        """Whether Slurm may put a job there now or later without a human's help."""
        return not self._words & {
            "DOWN",
            "DRAIN",
            "DRAINED",
            "DRAINING",
            "FAIL",
            "FAILING",
            "NOT_RESPONDING",
            "ERROR",
        }

    @property
    def leaving(self) -> bool:
        """Whether somebody wants it back: it takes no new job, and the ones that it has go on."""
        words = self._words
        gone = words & {"DOWN", "NOT_RESPONDING", "ERROR"}
        return not gone and bool(words & {"DRAIN", "DRAINED", "DRAINING", "FAIL", "FAILING"})

    @property
    def _words(self) -> set[str]:
        return set(self.state.replace("*", "").upper().split("+"))

    @property
    def total_gpus(self) -> int:
        return sum(self.gpus.values())


@dataclass(frozen=True, slots=True)
class Maintenance:
    """A reservation with Slurm's flag MAINT: from its beginning on nobody's jobs run on its nodes."""

    name: str
    begins_at: datetime
    """By Slurm's clock, as all its times."""
    ends_at: datetime
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UnknownAccounts:
    """Accounting (slurmdbd) did not say; slurmctld runs on without it, and refuses what it knows to be wrong."""

    error: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the cluster can run, as of one instant."""

    name: str
    slurm_version: str
    """Such as `22.05.8`."""
    partitions: tuple[Partition, ...]
    nodes: tuple[Node, ...]
    accounts: tuple[str, ...] | UnknownAccounts | None = None
    """Accounts this user may charge; None where the site keeps no accounting, and then any account is accepted."""
    message_timeout_s: int = MESSAGE_TIMEOUT_S
    """Slurm's MessageTimeout: how long a reply may take. Doubt about a submission lasts longer than this."""
    maintenance: tuple[Maintenance, ...] = ()
    """What is announced or goes on, by its beginning."""

    @property
    def leaving(self) -> frozenset[str]:
        """Names of the nodes that take no new job although the ones that they have go on: drained, or failing."""
        return frozenset(node.name for node in self.nodes if node.leaving)
