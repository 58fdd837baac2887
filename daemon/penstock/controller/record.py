"""Writing down what was decided, before any of it is done (rule 6).

One transaction holds a tick's decisions, every change that needs only the database, and the intents of the
effects on Slurm. What comes back are those intents, complete: the executor needs no further look at the
world. A decision that stands is one row: it is written when it is made, and counted in memory until another
one takes its place, so that a tick that finds nothing to do writes nothing. One that tries the same effect again is
counted in its row, too, whose outcome is that of the last try.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import PurePosixPath

from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.controller.folders import AgentSettings, Folders, agent_config
from penstock.core import decisions as acts
from penstock.core.decisions import EFFECTS, Action, Decision
from penstock.core.jobs import Submission
from penstock.core.model import TOKEN_ALPHABET, TOKEN_LENGTH, Deployment, Replica
from penstock.core.placements import placement_of
from penstock.core.plan import Plan
from penstock.core.walltime import job_number, time_limit_s
from penstock.slurm.script import JobPlan, render
from penstock.store.queries import attempts, decisions, deployments, replicas, revisions
from penstock.store.records import DecidedAction, DecisionRecord, decided

_SILENT = acts.RecordJob | acts.RecordMissing | acts.RecordRollout
"""Actions that only remember: they make no new row in the log when the sentence is the same."""


_AGAIN = acts.Resubmit | acts.Drain | acts.Cancel | acts.Withdraw | acts.CancelOrphan | _SILENT
"""Actions that may be said in the row of an earlier try. A Submit is a new attempt each time."""


@dataclass(frozen=True, slots=True)
class Launch:
    """All that a submission needs besides its token."""

    submission: Submission
    config: Mapping[str, object]
    secret: str = field(repr=False)
    """For the attempt's folder, unless one lies there already."""


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
    asked_before: bool = False
    """With Resubmit: whether Slurm may have been asked for the attempt already."""


@dataclass(frozen=True, slots=True)
class World:
    """What PostgreSQL held when the tick looked."""

    deployments: Mapping[str, Deployment]
    replicas: Mapping[str, Replica]

    @property
    def names(self) -> Mapping[str, str]:
        """What they are called, by uid."""
        return {uid: one.name for known in (self.deployments, self.replicas) for uid, one in known.items()}


@dataclass(slots=True)
class _Standing:
    row: int
    reason: str
    message: str
    last_at: datetime
    actions: tuple[tuple[str, str], ...]
    """Each with its target."""
    repeats: int = 0

    def repeat(self, now: datetime) -> None:
        self.repeats += 1
        self.last_at = now

    def take(self) -> list[tuple[int, int, datetime]]:
        """What is to be added to the row: nothing, or its id, a count and the last time."""
        repeats, self.repeats = self.repeats, 0
        return [(self.row, repeats, self.last_at)] if repeats else []


def _standing(row: DecisionRecord) -> _Standing:
    actions = tuple((one.action, one.target) for one in row.actions)
    return _Standing(row.id, row.reason, row.message, row.last_at, actions)


@dataclass(slots=True)
class _Batch:
    """What a tick writes of many at once: a thousand replicas take as many statements as one."""

    replicas: Counter[tuple[str, int, bool]] = field(default_factory=Counter)
    """Deployment's uid, revision and whether they are burst replicas -> how many are made."""
    attempts: list[attempts.NewAttempt] = field(default_factory=list)
    jobs: list[acts.RecordJob] = field(default_factory=list)

    def takes(self, action: Action) -> bool:
        """Whether the action is written with the batch."""
        match action:
            case acts.CreateReplica(deployment_uid, revision, burst):
                self.replicas[deployment_uid, revision, burst] += 1
            case acts.RecordJob():
                self.jobs.append(action)
            case _:
                return False
        return True

    def attempt_of(self, intent: Intent) -> None:
        """With the intent of a first submission its attempt is written."""
        if isinstance(intent.action, acts.Submit) and intent.launch is not None:
            script, secret_hash = intent.launch.submission.script, hash_of(intent.launch.secret)
            action = intent.action
            self.attempts.append(
                attempts.NewAttempt(
                    action.replica_uid,
                    intent.token,
                    script,
                    secret_hash,
                    action.placement,
                    packed=acts.packed(action),
                )
            )

    async def write(self, connection: AsyncConnection, now: datetime) -> None:
        await replicas.create_many(connection, self.replicas, now)
        await attempts.insert_many(connection, self.attempts, now)
        await attempts.record_jobs(connection, self.jobs)


