"""When something was not there that a fail-over needs, by the run's own hand: then its length judges nobody."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

RECOVERED_AFTER_S = 10.0
"""What was away counts as away for so long after it is back: a standby asks for the lease again every few seconds."""


class Outages:
    """PostgreSQL's, Slurm's, and those of frozen controllers. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._going = 0
        self._last_ended_at = float("-inf")

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Something is away until the block ends."""
        with self._lock:
            self._going += 1
        try:
            yield
        finally:
            with self._lock:
                self._going -= 1
                self._last_ended_at = time.monotonic()

    def since(self, moment_s: float) -> bool:
        """Whether anything was away, or not yet recovered, at that time (`time.monotonic`) or later."""
        with self._lock:
            return self._going > 0 or self._last_ended_at + RECOVERED_AFTER_S > moment_s
