"""When to tick: a timer and nudges, one path, no logic.

APScheduler's timer and whoever calls `nudge` set the same event; one loop waits for it and runs the pass. Any
number of nudges while a pass runs lead to one more pass. A pass that fails is logged and does not end the
loop: the next one starts from the world as it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from apscheduler.schedulers.asyncio import AsyncIOScheduler

log = logging.getLogger(__name__)

MIN_SPACING_S = 0.05
"""Between two passes at least: a storm of nudges must not become a storm of listings."""


class Ticks:
    """Runs `tick` every `interval_s`, and soon after each nudge."""

    def __init__(self, tick: Callable[[], Awaitable[None]], interval_s: float) -> None:
        self._tick = tick
        self._interval_s = interval_s
        self._due = asyncio.Event()

    def nudge(self) -> None:
        """Asks for a pass soon. Cheap, and safe to call any number of times."""
        self._due.set()

    def nudge_after(self, delay_s: float) -> None:
        """Asks for a pass in a while: the effects of the last one will show then."""
        asyncio.get_running_loop().call_later(delay_s, self._due.set)

    async def run(self) -> None:
        """Ticks until cancelled; a pass under way when that happens is cancelled too."""
        scheduler = AsyncIOScheduler(timezone="UTC")
        scheduler.add_job(self.nudge, "interval", seconds=self._interval_s, coalesce=True, max_instances=1)
        scheduler.start()
        try:
            self.nudge()
            while True:
                await self._due.wait()
                self._due.clear()
                try:
                    await self._tick()
                except Exception:  # A bug or an outage ends the pass, never the controller.
                    log.exception("the tick failed; the next one starts afresh")
                await asyncio.sleep(MIN_SPACING_S)
        finally:
            scheduler.shutdown(wait=False)