class Recorder:
    """Keeps the decision log. One instance for a controller's life; it remembers which decisions stand."""

    def __init__(
        self,
        installation: str,
        folders: Folders,
        agents: AgentSettings,
        python: str,
        new_token: Callable[[], str] | None = None,
    ) -> None:
        """`new_token`: 20 letters of TOKEN_ALPHABET that were never given before; None: drawn by chance."""
        self._installation = installation
        self._folders = folders
        self._agents = agents
        self._python = python
        self._new_token = new_token or draw_token
        self._standing: dict[tuple[str, str], _Standing] = {}

    async def resume(self, connection: AsyncConnection) -> None:
        """Takes up the log where the last controller left it."""
        newest = await decisions.newest_per_subject(connection)
        before, self._standing = self._standing, {}
        for subject, row in newest.items():
            its = _standing(row)
            old = before.get(subject)
            # What was counted before an outage has not been written.
            if old is not None and (old.row, old.reason, old.message) == (its.row, its.reason, its.message):
                its.repeats, its.last_at = old.repeats, max(old.last_at, its.last_at)
            self._standing[subject] = its

    async def record(
        self, connection: AsyncConnection, tick: str, now: datetime, plan: Plan, world: World
    ) -> tuple[Intent, ...]:
        """Writes the plan down. The caller commits, and carries the intents out only then."""
        await self._log(connection, tick, now, plan, world.names)
        intents: list[Intent] = []
        batch = _Batch()
        for decision in plan.decisions:
            for position, action in enumerate(decision.actions):
                if isinstance(action, EFFECTS):
                    row = self._standing[decision.subject].row
                    intent = await self._intend(connection, now, row, position, action, world)
                    batch.attempt_of(intent)
                    intents.append(intent)
                elif not batch.takes(action):
                    await _apply(connection, now, action)
        await batch.write(connection, now)
        await replicas.write_status(connection, plan.replica_statuses, now)
        await deployments.write_status(connection, plan.deployment_statuses)
        return tuple(intents)

    def has_nothing_new(self, plan: Plan) -> bool:
        """Whether the plan only repeats what stands: then nothing need be written."""
        return not (plan.replica_statuses or plan.deployment_statuses) and all(
            not decision.actions and self._stands(decision) for decision in plan.decisions
        )

    def count(self, plan: Plan, now: datetime) -> None:
        """Counts the decisions of such a plan, in memory."""
        for decision in plan.decisions:
            self._standing[decision.subject].repeat(now)

    def _stands(self, decision: Decision) -> bool:
        """Whether the log says it already. A decision that acts is always written."""
        return self._is_said(decision) and all(isinstance(action, _SILENT) for action in decision.actions)

    def _is_said(self, decision: Decision) -> bool:
        standing = self._standing.get(decision.subject)
        said = (decision.reason.word, decision.message)
        return standing is not None and (standing.reason, standing.message) == said

    def _is_tried_again(self, decision: Decision, names: Mapping[str, str]) -> bool:
        """Whether the log says it already, with the very same effects."""
        if not self._is_said(decision) or not all(isinstance(one, _AGAIN) for one in decision.actions):
            return False
        shown = [decided(action, names) for action in decision.actions]
        return self._standing[decision.subject].actions == tuple((one.action, one.target) for one in shown)

    def forget_gone(self, subjects: frozenset[tuple[str, str]]) -> None:
        """Drops what is remembered of subjects that are not there any more."""
        for subject in self._standing.keys() - subjects:
            del self._standing[subject]

    async def flush(self, connection: AsyncConnection) -> None:
        """Writes the counts that are still in memory. The caller commits."""
        counted = [(standing, standing.take()) for standing in self._standing.values()]
        try:
            await decisions.bump(connection, [count for _, taken in counted for count in taken])
        except BaseException:
            for standing, taken in counted:
                standing.repeats += sum(times for _, times, _ in taken)
            raise

    async def _log(
        self,
        connection: AsyncConnection,
        tick: str,
        now: datetime,
        plan: Plan,
        names: Mapping[str, str],
    ) -> None:
        """Writes the decisions that are new or act; the others are counted."""
        fresh: list[Decision] = []
        again: list[_Standing] = []
        anew: dict[int, tuple[DecidedAction, ...]] = {}
        for decision in plan.decisions:
            if self._stands(decision):
                self._standing[decision.subject].repeat(now)
            elif self._is_tried_again(decision, names):
                standing = self._standing[decision.subject]
                standing.repeat(now)
                again.append(standing)
                anew[standing.row] = decisions.written(decision, names)
            else:
                fresh.append(decision)
        replaced = [
            self._standing[decision.subject] for decision in fresh if decision.subject in self._standing
        ]
        # An effect's decision is in the database before it, the count of its tries included (rule 6).
        counted = [count for standing in (*replaced, *again) for count in standing.take()]
        await decisions.bump(connection, counted, anew)
        for row in await decisions.insert(connection, tick, fresh, now, names):
            self._standing[row.subject] = _standing(row)

    async def _intend(
        self,
        connection: AsyncConnection,
        now: datetime,
        row: int,
        position: int,
        action: Action,
        world: World,
    ) -> Intent:
        match action:
            case acts.Submit():
                token = self._new_token()
                launch = await self._launch(connection, world, action, token)
                return Intent(row, position, action, token, launch)
            case acts.Resubmit(replica_uid, token):
                launch = await self._launch(connection, world, action, token)
                live = world.replicas[replica_uid].live_attempt
                asked_before = live is not None and live.submitted_at is not None
                return Intent(row, position, action, token, launch, asked_before)
            case acts.Drain(token=token):
                await attempts.mark_draining(connection, token, now)
                return Intent(row, position, action, token)
            case acts.Withdraw(token=token):
                await attempts.mark_withdrawn(connection, token, now)
                return Intent(row, position, action, token)
            case acts.Cancel(token=token):
                return Intent(row, position, action, token)
            case _:
                return Intent(row, position, action)

    async def _launch(
        self,
        connection: AsyncConnection,
        world: World,
        action: acts.Submit | acts.Resubmit,
        token: str,
    ) -> Launch:
        replica = world.replicas[action.replica_uid]
        deployment = world.deployments[replica.deployment_uid]
        spec = deployment.spec
        if replica.revision != deployment.revision:
            spec = (await revisions.get(connection, deployment.uid, replica.revision)).spec
        # Where fallbacks and burst replicas run is no part of a revision. What is submitted again goes where it went.
        again = replica.live_attempt if isinstance(action, acts.Resubmit) else None
        index = action.placement if isinstance(action, acts.Submit) else again.placement if again else 0
        wanted = deployment.spec
        chosen = placement_of(replace(spec, fallbacks=wanted.fallbacks, burst=wanted.burst), replica, index)
        spec = replace(spec, placement=chosen, fallbacks=())
        folder = PurePosixPath(self._folders.path(token))
        job = JobPlan(
            self._installation, deployment.name, replica.name, replica.revision, token, folder, self._python
        )
        config = agent_config(self._agents, deployment, replica, spec, token)
        last = replica.attempt.number if replica.attempt is not None else 0
        number = job_number(replica, last if isinstance(action, acts.Resubmit) else last + 1)
        submission = render(
            job,
            spec,
            action.exclude,
            require=action.beside,
            time_limit_s=time_limit_s(spec, number, action.bounds),
            time_min_s=action.bounds.at_least_s,
        )
        return Launch(submission, config, secrets.token_urlsafe(32))


