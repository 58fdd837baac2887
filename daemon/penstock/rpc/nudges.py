"""One listener of a gateway's: it wakes the watchers when something was committed, and they read what they want
to know.

A nudge says nothing of what changed. A watcher reads the present state, so one that was busy for a hundred
nudges reads once; and since it also reads every POLL_S, a lost nudge costs seconds and never a change.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import grpc

from penstock.rpc.refusals import Refused
from penstock.store.database import Database
from penstock.store.tables import CHANNEL

POLL_S = 5.0
COALESCE_S = 0.05
"""Commits come in bursts; a person cannot tell 50 ms from now."""
MAX_WATCHERS = 256
"""Each costs a read at each burst of commits."""


class Nudges:
    """Wakes watchers. Works without `run` too, by polling alone."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._changed = asyncio.Event()
        self._watchers = 0

    async def run(self, also: Callable[[], None]) -> None:
        """Listens until cancelled; outlives the database's outages. `also` is called at each nudge; must not block."""
        async with contextlib.aclosing(self._db.listen(CHANNEL)) as nudges:
            async for _ in nudges:
                self._wake()
                also()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def watch(self) -> Watcher:
        """A place among the watchers, to be used as a context. Raises Refused when all are taken."""
        if self._watchers >= MAX_WATCHERS:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"there are {MAX_WATCHERS} watchers already; try again later",
            )
        return Watcher(self)


class Watcher:
    """Waits for the next nudge after the last wait."""

    def __init__(self, nudges: Nudges) -> None:
        self._nudges = nudges
        self._event = nudges._changed

    def __enter__(self) -> Watcher:
        self._nudges._watchers += 1
        self._event = self._nudges._changed
        return self

    def __exit__(self, *_: object) -> None:
        self._nudges._watchers -= 1

    async def wait(self) -> None:
        """Returns at once if there was a nudge since the last time, else at the next one, else after POLL_S."""
        try:
            async with asyncio.timeout(POLL_S):
                await self._event.wait()
                await asyncio.sleep(COALESCE_S)
        except TimeoutError:
            pass
        # Taken before the reading that follows, so that a commit during it wakes the next wait.
        self._event = self._nudges._changed
