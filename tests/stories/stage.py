"""The stage that stories are played on, and the transcript that is written of them.

Everything that decides, writes and acts is the real thing: Reconciler, Recorder, Executor and Lease on an embedded
PostgreSQL. Slurm is the fake that ships, the clock is the story's, and the agents in the jobs are played by calling
what the control API calls when an agent speaks. A tick happens when the story says so.

The transcript holds what an on-call engineer could see: the decisions that were new in a tick with their sentences, the
effects on Slurm with what came of them, and where the replicas stand then. Tokens are numbered in the order of their
appearance, and the attempts' folder has a name of its own; nothing else is changed.
"""

from __future__ import annotations

import asyncio
import re
import textwrap
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text

from penstock.controller.execute import Executor
from penstock.controller.folders import AgentSettings, Folders
from penstock.controller.lease import MARGIN_S, TTL_S, Lease, Term
from penstock.controller.observe import Observer
from penstock.controller.reconcile import Reconciler, Ticked
from penstock.controller.record import Recorder
from penstock.core.changes import needs_revision
from penstock.core.jobs import JobState, Maintenance, Submission
from penstock.core.model import AdapterStanding, Phase, Replica
from penstock.core.spec import Model, Placement, Probes, Resources, RestartPolicy, Spec
from penstock.rpc.revise import roll_back
from penstock.store.clock import elapsed
from penstock.store.database import Database
from penstock.store.queries import (
    attempts,
    decisions,
    deployments,
    leases,
    replicas,
    revision_events,
    revisions,
    runtime,
)
from penstock.store.records import DecidedAction, Load
from penstock.store.tables import metadata
from penstock.testing.jobs import FakeJob
from penstock.testing.slurm import FakeSlurm
from tests.patience import PATIENCE_S

INSTALLATION = "story"
BEGIN = datetime(2026, 3, 2, 14, 0, 0, tzinfo=UTC)
WIDTH = 118

SPEC = Spec(
    model=Model(path="/models/llama"),
    resources=Resources(gpus=1, cpus=1),
    placement=Placement(time_limit="4h", time_limit_s=14_400),
    probes=Probes(startup_timeout_s=600, report_timeout_s=60),
    restart=RestartPolicy(backoff_initial_s=10, backoff_max_s=300, reset_after_s=600),
    drain_timeout_s=60,
)

ROWS = """
SELECT 'deployments', uid, xmin::text FROM deployments
UNION ALL SELECT 'replicas', uid, xmin::text FROM replicas
UNION ALL SELECT 'attempts', token, xmin::text FROM attempts
UNION ALL SELECT 'decisions', id::text, xmin::text FROM decisions
ORDER BY 1, 2
"""
"""Every row that a tick may write, with the transaction that wrote it last."""


