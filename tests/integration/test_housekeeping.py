"""What is kept for a time and no longer, and what must not grow at all (rule 11)."""

from __future__ import annotations

import asyncio
import os
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import func, select

from penstock.controller import controller as controller_module
from penstock.controller import file_calls
from penstock.controller import housekeeping as housekeeping_module
from penstock.controller.controller import Controller
from penstock.controller.folders import AgentSettings, Folders
from penstock.controller.housekeeping import Housekeeping
from penstock.controller.record import Recorder, World
from penstock.core.decisions import Decision, Reason
from penstock.core.plan import Plan
from penstock.core.spec import Model, Spec
from penstock.store.database import Database
from penstock.store.queries import attempts, decisions, deployments, replicas
from penstock.store.tables import decisions as decisions_table
from tests.stored import a_replica_of, an_attempt_of
from tests.worlds import NOW, at

DAY_S = 86_400


def recorder(folder: Path) -> Recorder:
    return Recorder("here", Folders(folder), AgentSettings(("127.0.0.1:1",), "127.0.0.1", ""), "python3")


async def rows(database: Database) -> list[tuple[str, int]]:
    async with database.snapshot() as conn:
        found = await decisions.list_page(conn, limit=1000)
    return [(record.message, record.count) for record in found]


async def test_a_decision_repeated_a_million_times_is_one_row(database: Database, tmp_path: Path) -> None:
    book = recorder(tmp_path)
    steady = Plan((Decision("chat", "", Reason.STEADY, "1 of 1 ready"),), (), ())
    async with database.transaction() as conn:
        await book.record(conn, "t", NOW, steady, World({}, {}))
    for _ in range(1_000_000 - 2):
        assert book.has_nothing_new(steady)
        book.count(steady, NOW)
    book.count(steady, at(3600))
    other = Plan((Decision("chat", "", Reason.PROGRESSING, "0 of 1 ready"),), (), ())
    async with database.transaction() as conn:
        await book.record(conn, "t", at(3601), other, World({}, {}))
    assert await rows(database) == [("0 of 1 ready", 1), ("1 of 1 ready", 1_000_000)]
    async with database.snapshot() as conn:
        (_, first) = await decisions.list_page(conn, limit=2)
    assert (first.first_at, first.last_at) == (NOW, at(3600))


async def test_counts_outlive_an_outage_and_another_log_does_not_get_them(
    database: Database, tmp_path: Path
) -> None:
    book = recorder(tmp_path)
    steady = Plan((Decision("", "", Reason.CLUSTER_REACHABLE, "all is well"),), (), ())
    async with database.transaction() as conn:
        await book.record(conn, "t", NOW, steady, World({}, {}))
    for second in range(1, 10):
        book.count(steady, at(second))
    async with (
        database.transaction() as conn
    ):  # As after an outage, or a lease that was lost and taken again.
        await book.resume(conn)
        await book.flush(conn)
    assert await rows(database) == [("all is well", 10)]
    book.count(steady, at(20))
    async with database.transaction() as conn:
        other = Decision("", "", Reason.CLUSTER_UNREACHABLE, "another controller wrote this")
        await decisions.insert(conn, "t", [other], at(21))
    async with database.transaction() as conn:
        await book.resume(conn)
        await book.flush(conn)
    assert await rows(database) == [("another controller wrote this", 1), ("all is well", 10)]


