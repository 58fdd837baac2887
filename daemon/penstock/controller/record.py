"""Writing down what was decided, before any of it is done (rule 6).

One transaction holds a tick's decisions, every change that needs only the database, and the intents of the effects on Slurm. What comes back
are those intents, complete: the executor needs no further look at the world. A decision that stands is one row: it is written when it is
made, and counted in memory until another one takes its place, so that a tick that finds nothing to do writes nothing.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath

from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.controller.folders import AgentSettings, Folders, agent_config
from penstock.core import decisions as acts
from penstock.core.decisions import EFFECTS, Action, Decision
from penstock.core.jobs import Submission
from penstock.core.model import Deployment, Replica
from penstock.core.plan import Plan
from penstock.slurm.script import JobPlan, render
from penstock.store.queries import attempts, decisions, deployments, replicas

TOKEN_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
"""Legal in job names everywhere, and without the letters that people mistake for digits."""
TOKEN_LENGTH = 20
"""100 bits: unique for ever without asking anybody."""

_SILENT = (acts.RecordJob, acts.RecordMissing)
"""Actions that repeat what Slurm says: they make no new row in the log when the sentence is the same."""


@dataclass(frozen=True, slots=True)
class Launch:
    """All that a submission needs besides its token."""

    submission: Submission
    config: Mapping[str, object]
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Intent:
    """One effect that is written down and may be carried out now."""

    decision_id: int
    position: int
    """Of the action among the decision's."""
    action: Action
    token: str = ""
    launch: Launch | None = None
    """With Submit and Resubmit."""


@dataclass(frozen=True, slots=True)
class World:
    """What PostgreSQL held when the tick looked."""

    deployments: Mapping[str, Deployment]
    replicas: Mapping[str, Replica]


@dataclass(slots=True)
class _Standing:
    row: int
    reason: str
    message: str
    last_at: datetime
    repeats: int = 0


class Recorder:
    """Keeps the decision log. One instance for a controller's life; it remembers which decisions stand."""

    def __init__(self, installation: str, folders: Folders, agents: AgentSettings, python: str) -> None:
        self._installation = installation
        self._folders = folders
        self._agents = agents
        self._python = python
        self._standing: dict[tuple[str, str], _Standing] = {}

    async def resume(self, connection: AsyncConnection) -> None:
        """Takes up the log where the last controller left it."""
        rows = await decisions.newest_per_subject(connection)
        self._standing = {
            (row.deployment, row.replica): _Standing(row.id, row.reason, row.message, row.last_at) for row in rows
        }

    async def record(
        self, connection: AsyncConnection, tick: str, now: datetime, plan: Plan, world: World
    ) -> tuple[Intent, ...]:
        """Writes the plan down. The caller commits, and carries the intents out only then."""
        intents: list[Intent] = []
        for decision in plan.decisions:
            row = await self._write(connection, tick, now, decision)
            for position, action in enumerate(decision.actions):
                if isinstance(action, EFFECTS):
                    intents.append(await self._intend(connection, now, row, position, action, world))
                else:
                    await _apply(connection, now, action)
        await replicas.write_statuses(connection, plan.replica_statuses, now)
        await deployments.write_statuses(connection, plan.deployment_statuses, now)
        return tuple(intents)

    def has_nothing_new(self, plan: Plan) -> bool:
        """Whether the plan only repeats what stands: then nothing need be written."""
        return not (plan.replica_statuses or plan.deployment_statuses) and all(
            not decision.actions and self._stands(decision) for decision in plan.decisions
        )

    def count(self, plan: Plan, now: datetime) -> None:
        """Counts the decisions of such a plan, in memory."""
        for decision in plan.decisions:
            standing = self._standing[decision.subject]
            standing.repeats += 1
            standing.last_at = now

    def _stands(self, decision: Decision) -> bool:
        standing = self._standing.get(decision.subject)
        return standing is not None and (standing.reason, standing.message) == (
            decision.reason.word,
            decision.message,
        )

    def forget_gone(self, subjects: frozenset[tuple[str, str]]) -> None:
        """Drops what is remembered of subjects that are not there any more."""
        for subject in self._standing.keys() - subjects:
            del self._standing[subject]

    async def flush(self, connection: AsyncConnection) -> None:
        """Writes the counts that are still in memory, at a clean stop."""
        for standing in self._standing.values():
            await self._count(connection, standing)

    async def _write(self, connection: AsyncConnection, tick: str, now: datetime, decision: Decision) -> int:
        standing = self._standing.get(decision.subject)
        acting = any(not isinstance(action, _SILENT) for action in decision.actions)
        if standing is not None and self._stands(decision) and not acting:
            standing.repeats += 1
            standing.last_at = now
            return standing.row
        if standing is not None:
            await self._count(connection, standing)
        row = await decisions.insert(connection, tick, decision, now)
        self._standing[decision.subject] = _Standing(row, decision.reason.word, decision.message, now)
        return row

    async def _count(self, connection: AsyncConnection, standing: _Standing) -> None:
        if standing.repeats:
            await decisions.bump(connection, standing.row, standing.repeats, standing.last_at)
            standing.repeats = 0

    async def _intend(
        self, connection: AsyncConnection, now: datetime, row: int, position: int, action: Action, world: World
    ) -> Intent:
        match action:
            case acts.Submit(replica_uid):
                token = new_token()
                launch = await self._launch(connection, world, replica_uid, token)
                await attempts.insert(
                    connection, replica_uid, token, launch.submission.script, _hash(launch.secret), now
                )
                return Intent(row, position, action, token, launch)
            case acts.Resubmit(replica_uid, token):
                launch = await self._launch(connection, world, replica_uid, token)
                await attempts.rekey(connection, token, _hash(launch.secret))
                return Intent(row, position, action, token, launch)
            case acts.Drain(token=token):
                await attempts.mark_draining(connection, token, now)
                return Intent(row, position, action, token)
            case acts.Cancel(token=token):
                return Intent(row, position, action, token)
            case _:
                return Intent(row, position, action)

    async def _launch(self, connection: AsyncConnection, world: World, replica_uid: str, token: str) -> Launch:
        replica = world.replicas[replica_uid]
        deployment = world.deployments[replica.deployment_uid]
        spec = deployment.spec
        if replica.revision != deployment.revision:
            spec = (await deployments.get_revision(connection, deployment.uid, replica.revision)).spec
        folder = PurePosixPath(self._folders.path(token))
        job = JobPlan(
            self._installation, deployment.name, replica.name, replica.revision, token, folder, self._python
        )
        config = agent_config(self._agents, deployment, replica, spec, token)
        return Launch(render(job, spec), config, secrets.token_urlsafe(32))


