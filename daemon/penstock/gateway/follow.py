"""Keeps the front door in step with what is stored, without knowing the store.

Told that something changed, it reads the routing state anew and hands it to the front door; any number of
words while it reads lead to one more reading. What cannot be read, or not be handed on, leaves the front door as it is
and is tried again: what is served does not depend on the database being up, nor on one deployment that nobody foresaw.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from penstock.core.routing import RoutingState
from penstock.gateway.door import FrontDoor

log = logging.getLogger(__name__)

RETRY_AFTER_S = 0.5


class Follower:
    """Reads with `load`, tells `door`."""

    def __init__(self, door: FrontDoor, load: Callable[[], Awaitable[RoutingState]]) -> None:
        self._door = door
        self._load = load
        self._told = 0
        self._read = 0
        self._state: RoutingState | None = None
        self._failed: RoutingState | None = None
        self._change = asyncio.Condition()
        self._due = asyncio.Event()

    def changed(self) -> None:
        """Something that is committed may change what is served. Cheap, never blocks."""
        self._told += 1
        self._due.set()

    async def applied(self, timeout_s: float) -> bool:
        """Waits until every Envoy has what was committed when this was called; whether they do in time."""
        deadline = time.monotonic() + timeout_s
        wanted = self._told
        try:
            async with asyncio.timeout(timeout_s), self._change:
                await self._change.wait_for(lambda: self._read >= wanted)
        except TimeoutError:
            return False
        return await self._door.applied(max(0.0, deadline - time.monotonic()))

    async def run(self) -> None:
        """Follows until cancelled."""
        failing = False
        self.changed()
        while True:
            await self._due.wait()
            self._due.clear()
            told = self._told
            try:
                state = await self._load()
            except Exception as error:  # Whatever it is: what is served stays served.
                if not failing:
                    log.warning("the routing state cannot be read; the front door stays as it is: %s", error)
                failing = True
                await asyncio.sleep(RETRY_AFTER_S)
                self._due.set()
                continue
            if failing:
                log.info("the routing state can be read again")
                failing = False
            if state != self._state and not await self._hand_on(state):
                await asyncio.sleep(RETRY_AFTER_S)
                self._due.set()
                continue
            async with self._change:
                self._read = told
                self._change.notify_all()

    async def _hand_on(self, state: RoutingState) -> bool:
        """Whether the front door has it now."""
        try:
            await self._door.set_state(state)
        except Exception:  # A bug. The control API is to stay: it is by it that a deployment is mended.
            if state != self._failed:
                log.exception("the front door cannot be told what is served, and stays as it is")
            self._failed = state
            return False
        self._state, self._failed = state, None
        return True
