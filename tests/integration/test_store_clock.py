"""Times are the database's, whatever this host's clock says."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime, timedelta

import pytest

from penstock.store.clock import DatabaseClock
from penstock.store.database import Database

WRONG = datetime(2001, 1, 1, tzinfo=UTC)


async def test_follows_the_database(database: Database) -> None:
    elapsed_s = 100.0
    clock = DatabaseClock(zone=UTC, host=lambda: WRONG, elapsed_s=lambda: elapsed_s)
    assert clock() == WRONG, "nobody has asked the database yet"
    async with database.transaction() as conn:
        await clock.sync(conn)
    synced = clock()
    assert abs(synced - datetime.now(UTC)) < timedelta(minutes=1), "the test's server runs on this machine"
    elapsed_s += 30
    assert clock() - synced == timedelta(seconds=30)


async def test_a_wrong_clock_is_told_of_once_a_change(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "penstock.store.clock")
    off = timedelta(0)
    clock = DatabaseClock(host=lambda: datetime.now(UTC) + off)

    async def look(seconds: float) -> int:
        nonlocal off
        off = timedelta(seconds=seconds)
        caplog.clear()
        for _ in range(3):
            async with database.transaction() as conn:
                await clock.sync(conn)
        return len(caplog.messages)

    assert [await look(seconds) for seconds in (0, 30, -50)] == [0, 0, 0]
    assert await look(3600) == 1
    assert re.search("this host's clock is 3[0-9]{3} s ahead of the database's", caplog.text)
    assert abs(clock.off_s - 3600) <= 10
    assert await look(3620) == 0, "it is wrong by no other measure"
    assert await look(-3600) == 1
    assert "s behind the database's" in caplog.text
    assert await look(-100) == 1
    assert await look(-50) == 0, "a little more than half is not agreed upon"
    assert await look(0) == 1
    assert clock.off_s == 0
