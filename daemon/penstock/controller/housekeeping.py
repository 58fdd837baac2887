"""Forgetting: what is kept for a time and no longer, in the database and on the shared file system (rule 11)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from itertools import islice

from penstock.controller.file_calls import FileCalls
from penstock.controller.folders import Folders
from penstock.store.database import Database
from penstock.store.queries import attempts, decisions, replicas

log = logging.getLogger(__name__)

BATCH = 1000
"""Rows in one transaction: none of them is held for long. And entries of a folder in one call, which a slow file server
must answer in time."""


class Housekeeping:
    """Prunes what retention has ended."""

    def __init__(
        self, db: Database, folders: Folders, clock: Callable[[], datetime], retention: timedelta
    ) -> None:
        self._db = db
        self._folders = folders
        # Not the executor's: a folder that takes long to remove must hold no submission.
        self._files = FileCalls(folders.root)
        self._clock = clock
        self._retention = retention

    async def run(self) -> None:
        """One round: decisions, removed replicas with their attempts, and folders of attempts that are forgotten."""
        before = self._clock() - self._retention
        for prune in (decisions.prune, replicas.prune):
            while True:
                async with self._db.transaction() as connection:
                    if await prune(connection, before, batch=BATCH) < BATCH:
                        break
        try:
            await self._folders_of_nobody()
        except OSError as error:
            log.warning("the folders of forgotten attempts are left until the next round: %s", error)

    async def _folders_of_nobody(self) -> None:
        walk = self._folders.older_than(time.time() - self._retention.total_seconds())
        while seen := await self._files.do(lambda: list(islice(walk, BATCH))):
            some = [token for token in seen if token is not None]
            async with self._db.snapshot() as connection:
                kept = await attempts.known(connection, some)
            for token in set(some) - kept:
                await self._files.do(partial(self._folders.forget, token))
                log.info("attempt %s is forgotten, and its folder is removed", token)
