"""The database and Slurm, as one simulated controller process reaches them: every call is a place to crash at.

Each call first passes `Process.point`, which may let it go on, hold the process still, kill it, or make the call
fail. A commit has three such places: before it begins, before it is asked for (failing there, nothing was written), and
after it (failing there, everything was written and nobody knows).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import psycopg
import sqlalchemy.exc
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.core.jobs import Cluster, Job, Submission
from penstock.slurm.port import May, SlurmUnavailable, SubmissionUnknown
from penstock.store.database import Database

if TYPE_CHECKING:
    from tests.simulation.world import Process


def outage(where: str) -> Exception:
    """What SQLAlchemy raises when the connection breaks."""
    cause = psycopg.OperationalError(f"the connection is lost (simulated, at {where})")
    return sqlalchemy.exc.OperationalError(where, None, cause)


class DatabasePort(Database):
    """The real database behind the places to fail at."""

    def __init__(self, real: Database, process: Process) -> None:
        self._real = real
        self._process = process

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        await self._process.point("begin")
        async with self._real.transaction() as conn:
            yield conn
            await self._process.point("commit")
        await self._process.committed()
        await self._process.point("committed")

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        await self._process.point("read")
        async with self._real.snapshot() as conn:
            yield conn

    async def close(self) -> None:
        """The real one is the simulation's."""


class LeasePort(DatabasePort):
    """For the lease's own transactions: they run between the ticks, so that nothing but an outage stops them."""

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        if self._process.world.database_down:
            raise outage("lease")
        async with self._real.transaction() as conn:
            yield conn


class SlurmPort:
    """The simulated cluster behind the same, with replies that come late, twice or never."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world

    @property
    def backend(self) -> str:
        return "simulated"

    @property
    def one_at_a_time(self) -> bool:
        return False

    async def list_jobs(self) -> tuple[Job, ...]:
        process = self._process
        process.listed = False
        await self._world.rules.look(process)
        await process.point("list_jobs")
        self._reach("list_jobs")
        jobs, process.stale_s = await self._world.listing()
        await process.point("listed")
        process.listed = True
        await self._world.rules.begin_tick(process)
        return jobs

    async def find(self, name: str) -> tuple[Job, ...]:
        await self._process.point("find")
        self._reach("find")
        found = await self._world.slurm.find(name)
        await self._process.point("found")
        return found

    async def history(self, job_ids: Sequence[int]) -> tuple[Job, ...]:
        await self._process.point("history")
        self._reach("history")
        return await self._world.slurm.history(job_ids)

    async def submit(self, submission: Submission, *, may: May) -> int:
        world = self._world
        world.rules.beside(self._process, submission)
        await self._send("submit", submission.name, may)
        began = world.now
        await self._process.point("sending")
        world.late_by(submission.name, (world.now - began).total_seconds())
        try:
            self._reach("submit")
        except SlurmUnavailable as error:
            raise SubmissionUnknown(str(error)) from error
        job_id = await world.take(self._process, submission)
        await self._process.point("submitted")
        return job_id

    async def cancel(self, job_id: int, *, name: str, may: May, only_waiting: bool = False) -> None:
        kind = "withdraw" if only_waiting else "cancel"
        await self._send(kind, name, may, job_id)
        await self._process.point("sending")
        self._reach("cancel")
        await self._world.slurm.cancel(job_id, name=name, only_waiting=only_waiting)
        self._world.say(f"{self._process.name} {kind}s job {job_id}")
        self._reach("cancel's reply")
        await self._process.point("cancelled")

    async def signal(self, job_id: int, signal: str, *, name: str, may: May) -> None:
        await self._send("signal", name, may, job_id)
        await self._process.point("sending")
        self._reach("signal")
        await self._world.slurm.signal(job_id, signal, name=name)
        self._reach("signal's reply")
        await self._process.point("signalled")

    async def cluster(self) -> Cluster:
        await self._process.point("cluster")
        self._reach("cluster")
        return await self._world.slurm.cluster()

    async def close(self) -> None:
        """Nothing is held."""

    async def _send(self, kind: str, name: str, may: May, job_id: int | None = None) -> None:
        """The call waits for its turn; from here on nothing keeps it from being sent."""
        rules = self._world.rules
        await rules.effect(self._process, kind, name, job_id)
        await self._process.point(kind)
        may()
        await rules.sent(self._process, kind, name)

    def _reach(self, call: str) -> None:
        """Raises SlurmUnavailable when slurmctld is down, or the draw says that this call fails."""
        if self._world.slurm_down or self._world.chance(self._world.risk.slurm_call):
            self._world.say(f"{self._process.name}: {call} is not answered")
            raise SlurmUnavailable(f"{call}: no answer (simulated)")