async def _apply(connection: AsyncConnection, now: datetime, action: Action) -> None:
    """The actions that are done once they are written."""
    match action:
        case acts.CreateReplica(deployment_uid, revision):
            await replicas.create(connection, deployment_uid, revision, now)
        case acts.Adopt(token, job):
            await attempts.record_job_id(connection, token, job.job_id, job)
        case acts.RecordJob(token, job):
            await attempts.record_job(connection, token, job)
        case acts.RecordMissing(token, since):
            await attempts.record_missing(connection, token, since)
        case acts.EndAttempt():
            await attempts.end(connection, action, now)
        case acts.Leave(replica_uid):
            await replicas.mark_leaving(connection, replica_uid, now)
        case acts.RemoveReplica(replica_uid):
            await replicas.remove(connection, replica_uid, now)
        case acts.RemoveDeployment(deployment_uid):
            await deployments.remove(connection, deployment_uid)
        case _:
            raise TypeError(f"{action} is not the database's alone")


def describe_actions(actions: Sequence[Action]) -> list[dict[str, str]]:
    """For the log: what each action is, and on what; done already where it is the database's alone."""
    return [
        {
            "action": _kebab(type(action).__name__),
            "target": _target(action),
            "outcome": "" if isinstance(action, EFFECTS) else "done",
        }
        for action in actions
    ]


def new_token() -> str:
    """A token that no attempt had or will have."""
    return "".join(secrets.choice(TOKEN_ALPHABET) for _ in range(TOKEN_LENGTH))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _kebab(name: str) -> str:
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("-")


def _target(action: Action) -> str:
    match action:
        case acts.Drain(job_id=job_id) | acts.Cancel(job_id=job_id) | acts.CancelOrphan(job_id=job_id):
            return f"job {job_id}"
        case acts.Adopt(job=job) | acts.RecordJob(job=job):
            return f"job {job.job_id}"
        case acts.Resubmit(token=token) | acts.EndAttempt(token=token) | acts.RecordMissing(token=token):
            return f"attempt {token}"
        case _:
            return ""
