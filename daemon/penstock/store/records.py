"""Stored values that are no part of the world the planner sees: what the log, the agents and the readers need besides.

Frozen, like core's. Nothing here touches the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from penstock.core import decisions as core
from penstock.core.model import Attempt, Deployment, Replica
from penstock.core.routing import engine_key


@dataclass(frozen=True, slots=True)
class DecidedAction:
    """One effect that a decision asked for, and what came of it."""

    action: str
    """`submit`, `drain`, `cancel`, ..."""
    target: str
    """Such as `job 4711` or the attempt's token."""
    outcome: str = ""
    """Empty: not carried out yet. Else `done`, or the error in one sentence."""


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """A decision as the log holds it. Made again tick after tick, it stays one record, and `count` and
    `last_at` move."""

    id: int
    tick: str
    deployment: str
    replica: str
    reason: str
    """`core.decisions.Reason.word`; text, because the log outlives the releases that wrote it."""
    message: str
    actions: tuple[DecidedAction, ...]
    count: int
    first_at: datetime
    last_at: datetime

    @property
    def subject(self) -> tuple[str, str]:
        return self.deployment, self.replica


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a replica is, by its agent's last report."""

    running_requests: int = 0
    waiting_requests: int = 0
    kv_cache_usage: float = 0.0
    """0 to 1."""
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0


@dataclass(frozen=True, slots=True)
class RevisionCount:
    """How many of a deployment's replicas run a revision. Removed replicas are not counted."""

    revision: int
    replicas: int
    live: int
    """With a live attempt."""
    ready: int


@dataclass(frozen=True, slots=True)
class World:
    """The planner's half of the observation that PostgreSQL holds."""

    deployments: tuple[Deployment, ...]
    replicas: tuple[Replica, ...]
    """All that are not removed, each with its live attempt or its last one."""


@dataclass(frozen=True, slots=True)
class Agent:
    """Whom an agent's token speaks for. The caller compares the secret before it believes anything else."""

    secret_hash: str
    attempt: Attempt
    restart_count: int | None
    """SLURM_RESTART_COUNT of the run that registered last."""
    replica: Replica
    deployment: str
    deployment_uid: str
    deployment_secret: str
    """What the front door presents to this deployment's agents."""

    @property
    def engine_key(self) -> str:
        """What it presents to this attempt's engine."""
        return engine_key(self.deployment_secret, self.attempt.token)


@dataclass(frozen=True, slots=True)
class Member:
    """A process of ours that beats in the database."""

    role: str
    id: str
    address: str
    open_since: datetime
    """Since when it has been there without a gap."""
    seen_at: datetime


def decided(action: core.Action, names: Mapping[str, str] | None = None) -> DecidedAction:
    """An action of the planner as the log shows it. `names`: what replicas and deployments are called, by uid."""

    def name(uid: str) -> str:
        return (names or {}).get(uid, uid)

    match action:
        case core.CreateReplica(revision=revision):
            return DecidedAction("create-replica", f"revision {revision}")
        case core.Submit(replica_uid=uid):
            return DecidedAction("submit", f"replica {name(uid)}")
        case core.Resubmit(token=token):
            return DecidedAction("resubmit", f"attempt {token}")
        case core.Adopt(job=job):
            return DecidedAction("adopt", f"job {job.job_id}")
        case core.RecordJob(job=job):
            return DecidedAction("record-job", f"job {job.job_id}")
        case core.RecordMissing(token=token):
            return DecidedAction("record-missing", f"attempt {token}")
        case core.BeginHandover(token=token):
            return DecidedAction("begin-handover", f"attempt {token}")
        case core.EndAttempt(token=token):
            return DecidedAction("end-attempt", f"attempt {token}")
        case core.Drain(job_id=job_id):
            return DecidedAction("drain", f"job {job_id}")
        case core.Cancel(job_id=job_id):
            return DecidedAction("cancel", f"job {job_id}")
        case core.Withdraw(job_id=job_id):
            return DecidedAction("withdraw", f"job {job_id}")
        case core.CancelOrphan(job_id=job_id):
            return DecidedAction("cancel-orphan", f"job {job_id}")
        case core.Leave(replica_uid=uid):
            return DecidedAction("leave", f"replica {name(uid)}")
        case core.RemoveReplica(replica_uid=uid):
            return DecidedAction("remove-replica", f"replica {name(uid)}")
        case core.RecordRollout(deployment_uid=uid):
            return DecidedAction("record-rollout", f"deployment {name(uid)}")
        case core.GoBack(to=to):
            return DecidedAction("go-back", f"revision {to}")
        case core.RemoveDeployment(deployment_uid=uid):
            return DecidedAction("remove-deployment", f"deployment {name(uid)}")
