"""The world as the planner sees it: deployments, replicas and their attempts, and what Slurm said, at one instant.

Everything is frozen, and everything is data: the time too. What PostgreSQL holds comes in as `Deployment`, `Replica`
and `Attempt`; what Slurm answered comes in as a `Listing`, and a Slurm that did not answer comes in as `Unknown`. The
rule guarded here: a source that failed is a value of its own, so that nothing can mistake it for an empty one.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from penstock.core.estimates import Start
from penstock.core.jobs import MESSAGE_TIMEOUT_S, Cluster, Job, JobState
from penstock.core.spec import Spec

JOB_NAME_PREFIX = "penstock-"
"""First part of the name of every job of ours: `penstock-<deployment>-<token>`."""

MARK = "penstock/1"
"""First word of the comment of every job of ours: `penstock/1 <installation> <token>`."""

TOKEN_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
"""Legal in job names everywhere, and without the letters that people mistake for digits."""
TOKEN_LENGTH = 20
"""Of 32 letters: 100 bits, unique for ever without asking anybody."""

_TOKEN = re.compile(f"[{TOKEN_ALPHABET}]{{{TOKEN_LENGTH}}}")
_DEPLOYMENT = re.compile(r"[A-Za-z0-9-]+")
"""What deployments' names consist of."""


class ReplicaState(enum.StrEnum):
    """Where a replica stands. What each means and the legal moves are in `penstock.core.states`."""

    WAITING = "waiting"
    SUBMITTING = "submitting"
    QUEUED = "queued"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    REMOVED = "removed"


class Phase(enum.StrEnum):
    """What the agent in the job last said of itself."""

    NONE = "none"
    REGISTERED = "registered"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class AdapterStanding:
    """How an agent stands with a LoRA adapter, as it said last."""

    name: str
    path: str
    loaded: bool = False
    """The engine has it, from that path."""
    message: str = ""
    """Why it is not loaded; empty: it is, or is about to be."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One submission of a replica to Slurm. Live until `ended_at` is set; a replica has at most one live attempt."""

    token: str
    """20 characters, unique for ever; the end of the job's name."""
    number: int
    """Counts the replica's attempts from 1."""
    intended_at: datetime
    """When the intent was committed: before the submission."""
    submitted_at: datetime | None = None
    """When the last call of sbatch was about to begin, or, where no answer came, given up. None: it was never called,
    as far as this database remembers."""
    refusal: str = ""
    """Slurm's sentence, where it said no to the submission: there is no job and will be none."""
    job_id: int | None = None
    """None: Slurm has not been seen to have it."""
    job: Job | None = None
    """As the controller last recorded it, for showing; the planner reads the listing."""
    running_since: datetime | None = None
    """Since when the job's processes have been seen to run without a halt, by our own clock: Slurm's may be another."""
    halted_since: datetime | None = None
    """Since when the job has been seen halted (suspended), by the same clock; None: it is not."""
    missing_since: datetime | None = None
    """Since when complete listings have not had the job."""
    phase: Phase = Phase.NONE
    phase_message: str = ""
    endpoint: str = ""
    """host:port of the agent; empty until it registered."""
    restart_count: int | None = None
    """Which run of the job the agent's words are of (SLURM_RESTART_COUNT); None: no agent has registered."""
    registered_at: datetime | None = None
    ready_at: datetime | None = None
    reported_at: datetime | None = None
    drain_at: datetime | None = None
    """When it was decided that it should drain."""
    signalled_at: datetime | None = None
    """When its job was told to drain (SIGTERM)."""
    cancelled_at: datetime | None = None
    """When its job was told to end (scancel)."""
    withdrawn_at: datetime | None = None
    """When it was last decided that its job, if it still waits, is withdrawn for the next placement."""
    handover_at: datetime | None = None
    """Since when it has been decided that a successor is to take over before its job's time is up."""
    placement: int = 0
    """Which of its replica's placements it was submitted to, from 0."""
    packed: bool = False
    """Its submission asked for nodes that run other replicas of its deployment, or, where they are spread, stayed away
    from such; and, once it has ended: it was withdrawn because there was no room for that."""
    ended_at: datetime | None = None
    end_message: str = ""
    """One sentence: how it ended."""
    exit_code: int | None = None
    last_words: str = ""
    adapters: tuple[AdapterStanding, ...] = ()

    @property
    def live(self) -> bool:
        return self.ended_at is None


