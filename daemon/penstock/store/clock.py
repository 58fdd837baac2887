"""The time, by the database's clock: the one clock that all hosts of an installation share.

Hosts' clocks may be an hour apart, and may jump. A silence, a back-off or a doubt that was begun by one host's clock
and ended by another's would be as wrong: healthy replicas cancelled for an hour of silence that never was, submissions
repeated too soon. So every time that is stored or compared is the database's, carried on between two looks at it by a
clock that nobody sets.

Until the first look it is this host's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

log = logging.getLogger(__name__)

NOW = select(func.clock_timestamp())

OFF_S = 60
"""Clocks that somebody keeps differ by less than a second, and the answer to a look by a few: this one nobody keeps."""


def host_time() -> datetime:
    """This host's clock."""
    return datetime.now(UTC)


def elapsed() -> float:
    """Seconds on a clock that nobody sets and that counts the time in which the machine was suspended, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class DatabaseClock:
    """Called, gives the time, aware and in `zone` (None: the host's own, for sentences that people read there)."""

    def __init__(
        self,
        *,
        zone: tzinfo | None = None,
        host: Callable[[], datetime] = host_time,
        elapsed_s: Callable[[], float] = elapsed,
    ) -> None:
        self._zone = zone
        self._host = host
        self._elapsed_s = elapsed_s
        self._at_zero: datetime | None = None
        """The database's time when `elapsed_s` was 0."""
        self.off_s = 0
        """By how many seconds the host's clock is ahead, rounded and as it was last told of; 0: by less than OFF_S."""

    def __call__(self) -> datetime:
        if self._at_zero is None:
            return self._host().astimezone(self._zone)
        return (self._at_zero + timedelta(seconds=self._elapsed_s())).astimezone(self._zone)

    async def sync(self, conn: AsyncConnection) -> None:
        """Looks at the database's clock. Good to the time that the answer takes. Tells once when the host's own is
        another."""
        now: datetime = (await conn.execute(NOW)).scalar_one()
        self._at_zero = now - timedelta(seconds=self._elapsed_s())
        self._compare(round((self._host() - now).total_seconds()))

    def _compare(self, off_s: int) -> None:
        if abs(off_s) > OFF_S and abs(off_s - self.off_s) > OFF_S:
            log.warning(
                "this host's clock is %d s %s the database's, by which all times are: set it right",
                abs(off_s),
                "ahead of" if off_s > 0 else "behind",
            )
            self.off_s = off_s
        elif self.off_s and abs(off_s) <= OFF_S / 2:  # Half: a clock at the limit is not told of each time.
            log.info("this host's clock agrees with the database's again")
            self.off_s = 0
