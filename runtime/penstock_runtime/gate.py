"""Who may come in, and who is inside.

Every inference call enters through the one gate of its replica and is inside until its last byte is handed
over. The gate is closed while the replica starts and when it leaves; closing keeps new calls out and disturbs
nobody inside. `cut` is for what cannot wait any longer: a drain that took too long, an engine that is gone.

The rule guarded here: a call that was inside when the replica had to end is told so, in one status, and never
hears that it was the one who left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Closed(Exception):
    """The gate is closed, or what was inside was cut; the message says why."""


class Gate:
    """The gate of one replica, used from one event loop."""

    def __init__(self, closed: str) -> None:
        self._closed: str | None = closed
        self._cut: str | None = None
        self._inside: set[asyncio.Task[object]] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def inside(self) -> int:
        """How many calls are inside."""
        return len(self._inside)

    def open(self) -> None:
        """Lets calls in."""
        self._closed = None

    def close(self, why: str) -> None:
        """Lets no more calls in; each is told `why`."""
        self._closed = why

    def cut(self, why: str) -> int:
        """Closes, and ends every call inside with `why`. Returns how many there were."""
        self._closed = self._cut = why
        for task in self._inside:
            task.cancel()
        return len(self._inside)

    async def empty(self, timeout_s: float) -> bool:
        """Waits until nobody is inside; False when the time was not enough."""
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Inside for as long as the block runs. Raises Closed at the door, and inside when it is cut."""
        if self._closed is not None:
            raise Closed(self._closed)
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can enter the gate")
        self._inside.add(task)
        self._empty.clear()
        try:
            yield
        except asyncio.CancelledError:
            # The caller who leaves cancels the task as well; `cut` is told apart by having set its reason
            # first.
            if self._cut is not None and task.uncancel() == 0:
                raise Closed(self._cut) from None
            raise
        finally:
            self._inside.discard(task)
            if not self._inside:
                self._empty.set()
