"""Looking at Slurm: one listing a tick, and a value for "it did not answer"."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from penstock.core.model import Listing, Unknown
from penstock.slurm.port import Slurm, SlurmUnavailable

log = logging.getLogger(__name__)


class Observer:
    """Asks Slurm for its queue, and remembers since when it has not answered."""

    def __init__(self, slurm: Slurm, clock: Callable[[], datetime]) -> None:
        self._slurm = slurm
        self._clock = clock
        self._silent_since: datetime | None = None

    async def look(self) -> Listing | Unknown:
        """The queue in full, or Unknown. One call of Slurm; logs only when Slurm falls silent or answers
        again."""
        try:
            jobs = await self._slurm.list_jobs()
        except SlurmUnavailable as error:
            if self._silent_since is None:
                self._silent_since = self._clock()
                log.warning("Slurm does not answer: %s", error)
            return Unknown(str(error), self._silent_since)
        if self._silent_since is not None:
            log.info(
                "Slurm answers again; it was silent since %s",
                self._silent_since.isoformat(timespec="seconds"),
            )
            self._silent_since = None
        return Listing(jobs)