@dataclass(frozen=True, slots=True)
class Replica:
    """One copy of a deployment's model."""

    uid: str
    deployment_uid: str
    name: str
    """`<deployment>-<number>`."""
    number: int
    revision: int
    state: ReplicaState
    message: str
    since: datetime
    created_at: datetime
    attempt: Attempt | None = None
    """The live attempt, or the last one."""
    failures: int = 0
    """Attempts in a row that ended without being asked to."""
    next_attempt_at: datetime | None = None
    burst: bool = False
    """It is one of those beyond the guaranteed base, and runs in `Spec.burst.placements`."""
    placement: int = 0
    """Which of its placements the next attempt is submitted to, from 0."""
    leaving: bool = False
    """It is to go and not to come back: scaled away, replaced, or its deployment deleted."""
    drain_timeout_s: int | None = None
    """Its own revision's; None: its deployment's."""
    removed_at: datetime | None = None

    @property
    def live_attempt(self) -> Attempt | None:
        return self.attempt if self.attempt is not None and self.attempt.live else None

    @property
    def has_served(self) -> bool:
        """Whether its last attempt was ready."""
        its = self.attempt
        return self.state is ReplicaState.READY or (its is not None and its.ready_at is not None)


@dataclass(frozen=True, slots=True)
class Failure:
    """A recorded attempt that ended unasked, and for which its revision or its node may be to blame."""

    deployment: str
    revision: int
    replica: str
    ended_at: datetime
    state: JobState | None
    """How its job ended; of one that was lost, how it was last listed (RUNNING, mostly). None: Slurm never had one."""
    nodes: tuple[str, ...] = ()
    """Where it ran, each by its name."""


class ConditionStatus(enum.StrEnum):
    """Unknown is a status of its own: the controller could not find out."""

    TRUE = "true"
    FALSE = "false"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Condition:
    """One aspect of a deployment, in Kubernetes' shape: a fact about now, why, and since when."""

    type: str
    status: ConditionStatus
    reason: str
    message: str
    since: datetime


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """What the controller must remember of a deployment's rollouts. Nobody else writes it."""

    stable_revision: int = 0
    """The newest revision that all wanted replicas were ready of; 0: none was yet."""
    canary_since: datetime | None = None
    """Since when the canary of the current revision has been wholly ready, and its rollout not paused; the bake time
    counts from here."""
    baked_revision: int = 0
    """Canaries of revisions up to this one have stood their bake time."""
    trusted_revisions: tuple[int, ...] = ()
    """Revisions newer than the stable one that were rolled out to all replicas, without a canary or past it, have
    replicas that served, and have not failed: theirs are kept as the stable one's are when yet another one comes."""
    failed_revision: int = 0
    """The last revision whose rollout was stopped; 0: none was."""
    failed_message: str = ""
    cannot_go_back: int = 0
    """The last failed revision from which going back by itself was tried and cannot be; the message says why."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A named model that someone wants served, and what the controller last said of it."""

    uid: str
    name: str
    spec: Spec
    generation: int
    resource_version: int
    revision: int
    """The number of the revision that `spec` is."""
    created_at: datetime
    labels: Mapping[str, str] = field(default_factory=dict)
    paused: bool = False
    rollout_paused: bool = False
    """Only its rollouts stand still: replicas are kept as they are, and replaced when they die."""
    promoted_revision: int = 0
    """Canaries of revisions up to this one were promoted by somebody."""
    rollout: RolloutRecord = RolloutRecord()
    deleted_at: datetime | None = None
    force_delete: bool = False
    observed_generation: int = 0
    conditions: tuple[Condition, ...] = ()

    @property
    def served_name(self) -> str:
        return self.spec.model.served_name or self.name

    @property
    def model_names(self) -> tuple[str, ...]:
        """All that clients may put into `model`: its own name, its served name, and its adapters'."""
        adapters = (adapter.name for adapter in self.spec.model.adapters)
        return tuple(dict.fromkeys((self.name, self.served_name, *adapters)))


class RevisionEventType(enum.StrEnum):
    """What somebody did about a revision, or what became of it, after it was made."""

    PROMOTED = "promoted"
    """Its canary: by hand, or because it stood its bake time."""
    COMPLETED = "completed"
    """All wanted replicas were ready of it."""
    FAILED = "failed"
    """Its rollout was stopped."""
    UNDONE = "undone"
    """An earlier one was made the wanted one again in its place."""
    ROLLOUTS_PAUSED = "rollouts_paused"
    ROLLOUTS_RESUMED = "rollouts_resumed"
    PAUSED = "paused"
    """The whole deployment, while this one was the current one."""
    RESUMED = "resumed"


