"""The lease between processes: who succeeds whom, and how soon."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.controller.lease import TTL_S, Lease
from penstock.store.clock import elapsed
from penstock.store.database import Database, driver_url
from penstock.store.errors import LeaseLost
from penstock.store.queries import leases
from tests.stalls import Stalls

FAIL_OVER_S = 15.0

HOLD = """
import asyncio, sys
from penstock.controller.lease import Lease
from penstock.store.database import Database

async def main():
    taken = asyncio.Event()
    holding = asyncio.create_task(Lease(Database(sys.argv[1]), "first").run(taken))
    await taken.wait()
    print("taken", flush=True)
    await holding

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def running(lease: Lease) -> AsyncIterator[asyncio.Event]:
    taken = asyncio.Event()
    task = asyncio.create_task(lease.run(taken))
    try:
        yield taken
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_killed_holder_is_succeeded_in_time(database: Database, database_url: str) -> None:
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD, database_url, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert await asyncio.wait_for(holder.stdout.readline(), 60) == b"taken\n"
        async with running(Lease(database, "second")) as taken:
            await asyncio.sleep(0)  # It asks before the first one dies.
            holder.kill()
            died_at = time.monotonic()
            with Stalls() as stalls:
                await asyncio.wait_for(taken.wait(), 60)
            assert time.monotonic() - died_at < FAIL_OVER_S + stalls.total_s
            async with database.snapshot() as conn:
                assert await leases.holder(conn, leases.CONTROLLER) == ("second", 2)
    finally:
        with contextlib.suppress(ProcessLookupError):
            holder.kill()
        await holder.wait()


async def test_a_clean_stop_hands_over_at_once(database: Database) -> None:
    async with running(Lease(database, "first")) as taken:
        await asyncio.wait_for(taken.wait(), 60)
    began = time.monotonic()
    async with running(Lease(database, "second")) as taken:
        await asyncio.wait_for(taken.wait(), 60)
    assert time.monotonic() - began < TTL_S, "it need not expire"


async def test_a_lease_that_the_databases_clock_left_in_the_future_is_succeeded(database: Database) -> None:
    """The clock went back by an hour, and the holder died: by that clock the lease lasts an hour more."""
    waited_s = 0.0
    second = Lease(database, "second", elapsed_s=lambda: elapsed() + waited_s)
    async with database.transaction() as conn:
        assert await leases.acquire(conn, leases.CONTROLLER, "first", 3600) == 1
    await second.hold(asyncio.Event())
    waited_s += 8
    async with database.transaction() as conn:
        assert await leases.renew(conn, leases.CONTROLLER, "first", 1, 3600), "it lives"
    await second.hold(asyncio.Event())
    waited_s += 4
    await second.hold(asyncio.Event())
    assert not second.held, "its end moved 4 s ago"
    waited_s += 8
    await second.hold(asyncio.Event())
    async with database.transaction() as conn:
        assert await leases.holder(conn, leases.CONTROLLER) == ("second", 2)
        assert not await leases.renew(conn, leases.CONTROLLER, "first", 1, 3600)


async def test_one_that_slept_through_its_lease_knows_before_it_acts(database: Database) -> None:
    slept_s = 0.0
    lease = Lease(database, "first", elapsed_s=lambda: elapsed() + slept_s)
    await lease.hold(asyncio.Event())
    term = lease.term
    assert term is not None
    term.require()
    slept_s = 8.5
    assert lease.term is None
    with pytest.raises(LeaseLost):
        term.require()


