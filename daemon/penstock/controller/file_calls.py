"""Calls of the shared file system, none of which may hold the controller.

A file server that hangs holds whoever calls it, for hours, and a thread that is held so can be neither ended nor
waited for. So each call has a thread that the process does not wait for at its end, an answer is waited for only so
long, and while a call that was given up has not returned nobody else calls: threads are bounded, and the first answer
is what says that the server is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_WITHIN_S = 30.0
"""A busy file server answers within seconds; one that fails over takes longer, and is tried again."""

CALLS = 4
"""At a time, and so the threads that a hang can hold."""


class FolderSilent(OSError):
    """The file system has not answered. Whether the call was carried out, or will be, is not known."""


class FileCalls:
    """Calls for one folder, from one event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._slots = asyncio.Semaphore(CALLS)
        self._given_up = 0
        """Calls that nobody waits for any more, and that have not returned."""

    async def do(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises, from a thread of its own. Raises FolderSilent, and OSError without one."""
        if self._given_up:
            raise self._silent()
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S) as limit:
                await self._slots.acquire()
                return await self._begun(call)
        except TimeoutError:  # A soft mount's own time-out is one, too.
            if not limit.expired():
                raise
            raise self._silent() from None

    def _silent(self) -> FolderSilent:
        return FolderSilent(
            f"the folder {self._folder} does not answer for {ANSWER_WITHIN_S:g} s; look at its file server"
        )

    def _begun(self, call: Callable[[], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def given_up(answer: asyncio.Future[T]) -> None:
            if answer.cancelled():
                self._given_up += 1
                log.warning("%s", self._silent())

        def ended(result: Any, error: BaseException | None) -> None:
            self._slots.release()
            if answer.cancelled():
                self._given_up -= 1
                log.info("the folder %s answers again", self._folder)
            elif error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        def run() -> None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = call()
            except BaseException as raised:  # Whoever asked is to hear of it, whatever it is.
                error = raised
            with contextlib.suppress(RuntimeError):  # The loop is closed: nobody is there any more.
                loop.call_soon_threadsafe(ended, result, error)

        answer.add_done_callback(given_up)
        try:
            threading.Thread(target=run, name="shared-files", daemon=True).start()
        except RuntimeError as error:  # The machine has none left, for a while.
            self._slots.release()
            raise OSError(errno.EAGAIN, f"no thread can be started: {error}") from error
        return answer
