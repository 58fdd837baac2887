"""The way to PostgreSQL when PostgreSQL goes away: outages are told apart from bugs, and everything heals by itself."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
import sqlalchemy.exc
from sqlalchemy import event, text

from penstock.core.model import Phase
from penstock.core.spec import Model, Spec
from penstock.store import database as store_database
from penstock.store import migrate
from penstock.store.database import Database, conninfo, driver_url, is_outage
from penstock.store.embedded import EmbeddedServer
from penstock.store.queries import deployments, notify, runtime, world
from penstock.store.records import Load
from penstock.store.tables import CHANNEL
from tests.databases import FAST
from tests.stored import a_replica_of, an_attempt_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SPEC = Spec(Model(hub="o/m"))
SOON_S = 20
"""Far longer than anything here takes; only a failing test waits for it."""


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """A server that tests may stop; each leaves it running or starts it again."""
    with tempfile.TemporaryDirectory(prefix="penstock-test-") as name:
        Path(name).chmod(0o711)
        made = EmbeddedServer(Path(name) / "postgres", settings=FAST)
        try:
            migrate.upgrade(made.start())
            yield made
        finally:
            made.stop()


@pytest.fixture
async def restartable(server: EmbeddedServer) -> AsyncIterator[Database]:
    made = Database(server.start())
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def listening(database: Database) -> AsyncIterator[AsyncIterator[str]]:
    async with contextlib.aclosing(database.listen(CHANNEL)) as heard:
        assert await soon(heard) == ""
        yield heard


async def soon(heard: AsyncIterator[str]) -> str:
    return await asyncio.wait_for(anext(heard), SOON_S)


async def select_one(database: Database) -> int:
    async with database.transaction() as conn:
        return int((await conn.execute(text("SELECT 1"))).scalar_one())


def _raises(error: Exception) -> Callable[..., Awaitable[None]]:
    async def never(*_: object, **__: object) -> None:
        raise error

    return never


class TestUrls:
    def test_as_people_write_them(self) -> None:
        for scheme in ("postgres", "postgresql", "postgresql+psycopg"):
            url = f"{scheme}://me:s%40crit@db:5433/penstock?sslmode=require"
            assert driver_url(url).drivername == "postgresql+psycopg"
            assert conninfo(url) == "postgresql://me:s%40crit@db:5433/penstock?sslmode=require"

    @pytest.mark.parametrize("url", ["", "penstock", "mysql://db/penstock", "postgresql+asyncpg://db/x"])
    def test_others_are_refused_without_repeating_a_password(self, url: str) -> None:
        with pytest.raises(ValueError, match="accepted: postgresql://"):
            driver_url(url)


class TestTransactions:
    async def test_commit_and_roll_back(self, database: Database) -> None:
        async with database.transaction() as conn:
            await deployments.create(conn, "a", {}, SPEC, NOW)
        with pytest.raises(RuntimeError):
            async with database.transaction() as conn:
                await deployments.create(conn, "b", {}, SPEC, NOW)
                raise RuntimeError
        async with database.snapshot() as conn:
            assert [item.name for item in (await world.load(conn)).deployments] == ["a"]

    async def test_a_snapshot_is_of_one_instant_and_writes_nothing(self, database: Database) -> None:
        async with database.snapshot() as conn:
            assert (await world.load(conn)).deployments == ()
            async with database.transaction() as other:
                await deployments.create(other, "a", {}, SPEC, NOW)
            assert (await world.load(conn)).deployments == ()
            with pytest.raises(sqlalchemy.exc.InternalError, match="read-only"):
                await deployments.create(conn, "b", {}, SPEC, NOW)
        # The connection goes back as it was.
        async with database.transaction() as conn:
            await deployments.create(conn, "b", {}, SPEC, NOW)

    async def test_times_are_utc(self, database: Database) -> None:
        async with database.transaction() as conn:
            made = await deployments.create(conn, "a", {}, SPEC, datetime.now().astimezone())
        assert made.created_at.tzinfo is not None
        assert made.created_at.utcoffset() == NOW.utcoffset()

    async def test_load_takes_a_constant_number_of_statements(self, database: Database) -> None:
        statements: list[str] = []

        async def load() -> int:
            statements.clear()
            async with database.snapshot() as conn:
                event.listen(conn.sync_connection, "before_cursor_execute", count)
                found = await world.load(conn)
            return len(found.replicas)

        def count(_conn: object, _cursor: object, statement: str, *_: object) -> None:
            statements.append(statement)

        async def fill(names: str) -> None:
            async with database.transaction() as conn:
                for name in names:
                    made = await deployments.create(conn, name, {}, SPEC, NOW)
                    for number in range(5):
                        replica = await a_replica_of(conn, made.uid, 1, NOW)
                        await an_attempt_of(conn, replica.uid, f"{name}{number}", "#!", "hash", NOW)

        await fill("a")
        assert await load() == 5
        one = len(statements)
        await fill("bcd")
        assert await load() == 20
        # When the server started, which rows changed, and those rows, of deployments and of replicas.
        assert len(statements) == one == 5


class TestOutages:
    async def test_a_restart_costs_idle_connections_nothing(
        self, server: EmbeddedServer, restartable: Database
    ) -> None:
        await asyncio.gather(*(select_one(restartable) for _ in range(3)))
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        assert await asyncio.gather(*(select_one(restartable) for _ in range(5))) == [1] * 5

    async def test_down_is_an_outage_and_up_again_is_none(
        self, server: EmbeddedServer, restartable: Database
    ) -> None:
        await select_one(restartable)
        await asyncio.to_thread(server.stop)
        for _ in range(2):
            with pytest.raises(sqlalchemy.exc.OperationalError) as caught:
                await select_one(restartable)
            assert is_outage(caught.value)
        await asyncio.to_thread(server.start)
        assert await select_one(restartable) == 1

    async def test_what_this_machine_says_to_a_connection_is_an_outage(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(psycopg.AsyncConnection, "connect", _raises(OSError(24, "Too many open files")))
            with pytest.raises(sqlalchemy.exc.OperationalError, match="Too many open files") as caught:
                await select_one(database)
        assert is_outage(caught.value)
        assert await select_one(database) == 1

    async def test_a_connection_cut_in_use_is_an_outage(self, database: Database) -> None:
        with pytest.raises(sqlalchemy.exc.OperationalError) as caught:
            async with database.transaction() as conn:
                pid = (await conn.execute(text("SELECT pg_backend_pid()"))).scalar_one()
                async with database.transaction() as other:
                    await other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
                await conn.execute(text("SELECT 1"))
        assert is_outage(caught.value)
        assert await select_one(database) == 1

    async def test_a_lock_is_waited_for_with_a_bound(
        self, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_database, "LOCK_TIMEOUT_MS", 100)
        impatient = Database(database_url)
        try:
            async with impatient.transaction() as conn:
                await deployments.create(conn, "a", {}, SPEC, NOW)
            async with impatient.transaction() as conn:
                await deployments.set_paused(conn, "a", True, NOW)
                with pytest.raises(sqlalchemy.exc.OperationalError) as caught:
                    async with impatient.transaction() as other:
                        await deployments.set_paused(other, "a", False, NOW)
            assert is_outage(caught.value)
        finally:
            await impatient.close()

    async def test_a_statement_takes_no_longer_than_allowed(
        self, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_database, "STATEMENT_TIMEOUT_MS", 100)
        impatient = Database(database_url)
        try:
            with pytest.raises(sqlalchemy.exc.OperationalError) as caught:
                async with impatient.transaction() as conn:
                    await conn.execute(text("SELECT pg_sleep(60)"))
            assert is_outage(caught.value)
        finally:
            await impatient.close()

    async def test_the_pool_is_bounded(self, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_database, "POOL_SIZE", 1)
        monkeypatch.setattr(store_database, "POOL_WAIT_S", 0.1)
        small = Database(database_url)
        try:
            async with small.transaction():
                with pytest.raises(sqlalchemy.exc.TimeoutError) as caught:
                    await select_one(small)
            assert is_outage(caught.value)
            assert await select_one(small) == 1
        finally:
            await small.close()

    async def test_bugs_and_refusals_are_no_outages(self, database: Database) -> None:
        for statement in (
            "SELEC 1",
            "SELECT 1/0",
            "SELECT * FROM nothing",
            "INSERT INTO installation VALUES (false)",
        ):
            with pytest.raises(sqlalchemy.exc.DBAPIError) as caught:
                async with database.transaction() as conn:
                    await conn.execute(text(statement))
            assert not is_outage(caught.value), statement
        assert not is_outage(ValueError())
        # A file, or Slurm: other things than PostgreSQL do not answer either.
        assert not is_outage(ConnectionRefusedError())
        assert not is_outage(TimeoutError())
        assert is_outage(psycopg.OperationalError("connection refused"))


class TestListening:
    async def test_words_come_in_order_and_only_when_committed(self, database: Database) -> None:
        async with listening(database) as heard:
            with pytest.raises(RuntimeError):
                async with database.transaction() as conn:
                    await notify.changed(conn, "never")
                    raise RuntimeError
            for name in ("a", "b"):
                async with database.transaction() as conn:
                    await deployments.create(conn, name, {}, SPEC, NOW)
            assert [await soon(heard), await soon(heard)] == ["a", "b"]

    async def test_what_wakes_and_what_does_not(self, database: Database) -> None:
        async with database.transaction() as conn:
            made = await deployments.create(conn, "a", {}, SPEC, NOW)
            replica = await a_replica_of(conn, made.uid, 1, NOW)
            await an_attempt_of(conn, replica.uid, "t", "#!", "hash", NOW)
            await runtime.register(conn, "t", job_id=7, restart_count=0, host="n", port=1, now=NOW)

        async def report(phase: Phase) -> None:
            async with database.transaction() as conn:
                await runtime.report(
                    conn, "t", phase=phase, message="", load=Load(), exit_code=None, last_words="", now=NOW
                )

        async with listening(database) as heard:
            await report(Phase.READY)
            assert await soon(heard) == "a"
            # A heartbeat says nothing: the next word is the marker's.
            await report(Phase.READY)
            async with database.transaction() as conn:
                await notify.changed(conn, "marker")
            assert await soon(heard) == "marker"

    async def test_after_a_restart_it_says_that_something_may_have_been_missed(
        self, server: EmbeddedServer, restartable: Database
    ) -> None:
        async with listening(restartable) as heard:
            await asyncio.to_thread(server.stop)
            waiting = asyncio.ensure_future(soon(heard))
            await asyncio.to_thread(server.start)
            assert await waiting == ""
            async with restartable.transaction() as conn:
                await notify.changed(conn, "again")
            assert await soon(heard) == "again"

    async def test_whatever_the_server_sends_it_goes_on(
        self, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        for error in (psycopg.InterfaceError("lost synchronization"), psycopg.DatabaseError("?"), OSError(5)):
            with monkeypatch.context() as patched:
                patched.setattr(psycopg.AsyncConnection, "execute", _raises(error))
                async with contextlib.aclosing(database.listen(CHANNEL)) as heard:
                    waiting = asyncio.ensure_future(soon(heard))
                    async with asyncio.timeout(SOON_S):
                        while not caplog.records:
                            await asyncio.sleep(0.01)
                    patched.undo()
                    assert await waiting == ""
            assert "trying again until it works" in caplog.records[0].getMessage()
            caplog.clear()

    async def test_closing_it_lets_the_connection_go(self, database: Database) -> None:
        listeners = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'penstock listener'")

        async def count() -> int:
            async with database.transaction() as conn:
                return int((await conn.execute(listeners)).scalar_one())

        before = await count()
        async with listening(database):
            assert await count() == before + 1
        async with asyncio.timeout(SOON_S):
            while await count() > before:
                await asyncio.sleep(0.01)