@dataclass(frozen=True, slots=True)
class RevisionEvent:
    """A line of a revision's history."""

    type: RevisionEventType
    at: datetime
    author: str = ""
    """Who, as the client said; `penstock` where the controller did by itself; empty: nobody was named."""
    cause: str = ""
    """Why, in the author's words, or what made it."""


@dataclass(frozen=True, slots=True)
class Revision:
    """An immutable snapshot of a deployment's spec."""

    deployment_uid: str
    number: int
    spec: Spec
    created_at: datetime
    author: str = ""
    """Who made it, as the client said; empty: it did not say."""
    cause: str = ""
    """Why, in the author's words, or what made it: a rollback, a restart."""
    proven: bool = False
    """It was promoted, stood its bake time or ran everywhere, and has not failed since: going back to it needs no
    canary."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Slurm answered in full: these are all the jobs of our user that it remembers."""

    jobs: tuple[Job, ...]
    answers_since: datetime | None = None
    """Since when it has answered whenever it was asked, and was asked again and again; None: for long."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Slurm did not answer, or not in full."""

    error: str
    since: datetime
    """When it last stopped answering."""


@dataclass(frozen=True, slots=True)
class Vain:
    """An effect that was tried, and of which nothing has come yet."""

    times: int
    last_at: datetime
    why: str
    """What was said last; empty: it was done, and what it was to end is there all the same."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A time in which somebody heard the agents' reports, without a break."""

    since: datetime
    until: datetime
    """The last moment of which that is known."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The world at `now`."""

    now: datetime
    installation: str
    """Which Penstock we are; other installations' jobs on the same cluster are not ours."""
    deployments: tuple[Deployment, ...]
    replicas: tuple[Replica, ...]
    """All that are not removed."""
    slurm: Listing | Unknown
    message_timeout_s: int = MESSAGE_TIMEOUT_S
    """Slurm's MessageTimeout; doubt about a submission lasts longer than this."""
    heard: Heard | None = None
    """When the agents' reports were heard; None: nobody hears them now."""
    failures: tuple[Failure, ...] = ()
    """Of the last hour."""
    starts: Mapping[str, tuple[Start, ...]] = field(default_factory=dict)
    """Deployment's uid -> how the last of its attempts that have ended came to serve."""
    history: Mapping[str, Job] = field(default_factory=dict)
    """Attempt's token -> what accounting says of its job, where that has vanished; none: not asked, or not known."""
    cluster: Cluster | None = None
    """What nodes there are; None: not asked, or it did not answer."""
    strays_since: Mapping[int, datetime] = field(default_factory=dict)
    """Job id -> when a listing first showed the job with our mark and without a live attempt; one that is not here was
    seen only now. By our own clock, since Slurm's may be another."""
    orphan_grace_s: int | None = None
    """How long such a job is left alone; None: `orphans.ORPHAN_GRACE_S`."""
    known_tokens: frozenset[str] = frozenset()
    """Tokens of ended attempts whose jobs appear in the listing: theirs, not orphans."""
    vain: Mapping[str, Vain] = field(default_factory=dict)
    """Effects that have come to nothing, by `pace.key`."""
    clock_off_s: int = 0
    """How far our host's clock is ahead of the database's, as it was last told of; 0: they agree."""


def job_name(deployment: str, token: str) -> str:
    """Unique for ever, as the token is."""
    return f"{JOB_NAME_PREFIX}{deployment}-{token}"


def job_comment(installation: str, token: str) -> str:
    """The mark, by which a listing shows whose a job is."""
    return f"{MARK} {installation} {token}"


def marked_token(job: Job, installation: str) -> str | None:
    """The attempt's token if the job bears this installation's mark in its comment and its name agrees; else None.

    A mark whose name does not agree, or that is not written exactly as we write it, was copied or forged: such a job is
    not ours and is never touched.
    """
    words = job.comment.split(" ")
    if len(words) != 3 or words[:2] != [MARK, installation] or not _TOKEN.fullmatch(words[2]):
        return None
    token = words[2]
    ends = job.name.startswith(JOB_NAME_PREFIX) and job.name.endswith(f"-{token}")
    deployment = job.name[len(JOB_NAME_PREFIX) : -len(token) - 1]
    return token if ends and _DEPLOYMENT.fullmatch(deployment) else None