async def test_a_term_that_was_lost_is_over_though_the_lease_comes_back(database: Database) -> None:
    """Whoever held it in between may have done what was decided here, and more."""
    slept_s, taken = 0.0, asyncio.Event()
    lease = Lease(database, "first", elapsed_s=lambda: elapsed() + slept_s)
    await lease.hold(taken)
    first = lease.term
    assert first is not None
    async with database.transaction() as conn:
        await leases.release(conn, leases.CONTROLLER, "first", first.number)
        assert await leases.acquire(conn, leases.CONTROLLER, "second", 60) == 2
        await leases.release(conn, leases.CONTROLLER, "second", 2)
    await lease.hold(taken)  # Finds it lost,
    await lease.hold(taken)  # and takes it again.
    second = lease.term
    assert second is not None
    assert (first.number, second.number) == (1, 3)
    second.require()
    with pytest.raises(LeaseLost):
        first.require()
    async with database.transaction() as conn:
        await second.fence(conn)
        with pytest.raises(LeaseLost):
            await first.fence(conn)


class Line:
    """A way to PostgreSQL on which connections can die without a word, as behind a firewall that forgets them."""

    def __init__(self, url: str, folder: Path) -> None:
        self._behind = driver_url(url)
        self._name = f".s.PGSQL.{self._behind.port or 5432}"
        self.folder = folder
        self.url = self._behind.update_query_dict({"host": str(folder)}).render_as_string(hide_password=False)
        self.connections = 0
        self._dead = asyncio.Event()

    def cut(self) -> None:
        """What is connected now hears nothing any more."""
        self._dead.set()
        self._dead = asyncio.Event()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        server = await asyncio.start_unix_server(self._connected, self.folder / self._name)
        try:
            yield
        finally:
            server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        dead = self._dead
        there = Path(str(self._behind.query["host"])) / self._name
        its_reader, its_writer = await asyncio.open_unix_connection(there)
        try:
            await asyncio.gather(_pass(reader, its_writer, dead), _pass(its_reader, writer, dead))
        finally:
            writer.close()
            its_writer.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dead: asyncio.Event) -> None:
    while piece := await reader.read(1 << 16):
        if not dead.is_set():
            writer.write(piece)
    writer.close()


async def test_a_renewal_that_hangs_does_not_cost_the_lease(
    database: Database, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver takes 5 s and more to give up a dead connection: here longer than the lease lasts."""
    monkeypatch.setattr("penstock.controller.lease.TTL_S", 4.0)
    monkeypatch.setattr("penstock.controller.lease.RENEW_EVERY_S", 1.0)
    monkeypatch.setattr("penstock.controller.lease.MARGIN_S", 0.8)
    line = Line(database_url, tmp_path)
    async with line.open():
        for holder in ("first", "second", "third"):
            with Stalls() as stalls:
                held = await outlives_a_cut(database, line, holder)
            # So short a lease is lost by right while the machine stands still.
            if held or not stalls.total_s:
                break
    assert held


async def outlives_a_cut(database: Database, line: Line, holder: str) -> bool:
    """Whether it holds its one term for six seconds after its connection died."""
    through = Database(line.url)
    try:
        lease = Lease(through, holder)
        async with running(lease) as taken:
            await asyncio.wait_for(taken.wait(), 60)
            term = lease.term
            line.cut()
            before, until = line.connections, elapsed() + 6
            while elapsed() < until:
                if term is None or lease.term is not term:
                    return False
                await asyncio.sleep(0.05)
            assert term is not None
            assert line.connections > before
            async with database.snapshot() as conn:
                assert await leases.holder(conn, leases.CONTROLLER) == (holder, term.number)
            return True
    finally:
        await through.close()


async def test_only_the_change_is_logged_and_never_without_a_cause(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "penstock.controller.lease")

    async def silent(*_: object, **__: object) -> None:
        raise TimeoutError

    lease, taken = Lease(database, "only"), asyncio.Event()
    with monkeypatch.context() as patched:
        patched.setattr(leases, "acquire", silent)
        await lease.hold(taken)
        await lease.hold(taken)
    await lease.hold(taken)
    assert [record.getMessage() for record in caplog.records] == [
        "the lease cannot be taken or renewed; tried again until it can: no answer in 2.5 s",
        "the lease can be asked for again",
        "the lease is ours (term 1)",
    ]
