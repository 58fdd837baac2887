"""What the cluster is, kept for a while: specs are checked against it, and people look at it.

Slurm is asked at most once at a time. When it does not answer, the last answer stands, with its age; there is
no answer only where there never was one. Knows core and the port, not the protos.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from penstock.core.jobs import Cluster
from penstock.core.spec import Spec
from penstock.rpc import limits
from penstock.rpc.refusals import refuse
from penstock.slurm.port import Slurm, SlurmUnavailable

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 20.0
"""Twice Slurm's own MessageTimeout by default."""
ACCEPT_AGE_S = 60.0
"""A spec is accepted on an answer this old, so that an apply seldom waits for Slurm..."""
REFUSE_AGE_S = 1.0
"""...and is refused on a fresh one only."""
RETRY_S = 5.0
"""A Slurm that did not answer is not asked again for this long, so that callers do not queue up behind it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer, and when it was given."""

    cluster: Cluster
    at: datetime


class ClusterView:
    """The last answer, renewed on demand."""

    def __init__(self, slurm: Slurm, clock: Callable[[], datetime]) -> None:
        self._slurm = slurm
        self._clock = clock
        self._asking = asyncio.Lock()
        self._asked_at = float("-inf")
        self.seen: Seen | None = None
        self.error = "Slurm was not asked yet"
        """Why the last question had no answer; empty: it had one."""

    @property
    def backend(self) -> str:
        return self._slurm.backend

    @property
    def cluster(self) -> Cluster | None:
        """Of the last answer, whatever its age; None: there never was one."""
        return self.seen.cluster if self.seen is not None else None

    async def read(self, max_age_s: float) -> Seen | None:
        """The last answer, renewed first if it is older than that. None: there never was one. Raises nothing."""
        if not self._is_due(max_age_s):
            return self.seen
        async with self._asking:
            # Somebody else may have asked while this call waited.
            if self._is_due(max_age_s):
                await self._ask()
        return self.seen

    async def check(self, spec: Spec) -> list[str]:
        """Raises Refused when this cluster could never run the spec. Returns what a person should know about
        the check.
        """
        seen = await self.read(ACCEPT_AGE_S)
        if seen is not None and limits.check(spec, seen.cluster):
            # Somebody may have just added what is missing.
            seen = await self.read(REFUSE_AGE_S)
        if seen is None:
            return [f"whether this cluster can run it was not checked: {self.error}"]
        refuse(limits.check(spec, seen.cluster))
        if self.error:
            return [
                f"whether this cluster can run it was checked against what Slurm said at {seen.at:%Y-%m-%d %H:%M:%S};"
                f" now it does not answer: {self.error}"
            ]
        return []

    def _is_due(self, max_age_s: float) -> bool:
        age_s = time.monotonic() - self._asked_at
        return age_s > (min(RETRY_S, max_age_s) if self.error else max_age_s)

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                cluster = await self._slurm.cluster()
        except (SlurmUnavailable, TimeoutError) as error:
            self.error = str(error) or f"Slurm did not answer within {ASK_TIMEOUT_S:.0f} s"
        except Exception as error:  # A bug of ours, which must not end the gateway.
            said = f"Slurm's description of the cluster could not be read: {error!r}"
            if said != self.error:
                log.exception("the description of the cluster could not be read")
            self.error = said
        else:
            self.seen, self.error = Seen(cluster, self._clock()), ""
        self._asked_at = time.monotonic()
