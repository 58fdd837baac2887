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
CLUSTER_AGE_S = 30.0
"""Slurm's description costs slurmctld more than a ping, and few sites change it in half a minute."""


@dataclass(frozen=True, slots=True)
class Vital:
    """One part. `is_well` None: it could not be told."""

    part: str
    is_well: bool | None
    message: str
    since: datetime


class Vitals:
    """The parts, as last seen."""

    def __init__(self, db: Database, view: ClusterView, clock: Callable[[], datetime]) -> None:
        self._db = db
        self._view = view
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
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S), self._db.snapshot() as conn:
                present = await members.list_present(conn, members.GATEWAY)
                leader = await leases.holder(conn, leases.CONTROLLER)
        except Exception as error:
            if not (isinstance(error, TimeoutError) or is_outage(error)):
                log.exception("asking PostgreSQL for the gateways failed")
            self._set("Database", False, "PostgreSQL does not answer")
            self._set("FrontDoor", None, "PostgreSQL does not answer, and so the gateways are not known")
            self._set(
                "Controller", None, "PostgreSQL does not answer, and so the lease's holder is not known"
            )
            return
        self._set("Database", True, "")
        names = ", ".join(member.address for member in present)
        self._set(
            "FrontDoor",
            bool(present),
            f"gateways: {names}" if present else "no gateway has shown itself lately",
        )
        self._set(
            "Controller",
            leader is not None,
            f"{leader[0]} holds the lease, term {leader[1]}"
            if leader is not None
            else "no controller holds the lease: nothing is started or replaced; replicas that are ready go on serving",
        )

    async def _check_slurm(self) -> None:
        await self._view.read(CLUSTER_AGE_S)
        self._set("Slurm", not self._view.error, self._view.error)

    def _set(self, part: str, is_well: bool | None, message: str) -> None:
        before = self._parts.get(part)
        since = before.since if before is not None and before.is_well is is_well else self._clock()
        self._parts[part] = Vital(part, is_well, message, since)
