"""The controller as a whole: the lease, the ticks, the nudges, and how they stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from penstock.controller.housekeeping import Housekeeping
from penstock.controller.lease import Lease, Term
from penstock.controller.reconcile import Reconciler
from penstock.controller.record import Recorder
from penstock.controller.ticks import Ticks
from penstock.store.clock import elapsed
from penstock.store.database import Database, is_outage
from penstock.store.errors import LeaseLost
from penstock.store.tables import CHANNEL

log = logging.getLogger(__name__)

LOOK_AGAIN_AFTER_S = 1.0
"""After a tick that acted on Slurm: by then Slurm shows what became of it."""

LOOK_AROUND_EVERY_S = 30.0
"""Nodes are drained and reservations made by people, ahead of time."""

HOUSEKEEPING_LOOK_S = 30.0
"""The first round comes so soon after the lease was taken, when the ticks have begun."""
HOUSEKEEPING_EVERY_S = 3600.0
"""What is kept for days need not be pruned to the minute."""


class Controller:
    """Ticks while it holds the lease; waits for the lease while it does not."""

    def __init__(
        self,
        db: Database,
        lease: Lease,
        recorder: Recorder,
        reconciler: Reconciler,
        housekeeping: Housekeeping,
        interval_s: float,
    ) -> None:
        self._housekeeping = housekeeping
        self._db = db
        self._lease = lease
        self._recorder = recorder
        self._reconciler = reconciler
        self._ticks = Ticks(self.tick, interval_s)
        self._taken = asyncio.Event()
        self._look_now = asyncio.Event()
        self._outage = False
        self._resumed_in: Term | None = None

    async def run(self) -> None:
        """Runs until cancelled; then writes what it has counted and gives the lease back."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._lease.run(self._taken))
                group.create_task(self._listen())
                group.create_task(self._resume_when_taken())
                group.create_task(self._ticks.run())
                group.create_task(self._look_around())
                group.create_task(self._keep_house())
        finally:
            with contextlib.suppress(Exception):  # Counts only; a stop must not fail over them.
                async with asyncio.timeout(2), self._db.transaction() as connection:
                    await self._recorder.flush(connection)

    async def _listen(self) -> None:
        async for _ in self._db.listen(CHANNEL):
            self._ticks.nudge()

    async def _resume_when_taken(self) -> None:
        while True:
            await self._taken.wait()
            self._taken.clear()
            self.begin_term()

    def begin_term(self) -> None:
        """The lease was taken: the log may have been written by another controller since."""
        self._resumed_in = None
        self._look_now.set()  # How long a doubt lasts is asked there.
        self._ticks.nudge()

    async def _look_around(self) -> None:
        while True:
            self._look_now.clear()
            try:
                if self._lease.held and await self._reconciler.look_around():
                    self._ticks.nudge()
            except Exception:  # A bug. The ticks must not end over it: they go on with what was seen before.
                log.exception("the look at the nodes failed; it is tried again in %g s", LOOK_AROUND_EVERY_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AROUND_EVERY_S):
                    await self._look_now.wait()

    async def _keep_house(self) -> None:
        due_at = 0.0  # A controller that is restarted every half hour must keep house, too.
        while True:
            await asyncio.sleep(HOUSEKEEPING_LOOK_S)
            if not self._lease.held or elapsed() < due_at:
                continue
            due_at = elapsed() + HOUSEKEEPING_EVERY_S
            try:
                # Who is killed loses no more than a round's counts.
                async with self._db.transaction() as connection:
                    await self._recorder.flush(connection)
                await self._housekeeping.run()
            except Exception as error:
                if not is_outage(error):
                    log.exception("housekeeping failed; it is tried again in %d s", HOUSEKEEPING_EVERY_S)

    async def tick(self) -> None:
        """One pass, if the lease is ours. Outages and a lost lease end it without an error; bugs raise."""
        # Before anything is looked at: the lease may be lost and taken again while the pass runs.
        term = self._lease.term
        if term is None:
            return
        try:
            await self._resume(term)
            ticked = await self._reconciler.tick(term)
        except LeaseLost as lost:
            self._resumed_in = None  # What was remembered of the log was rolled back.
            log.warning("%s", lost)
            return
        except Exception as error:
            self._resumed_in = None  # What was remembered of the log may have been rolled back.
            if not is_outage(error):
                raise
            if not self._outage:
                log.warning("PostgreSQL does not answer; nothing is decided until it does: %s", error)
            self._outage = True
            return
        if self._outage:
            log.info("PostgreSQL answers again")
            self._outage = False
        if ticked.effects:
            self._ticks.nudge_after(LOOK_AGAIN_AFTER_S)

    async def _resume(self, term: Term) -> None:
        """On the first tick of a term: the log may have been written by another controller since."""
        if self._resumed_in is term:
            return
        async with self._db.transaction() as connection:
            await self._recorder.resume(connection)
        self._resumed_in = term
