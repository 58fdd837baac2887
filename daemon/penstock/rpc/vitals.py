"""Whether the parts that Penstock leans on answer: asked every few seconds, told by gRPC health and by
GetSystem.

A part that does not answer changes what is said, and nothing else: the server stays up. Knows no protos.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from penstock.rpc.cluster_view import ClusterView
from penstock.store.database import Database, is_outage
from penstock.store.queries import leases, members

log = logging.getLogger(__name__)

CHECK_S = 5.0
CHECK_TIMEOUT_S = 4.0
CLUSTER_AGE_S = 4.0
"""Asked anew at each check, so that a slurmctld that is gone is told of within 10 s. It costs slurmctld about as much
as the controller's listing."""


@dataclass(frozen=True, slots=True)
class Vital:
    """One part. `is_well` None: it could not be told."""

    part: str
    is_well: bool | None
    message: str
    since: datetime


class Vitals:
    """The parts, as last seen."""

    def __init__(
        self,
        db: Database,
        view: ClusterView,
        front_door_trouble: Callable[[], str],
        clock: Callable[[], datetime],
    ) -> None:
        self._db = db
        self._view = view
        self._reading: asyncio.Task[object] | None = None
        self._front_door_trouble = front_door_trouble
        self._clock = clock
        self._parts: dict[str, Vital] = {}
        for part in ("Database", "Slurm", "FrontDoor", "Controller"):
            self._set(part, None, "not asked yet")

    def parts(self) -> tuple[Vital, ...]:
        """Database, Slurm, FrontDoor, Controller."""
        return tuple(self._parts.values())

    async def run(self, on_check: Callable[[tuple[Vital, ...]], Awaitable[None]]) -> None:
        """Checks until cancelled."""
        while True:
            await self.check()
            await on_check(self.parts())
            await asyncio.sleep(CHECK_S)

    async def check(self) -> None:
        """Asks each part once, all at the same time."""
        await asyncio.gather(self._check_database(), self._check_slurm())

    async def _check_database(self) -> None:
        trouble = self._front_door_trouble()
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S), self._db.snapshot() as conn:
                present = await members.list_present(conn, members.GATEWAY)
                leader = await leases.holder(conn, leases.CONTROLLER)
        except Exception as error:
            if not (isinstance(error, TimeoutError) or is_outage(error)):
                log.exception("asking PostgreSQL for the gateways failed")
            self._set("Database", False, "PostgreSQL does not answer")
            self._set(
                "FrontDoor",
                False if trouble else None,
                trouble or "PostgreSQL does not answer, and so the gateways are not known",
            )
            self._set(
                "Controller", None, "PostgreSQL does not answer, and so the lease's holder is not known"
            )
            return
        self._set("Database", True, "")
        names = ", ".join(member.address for member in present)
        self._set(
            "FrontDoor",
            bool(present) and not trouble,
            trouble or (f"gateways: {names}" if present else "no gateway has shown itself lately"),
        )
        self._set(
            "Controller",
            leader is not None,
            f"{leader[0]} holds the lease, term {leader[1]}"
            if leader is not None
            else "no controller holds the lease: nothing is started or replaced; replicas that are ready go on serving",
        )

    async def _check_slurm(self) -> None:
        # A slurmctld that is gone costs its commands many seconds; the reading goes on behind this check.
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._view.read(CLUSTER_AGE_S))
        await asyncio.wait({self._reading}, timeout=CHECK_TIMEOUT_S)
        if not self._reading.done():
            self._set("Slurm", False, f"Slurm has not answered within {CHECK_TIMEOUT_S:g} s")
            return
        self._set("Slurm", not self._view.error, self._view.error)

    def _set(self, part: str, is_well: bool | None, message: str) -> None:
        before = self._parts.get(part)
        since = before.since if before is not None and before.is_well is is_well else self._clock()
        self._parts[part] = Vital(part, is_well, message, since)
