"""The right to mutate Slurm: a row in PostgreSQL with a holder, a term and an end.

Taken and renewed here, on the database's clock. Only where that clock went back does a lease outlast its holder; so
whoever waits for it also watches, on its own clock, for how long nobody has moved its end. Checked in two ways (rule
7): `fence` inside each transaction that an effect follows, by the database's clock; and `require` just before each
call of Slurm, on this machine's own clock, which goes on while the machine sleeps, and with a margin. So a process
that slept through its lease notices before it acts. Both belong to one term: what was seen and decided in it ends
with it, even where the same process takes the lease again a moment later, because between the two another holder may
have acted. What remains is a sleep between that last check and the call: then the attempt's token keeps the job from
running twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.store.clock import DatabaseClock, elapsed
from penstock.store.database import Database, is_outage
from penstock.store.errors import LeaseLost
from penstock.store.queries import leases

log = logging.getLogger(__name__)

LEASE_NAME = leases.CONTROLLER
TTL_S = 10.0
"""A leader that died is succeeded after at most this time and one renewal interval."""
RENEW_EVERY_S = TTL_S / 4
"""So long a renewal may take, too. Two in a row may fail: the third is asked for 7.5 s after the last one that came
through, and effects may begin until 8 s after it."""
MARGIN_S = 2.0
"""No effect begins this close to the lease's end."""


class Term:
    """One term of the lease: a tick is begun in it and carried out in it, or not at all. Once over it never returns."""

    def __init__(self, lease: Lease, number: int) -> None:
        self.number = number
        self.is_over = False
        """As far as this process knows."""
        self._lease = lease

    def require(self) -> None:
        """Raises LeaseLost unless an effect that was decided in this term may begin now."""
        if self.is_over or not self._lease.held:
            raise LeaseLost(LEASE_NAME, self.number)

    async def fence(self, connection: AsyncConnection) -> None:
        """Raises LeaseLost unless this transaction's database says, too, that this term is the current one."""
        if self.is_over:
            raise LeaseLost(LEASE_NAME, self.number)
        await leases.fence(connection, LEASE_NAME, self._lease.holder, self.number)


class Lease:
    """One holder's view of the controller's lease."""

    def __init__(
        self,
        db: Database,
        holder: str,
        *,
        clock: DatabaseClock | None = None,
        elapsed_s: Callable[[], float] = elapsed,
    ) -> None:
        """`holder` is one process, never used again. `clock` is set right at each renewal. `elapsed_s` as `elapsed`."""
        self._db = db
        self._clock = clock
        self._elapsed_s = elapsed_s
        self.holder = holder
        self._term: Term | None = None
        self._sure_until = 0.0
        self._failing = False
        self._others_end: tuple[datetime, float] | None = None
        """When another's lease ends, by the database's clock, and since when we see that end, by `elapsed_s`."""
        self._abandoned: set[asyncio.Task[int | None]] = set()
        """Questions without an answer, which the driver gives up within 10 s: five at most."""

    @property
    def held(self) -> bool:
        """Whether effects may begin now."""
        return self._term is not None and self._elapsed_s() < self._sure_until - MARGIN_S

    @property
    def term(self) -> Term | None:
        """The one in which a tick may begin now; None: none."""
        return self._term if self.held else None

    async def run(self, on_taken: asyncio.Event) -> None:
        """Takes and renews the lease until cancelled, then gives it back. Sets `on_taken` each time it is
        taken."""
        loop = asyncio.get_running_loop()
        due_at = loop.time()
        try:
            while True:
                await self.hold(on_taken)
                due_at = max(due_at + RENEW_EVERY_S, loop.time())
                await asyncio.sleep(due_at - loop.time())
        finally:
            await asyncio.shield(self._give_back())

    async def hold(self, on_taken: asyncio.Event) -> None:
        """One try to take or to renew it, for RENEW_EVERY_S at most; an outage of the database is no error."""
        asked_at = self._elapsed_s()
        try:
            number = await self._answer()
        except Exception as error:
            if not (isinstance(error, TimeoutError) or is_outage(error)):
                raise
            if not self._failing:
                why = str(error) or f"no answer in {RENEW_EVERY_S:g} s"
                log.warning("the lease cannot be taken or renewed; tried again until it can: %s", why)
            self._failing = True
            return
        if self._failing:
            log.info("the lease can be asked for again")
            self._failing = False
        if number is not None:
            self._sure_until = asked_at + TTL_S
        if self._term is not None and number is None:
            log.warning("the lease is lost (term %d)", self._term.number)
            self._end_term()
        elif self._term is None and number is not None:
            log.info("the lease is ours (term %d)", number)
            self._term = Term(self, number)
            on_taken.set()

    async def _answer(self) -> int | None:
        """The term that is ours now. Raises TimeoutError.

        A question that hangs is not waited for even when it is cancelled: if the connection is dead, the driver takes
        longer to give it up than the lease lasts.
        """
        asking = asyncio.create_task(self._ask(None if self._term is None else self._term.number))
        try:
            await asyncio.wait([asking], timeout=RENEW_EVERY_S)
            if asking.done():
                return asking.result()
            raise TimeoutError
        finally:
            if not asking.done():
                asking.cancel()
                self._abandoned.add(asking)
                asking.add_done_callback(self._forget)

    async def _ask(self, number: int | None) -> int | None:
        async with self._db.transaction() as connection:
            if self._clock is not None:
                await self._clock.sync(connection)
            # Last, because it locks the lease until the commit.
            if number is None:
                return await self._acquire(connection)
            renewed = await leases.renew(connection, LEASE_NAME, self.holder, number, TTL_S)
            return number if renewed else None

    async def _acquire(self, connection: AsyncConnection) -> int | None:
        # The end is read first, because the try locks the lease even where it fails.
        end = await leases.ends_at(connection, LEASE_NAME)
        if end is not None and (self._others_end is None or self._others_end[0] != end):
            self._others_end = end, self._elapsed_s()
        return await leases.acquire(connection, LEASE_NAME, self.holder, TTL_S, stale=self._stale())

    def _stale(self) -> datetime | None:
        """The end that its holder has not moved for as long as a lease lasts; None: there is none."""
        if self._others_end is None:
            return None
        end, seen_at = self._others_end
        return end if self._elapsed_s() >= seen_at + TTL_S else None

    def _forget(self, asking: asyncio.Task[int | None]) -> None:
        self._abandoned.discard(asking)
        if not asking.cancelled():
            asking.exception()  # How it failed is of no interest: that it did was said.

    def _end_term(self) -> int | None:
        """Its number."""
        term, self._term = self._term, None
        if term is None:
            return None
        term.is_over = True
        return term.number

    async def _give_back(self) -> None:
        number = self._end_term()
        if number is None:
            return
        try:
            async with asyncio.timeout(MARGIN_S), self._db.transaction() as connection:
                await leases.release(connection, LEASE_NAME, self.holder, number)
        except Exception as error:  # It expires by itself; a stop must not fail over it.
            log.warning("the lease could not be given back and will expire: %s", error)