async def _apply(connection: AsyncConnection, now: datetime, action: Action) -> None:
    """The actions that are done once they are written."""
    match action:
        case acts.Adopt(token, job):
            await attempts.record_job_id(connection, token, job.job_id, job)
        case acts.RecordMissing(token, since):
            await attempts.record_missing(connection, token, since)
        case acts.BeginHandover(token):
            await attempts.mark_handed_over(connection, token, now)
        case acts.EndAttempt() as end:
            await attempts.end(
                connection,
                end.token,
                message=end.message,
                exit_code=end.exit_code,
                job=end.job,
                failures=end.failures,
                next_attempt_at=end.next_attempt_at,
                now=now,
                failed=end.failed,
                placement=end.placement,
                found_no_room=end.found_no_room,
            )
        case acts.Leave(replica_uid):
            await replicas.mark_leaving(connection, replica_uid)
        case acts.RemoveReplica(replica_uid):
            await replicas.remove(connection, replica_uid, now)
        case acts.RecordRollout(deployment_uid, rollout):
            await deployments.record_rollout(connection, deployment_uid, rollout, now)
        case acts.GoBack(deployment_uid, revision, to, rollout, cause):
            await deployments.go_back(
                connection, deployment_uid, revision, to, rollout=rollout, cause=cause, now=now
            )
        case acts.RemoveDeployment(deployment_uid):
            await deployments.remove(connection, deployment_uid)
        case _:
            raise TypeError(f"{action} is not the database's alone")


def draw_token() -> str:
    """A token that no attempt had or will have."""
    return "".join(TOKEN_ALPHABET[byte % len(TOKEN_ALPHABET)] for byte in secrets.token_bytes(TOKEN_LENGTH))


def hash_of(secret: str) -> str:
    """What the database keeps of an attempt's secret."""
    return hashlib.sha256(secret.encode()).hexdigest()
