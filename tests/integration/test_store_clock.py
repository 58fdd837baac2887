"""Times are the database's, whatever this host's clock says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

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