async def test_counts_that_could_not_be_written_are_kept(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = recorder(tmp_path)
    steady = Plan((Decision("", "", Reason.CLUSTER_REACHABLE, "all is well"),), (), ())
    async with database.transaction() as conn:
        await book.record(conn, "t", NOW, steady, World({}, {}))
    book.count(steady, at(1))

    async def lost(*given: Any) -> None:
        raise ConnectionError

    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(decisions, "bump", lost)
        async with database.transaction() as conn:
            await book.flush(conn)
    async with database.transaction() as conn:
        await book.flush(conn)
    assert await rows(database) == [("all is well", 2)]


async def test_a_round_forgets_what_is_old_in_batches(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping_module, "BATCH", 10)
    old, young = at(-31 * DAY_S), at(-29 * DAY_S)
    folders = Folders(tmp_path)
    async with database.transaction() as conn:
        deployment = await deployments.create(conn, "chat", {}, Spec(Model(path="/m")), old)
        for number in range(25):
            when = old if number < 20 else young
            gone = Decision("gone", "", Reason.STEADY, f"number {number}")
            await decisions.insert(conn, "t", [gone], when)
            replica = await a_replica_of(conn, deployment.uid, 1, old)
            token = f"token{number}"
            await an_attempt_of(conn, replica.uid, token, "#!", "hash", old)
            await attempts.end(
                conn, token, message="", exit_code=0, job=None, failures=0, next_attempt_at=None, now=when
            )
            await replicas.remove(conn, replica.uid, when)
            folders.prepare(token, {}, "secret")
            folder = folders.path(token)
            long_ago = folder.stat().st_mtime - 31 * DAY_S
            os.utime(folder, (long_ago, long_ago))
    (tmp_path / "not-an-attempts").mkdir()
    await Housekeeping(database, folders, lambda: NOW, timedelta(days=30)).run()
    async with database.snapshot() as conn:
        left = (await conn.execute(select(func.count()).select_from(decisions_table))).scalar_one()
        kept = await attempts.known(conn, [f"token{number}" for number in range(25)])
    assert left == 5
    assert kept == {f"token{number}" for number in range(20, 25)}
    assert {path.name for path in tmp_path.iterdir()} == kept | {"not-an-attempts"}


async def test_a_file_server_that_hangs_does_not_hold_the_round(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # What does not hang answers by then, on a busy machine too.
    monkeypatch.setattr(file_calls, "ANSWER_WITHIN_S", 3.0)
    back, forget = threading.Event(), Folders.forget

    def hang(self: Folders, token: str) -> None:
        back.wait(200)
        forget(self, token)

    monkeypatch.setattr(Folders, "forget", hang)
    folders = Folders(tmp_path)
    folders.prepare("token", {}, "secret")
    os.utime(folders.path("token"), (0, 0))
    keeper = Housekeeping(database, folders, lambda: NOW, timedelta(days=30))
    async with asyncio.timeout(60):
        await keeper.run()
        await keeper.run()
    told = f"the folder {tmp_path} does not answer for 3 s; look at its file server"
    assert sum(told in line for line in caplog.messages) == 3, "when it fell silent, and in each round"
    assert sum(thread.name == "shared-files" for thread in threading.enumerate()) == 1
    back.set()
    async with asyncio.timeout(60):
        while folders.path("token").exists():
            await keeper.run()
            await asyncio.sleep(0.01)


async def test_the_first_round_comes_soon_after_the_lease(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And begins with the counts, so that whoever is killed loses few of them."""
    monkeypatch.setattr(controller_module, "HOUSEKEEPING_LOOK_S", 0.01)
    lease, kept = SimpleNamespace(held=False), asyncio.Event()
    done: list[str] = []

    async def flush(connection: object) -> None:
        done.append("counts")

    async def run() -> None:
        done.append("round")
        kept.set()

    nothing = cast(Any, None)
    book, keeper = cast(Any, SimpleNamespace(flush=flush)), cast(Any, SimpleNamespace(run=run))
    made = Controller(database, cast(Any, lease), book, nothing, keeper, interval_s=5)
    task = asyncio.create_task(made._keep_house())
    try:
        await asyncio.sleep(0.1)
        assert done == [], "only the holder keeps house"
        lease.held = True
        await asyncio.wait_for(kept.wait(), 10)
        await asyncio.sleep(0.1)
        assert done == ["counts", "round"], "and then once an hour"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