class Stage:
    """One story's world. `controller()` makes a controller; a story may end it and make another."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.now = BEGIN
        self.slurm = FakeSlurm(clock=lambda: self.now, on_signal=self._signalled)
        self.folders = Folders(folder)
        self.drains_on_term = True
        """Whether the jobs' agents are alive enough to drain on SIGTERM; else it ends them at once."""
        self.ready_at_least = 0
        """Checked after each tick (rule 5)."""
        self.answered = 0
        """Effects of `long` that Slurm has answered: after each of those ticks the controller looks again soon."""
        self._reconciler: Reconciler | None = None
        self._recorder: Recorder | None = None
        self._lease: Lease | None = None
        self._lease_task: asyncio.Task[None] | None = None
        self._controllers = 0
        self._tokens: dict[str, str] = {}
        self._lines: list[str] = []
        self._shown: dict[str, str] = {}
        self._last_decision = 0

    # The controller --------------------------------------------------------------------------------------------

    async def start_controller(self) -> None:
        """A controller as it comes up: the lease taken, the log taken up."""
        self._controllers += 1
        lease = self._lease = Lease(self.database, f"controller-{self._controllers}")
        taken = asyncio.Event()
        self._lease_task = asyncio.create_task(lease.run(taken))
        await asyncio.wait_for(taken.wait(), PATIENCE_S)
        recorder = self._recorder = Recorder(
            INSTALLATION, self.folders, AgentSettings(("127.0.0.1:8600",), "127.0.0.1", ""), "python3"
        )
        async with self.database.transaction() as conn:
            await recorder.resume(conn)
        clock = lambda: self.now  # noqa: E731
        self._reconciler = Reconciler(
            db=self.database,
            installation=INSTALLATION,
            observer=Observer(self.slurm, clock),
            recorder=recorder,
            executor=Executor(self.database, self.slurm, self.folders, clock),
            clock=clock,
            message_timeout_s=10,
        )

    async def stop_controller(self) -> None:
        """Ends it as a crash does: nothing that it remembers is written."""
        if self._lease_task is not None:
            self._lease_task.cancel()
            await asyncio.gather(self._lease_task, return_exceptions=True)
        self._lease_task = self._reconciler = None

    async def pause_until_succeeded(self) -> None:
        """The controller sleeps for so long that another one takes the lease; then it wakes up, and knows nothing of
        that yet."""
        self.now += timedelta(seconds=TTL_S + MARGIN_S)
        if self._lease_task is not None:
            self._lease_task.cancel()  # It gives the lease back, for the successor to take at once.
            await asyncio.gather(self._lease_task, return_exceptions=True)
        async with self.database.transaction() as conn:
            term = await leases.acquire(conn, leases.CONTROLLER, "successor", 60)
        assert term is not None
        assert self._lease is not None
        self._lease._term, self._lease._sure_until = Term(self._lease, term - 1), elapsed() + 60

    async def end_successor(self) -> None:
        """The lease is free again."""
        async with self.database.transaction() as conn:
            held = await leases.holder(conn, leases.CONTROLLER)
            assert held is not None
            await leases.release(conn, leases.CONTROLLER, *held)

    async def restart_controller(self) -> None:
        self.say("another controller takes over")
        await self.stop_controller()
        await self.start_controller()

    async def tick(self, after_s: float = 0) -> None:
        """Lets `after_s` pass, runs one pass and writes down what was new."""
        self.now += timedelta(seconds=after_s)
        try:
            await self._pass()
        finally:  # A story may kill it in the middle; what it had decided is in the log.
            await self._write_tick()

    async def _pass(self) -> Ticked:
        assert self._reconciler is not None
        assert self._lease is not None
        assert self._lease.term is not None, "the machine is too busy to keep the lease"
        return await self._reconciler.tick(self._lease.term)

    async def ticks(self, count: int, every_s: float) -> None:
        for _ in range(count):
            await self.tick(every_s)

    async def long(self, count: int, every_s: float) -> int:
        """So many passes; what was decided in them is written down at the end, each with how often. Returns how many
        rows that was."""
        for _ in range(count):
            self.now += timedelta(seconds=every_s)
            self.answered += (await self._pass()).effects
        self.say(f"after {count} ticks, {every_s:g} s apart")
        async with self.database.transaction() as conn:
            assert self._recorder is not None
            await self._recorder.flush(conn)
            fresh = await decisions.after(conn, self._last_decision, limit=1000)
        rows = [(f"{one.replica or one.deployment or 'cluster':<10}{one.reason:<20}", one) for one in fresh]
        for said, one in rows:
            tries = "".join(f" > {self._action(its, {})}" for its in one.actions)
            self._lines.append(self._tidy(f"{one.count:>8}x {said}{one.message}{tries}"))
        self._last_decision = max((one.id for one in fresh), default=self._last_decision)
        return len(fresh)

    async def quiet_tick(self, after_s: float = 5) -> None:
        """A tick that must find nothing to do: one listing, no other call, and not a row written."""
        self.now += timedelta(seconds=after_s)
        rows, calls = await self._rows(), self.slurm.calls.copy()
        outcome = await self._pass()
        assert outcome.effects == 0
        assert self.slurm.calls - calls == {"list_jobs": 1}
        assert await self._rows() == rows
        await self._write_tick(quiet="nothing new: one listing, nothing written")

    async def look_around(self) -> None:
        """What the controller does between its ticks, every half minute: it asks for nodes and reservations."""
        self.say("the controller looks at the nodes")
        assert self._reconciler is not None
        await self._reconciler.look_around()

    # The database ----------------------------------------------------------------------------------------------

    async def back_up(self) -> None:
        self.say("the database is backed up")
        async with self.database.transaction() as conn:
            await conn.execute(text("CREATE SCHEMA backup"))
            for table in metadata.sorted_tables:
                await conn.execute(text(f"CREATE TABLE backup.{table.name} AS TABLE {table.name}"))

    async def restore(self) -> None:
        """What was written since the backup was never written: rows, and ids that were given."""
        self.say("the database is restored from the backup")
        async with self.database.transaction() as conn:
            await conn.execute(text(f"TRUNCATE {', '.join(table.name for table in metadata.sorted_tables)}"))
            for table in metadata.sorted_tables:
                await conn.execute(
                    text(
                        f"INSERT INTO {table.name} OVERRIDING SYSTEM VALUE SELECT * FROM backup.{table.name}"
                    )
                )
            await conn.execute(text("UPDATE leases SET expires_at = now() - interval '1 day'"))
            newest = "(SELECT max(id) FROM decisions)"
            await conn.execute(text(f"SELECT setval(pg_get_serial_sequence('decisions', 'id'), {newest})"))
            self._last_decision = (await conn.execute(text(f"SELECT {newest}"))).scalar_one()

    # People ----------------------------------------------------------------------------------------------------

    async def apply(self, name: str = "chat", *, replicas: int = 1, **changes: Any) -> None:
        self.say(f"someone applies {name}: {replicas} replica{'' if replicas == 1 else 's'}")
        async with self.database.transaction() as conn:
            await deployments.create(conn, name, {}, replace(SPEC, replicas=replicas, **changes), self.now)

    async def change(self, name: str = "chat", **changes: Any) -> None:
        """Applies another spec: a new revision."""
        async with self.database.transaction() as conn:
            old = await deployments.get(conn, name)
            new = await deployments.update_spec(
                conn,
                name,
                replace(old.spec, **changes),
                None,
                self.now,
                new_revision=True,
                expected_version=None,
            )
        self.say(f"someone applies {name} with other settings: revision {new.revision}")

    async def edit(self, name: str = "chat", **changes: Any) -> None:
        """Applies a spec as the control API does: a new revision only if a running replica depends on what differs."""
        async with self.database.transaction() as conn:
            old = await deployments.get(conn, name)
            spec = replace(old.spec, **changes)
            new_revision = needs_revision(old.spec, spec)
            new = await deployments.update_spec(
                conn, name, spec, None, self.now, new_revision=new_revision, expected_version=None
            )
        what = f"revision {new.revision}" if new_revision else f"revision {new.revision} stays"
        self.say(f"someone applies {name} with {', '.join(sorted(changes))} changed: {what}")

    async def undo(self, to: int = 0, name: str = "chat") -> None:
        made = await roll_back(self.database, name, to, self.now)
        revision = f"revision {made.revision}" if made else "it has that spec already"
        self.say(f"someone undoes the rollout of {name}: {revision}")

    async def promote(self, name: str = "chat") -> None:
        self.say(f"someone promotes the canary of {name}")
        async with self.database.transaction() as conn:
            found = await deployments.get(conn, name)
            await deployments.promote(conn, name, found.revision, self.now)

    async def pause_rollout(self, paused: bool, name: str = "chat") -> None:
        self.say(f"someone {'pauses' if paused else 'resumes'} the rollout of {name}")
        async with self.database.transaction() as conn:
            await deployments.set_paused(conn, name, paused, self.now, rollout_only=True)

    async def change_policy(self, restart: RestartPolicy, name: str = "chat") -> None:
        await self.change_unrevised(name, "restart policy", restart=restart)

    async def change_unrevised(self, name: str = "chat", what: str = "burst", **changes: Any) -> None:
        """Applies a spec that differs in what makes no revision."""
        async with self.database.transaction() as conn:
            old = await deployments.get(conn, name)
            spec = replace(old.spec, **changes)
            await deployments.update_spec(
                conn, name, spec, None, self.now, new_revision=False, expected_version=None
            )
        self.say(f"someone applies {name} with another {what}")

    async def scale(self, count: int, name: str = "chat") -> None:
        self.say(f"someone scales {name} to {count}")
        async with self.database.transaction() as conn:
            await deployments.scale(conn, name, count, self.now)

    async def drain(self, replica: str) -> None:
        self.say(f"someone drains {replica}")
        async with self.database.transaction() as conn:
            await replicas.mark_leaving(conn, (await replicas.get(conn, replica)).uid)

    async def pause(self, paused: bool, name: str = "chat") -> None:
        self.say(f"someone {'pauses' if paused else 'resumes'} {name}")
        async with self.database.transaction() as conn:
            await deployments.set_paused(conn, name, paused, self.now)

    async def delete(self, name: str = "chat", *, force: bool = False) -> None:
        self.say(f"someone deletes {name}" + (", by force" if force else ""))
        async with self.database.transaction() as conn:
            await deployments.mark_deleted(conn, name, force, self.now)

    # Agents ----------------------------------------------------------------------------------------------------

    async def register(self, replica: str) -> None:
        token, job = await self._attempt(replica)
        self.say(f"the agent of {replica} registers from job {job.job_id}")
        async with self.database.transaction() as conn:
            await runtime.register(
                conn,
                token,
                job_id=job.job_id,
                restart_count=job.restarts,
                host=job.nodes[0],
                port=4000 + job.job_id,
                now=self.now,
            )

    async def report(
        self,
        replica: str,
        phase: Phase,
        message: str = "",
        *,
        silently: bool = False,
        exit_code: int | None = None,
        last_words: str = "",
    ) -> None:
        token, job = await self._attempt(replica)
        if not silently:
            self.say(f"the agent of {replica} reports {phase}" + (f": {message}" if message else ""))
        async with self.database.transaction() as conn:
            await runtime.report(
                conn,
                token,
                phase=phase,
                message=message,
                load=Load(),
                exit_code=exit_code,
                last_words=last_words,
                now=self.now,
                restart_count=job.restarts,
            )

    async def has_adapters(self, replica: str, *standings: AdapterStanding) -> None:
        """The agent's next report says how it stands with each adapter that it was told of."""
        token, job = await self._attempt(replica)
        words = [
            f"{one.name} {one.message or ('is loaded' if one.loaded else 'is not loaded yet')}"
            for one in standings
        ]
        self.say(f"the agent of {replica} reports: {'; '.join(words) or 'no adapters'}")
        async with self.database.transaction() as conn:
            told = await runtime.report(
                conn,
                token,
                phase=Phase.READY,
                message="",
                load=Load(),
                exit_code=None,
                last_words="",
                now=self.now,
                restart_count=job.restarts,
                adapters=standings,
            )
        self.say(f"and is told to have: {', '.join(one.name for one in told.wanted_adapters) or 'none'}")

    async def becomes_ready(self, *names: str) -> None:
        """Slurm starts the jobs, and each agent registers and proves itself."""
        for name in names:
            await self.register(name)
            await self.report(name, Phase.READY)

    async def job_of(self, replica: str) -> int:
        return (await self._attempt(replica))[1].job_id

    async def finish(self, replica: str, exit_code: int = 0) -> None:
        """The job's script ends."""
        job_id = await self.job_of(replica)
        self.say(f"job {job_id} of {replica} ends with exit code {exit_code}")
        self.slurm.finish(job_id, exit_code=exit_code)

    async def ended(self, replica: str, state: JobState, reason: str = "") -> None:
        """Slurm ends the job in this state."""
        job_id = await self.job_of(replica)
        self.say(f"job {job_id} of {replica} ends as {state}")
        self.slurm.end(job_id, state, reason=reason)

    async def cancelled(self, replica: str) -> None:
        """Someone cancels the job by hand."""
        job_id = await self.job_of(replica)
        self.say(f"someone cancels job {job_id} of {replica}")
        await self.slurm.cancel(job_id, name=self.slurm.job(job_id).submission.name)

    # Slurm -----------------------------------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.slurm.advance()

    def reserve(self, name: str, after_s: float, *nodes: str) -> None:
        begins_at = self.now + timedelta(seconds=after_s)
        self.say(f"maintenance {name} is announced for {begins_at:%H:%M:%S}, on {', '.join(nodes)}")
        self.slurm.reserve(Maintenance(name, begins_at, begins_at + timedelta(hours=1), nodes))

    def alter_limit(self, job_id: int, time_limit_s: int) -> None:
        self.say(f"someone gives job {job_id} a time limit of {time_limit_s // 60} min")
        self.slurm.job(job_id).time_limit_s = time_limit_s

    async def take(self, node: str, cpus: int) -> None:
        """Somebody else's job takes so many CPUs of a node."""
        submission = Submission(
            "train", "", "#!/bin/bash\n", "/tmp", "/tmp/out", cpus_per_task=cpus, require_nodes=(node,)
        )
        self.say(f"someone submits job {await self.slurm.submit(submission)}: {cpus} CPUs of {node}")

    async def submit_foreign(self, name: str, comment: str = "") -> int:
        """A job of the same user that Penstock did not submit."""
        submission = Submission(name, comment, "#!/bin/bash\n", "/tmp", "/tmp/out", singleton=False)
        job_id = await self.slurm.submit(submission)
        self.say(f"someone submits job {job_id} ({name}" + (f", marked {comment!r})" if comment else ")"))
        return job_id

    async def show(self, kind: str, name: str = "chat") -> None:
        """Writes down a condition of the deployment, as `penstock describe` shows it."""
        async with self.database.snapshot() as conn:
            found = await deployments.get(conn, name)
        (one,) = [condition for condition in found.conditions if condition.type == kind]
        self.say(
            f"{name} is {'' if one.status == 'true' else 'not '}{kind}"
            + f": {one.message}" * bool(one.message)
        )

    async def history(self, name: str = "chat") -> None:
        """Writes down the deployment's revisions, as `penstock rollout history` shows them."""
        async with self.database.snapshot() as conn:
            uid = (await deployments.get(conn, name)).uid
            found = await revisions.list_page(conn, uid, limit=100)
            events = await revision_events.of(conn, uid, [one.number for one in found])
        for one in reversed(found):
            lines = [("made", one.author, one.cause)]
            lines += [(event.type.value, event.author, event.cause) for event in events.get(one.number, ())]
            for what, author, cause in lines:
                by = f" by {author}" * bool(author)
                self.say(f"revision {one.number} {what}{by}" + f": {cause}" * bool(cause))

    def running(self) -> list[str]:
        """Names of jobs that have not ended, tokens numbered."""
        return [self._tidy(job.submission.name) for job in self.slurm.jobs() if not job.ended]

    def _signalled(self, job: FakeJob, signal: str) -> bool:
        self.say(f"Slurm sends {signal} to job {job.job_id}")
        return self.drains_on_term

    # The transcript --------------------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        self._lines.append(self._tidy(f"{self.now:%H:%M:%S}  {line}"))

    def tell(self, prose: str) -> None:
        """A paragraph for the reader."""
        words = textwrap.fill(" ".join(prose.split()), WIDTH)
        self._lines += [*([""] if self._lines else []), words, ""]

    @property
    def transcript(self) -> str:
        return "\n".join(self._lines) + "\n"

    async def _write_tick(self, quiet: str = "nothing new") -> None:
        async with self.database.transaction() as conn:
            fresh = await decisions.after(conn, self._last_decision, limit=1000)
            known = await replicas.list_page(conn, limit=1000, include_removed=True)
            for one in known:
                for its in await attempts.list_for(conn, one.uid):
                    self._tokens.setdefault(its.token, f"<token {len(self._tokens) + 1}>")
        names = {one.uid: one.name for one in known}
        lines: list[str] = []
        for record in fresh:
            self._last_decision = record.id
            subject = record.replica or record.deployment or "cluster"
            lines.append(f"          {subject:<10}{record.reason:<20}{record.message}")
            lines += [
                f"{'':<30}> {self._action(action, names)}" for action in record.actions if _is_news(action)
            ]
        moved = self._moved(known)
        assert sum(state == "ready" for state in self._shown.values()) >= self.ready_at_least
        if moved:
            lines.append(f"          = {', '.join(moved)}")
        self.say("tick" if lines else f"tick: {quiet}")
        self._lines += [self._tidy(line).rstrip() for line in lines]

    def _moved(self, known: tuple[Replica, ...]) -> list[str]:
        states = {one.name: str(one.state) for one in known}
        states |= dict.fromkeys(self._shown.keys() - states.keys(), "removed")
        news = [
            f"{name} {f'{before} -> ' if (before := self._shown.get(name)) else ''}{state}"
            for name, state in states.items()
            if self._shown.get(name) != state
        ]
        self._shown |= states
        return news

    def _action(self, action: DecidedAction, names: dict[str, str]) -> str:
        kind, _, which = action.target.partition(" ")
        target = names.get(which, which) if kind == "replica" else action.target
        said = f"{action.action} {target}" if kind != "deployment" else action.action
        return f"{said}: {action.outcome}" if action.outcome else said

    def _tidy(self, line: str) -> str:
        line = line.replace(str(self.folders.root), "/shared/attempts")
        return re.sub(r"[a-km-z2-9]{20}", lambda found: self._tokens.get(found.group(), found.group()), line)

    async def _rows(self) -> list[Any]:
        async with self.database.snapshot() as conn:
            return [tuple(row) for row in await conn.execute(text(ROWS))]

    async def _attempt(self, replica: str) -> tuple[str, FakeJob]:
        """The live attempt's token, and its job."""
        async with self.database.snapshot() as conn:
            its = (await replicas.get(conn, replica)).live_attempt
        assert its is not None, f"{replica} has no live attempt"
        self.slurm.advance()
        (job,) = [job for job in self.slurm.jobs() if job.submission.name.endswith(its.token)]
        return its.token, job


def _is_news(action: DecidedAction) -> bool:
    """Bookkeeping that repeats what Slurm says would only drown the story."""
    return action.action not in ("record-job", "record-missing", "record-rollout")
