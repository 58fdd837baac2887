"""Between the engine's events and one client's stream: a reader, a pending chunk, a writer.

The reader takes events as they come and merges them; the writer sends whatever is pending as one chunk. A
client that reads slowly so gets fewer, larger chunks, and no queue grows. When the pending chunk is full the
reader stops, and the engine's connection fills up: that is the back-pressure.

The rule guarded here: a stream ends once. Either every choice has its finish reason and the engine closed the
stream as it should, or `chunks` raises after the last text that did arrive. Whose fault it was is for
inference.py to say.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Generic

from penstock_runtime.merge import ChunkT, Merge
from penstock_runtime.translate import Json

# Characters pending before the reader stops. A character is at most four bytes in a message, and clients take
# 4 MiB by default.
PENDING_LIMIT = 1 << 18


class Unfinished(Exception):
    """The engine closed the stream although a choice had no finish reason."""


class Pipe(Generic[ChunkT]):
    """One stream's way through the agent.

    One reader (`fill`) and one writer (`chunks`), in one event loop.
    """

    def __init__(self, merge: Merge[ChunkT], *, limit: int = PENDING_LIMIT) -> None:
        self._merge: Merge[ChunkT] = merge
        self._limit = limit
        self._ended = False
        # A reader that is cancelled leaves this, so that nobody takes a cut stream for a whole one.
        self._failure: Exception | None = Unfinished()
        # Whoever waits: the writer for something to send, the reader for room. Never both.
        self._waiter: asyncio.Future[None] | None = None

    async def fill(self, events: AsyncGenerator[Json, None]) -> None:
        """Reads `events` to their end, and keeps what went wrong for `chunks` to raise."""
        merge = self._merge
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    merge.add(event)
                    if merge.size and not merge.finished:
                        self._wake()
                        if merge.size >= self._limit:
                            await self._wait()
            if merge.finished:
                self._failure = None
        except Exception as error:  # the writer raises it
            self._failure = error
        finally:
            self._ended = True
            self._wake()

    async def chunks(self) -> AsyncIterator[ChunkT]:
        """What to send, as it comes.

        Once every choice is finished, the rest is one chunk: the last one, with the token counts.
        """
        merge = self._merge
        while True:
            while not self._ended and (not merge.size or merge.finished):
                await self._wait()
            if not merge.size:
                break
            chunk = merge.take()
            # A reader that waits for room has it now.
            self._wake()
            yield chunk
        if self._failure is not None:
            raise self._failure

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
            self._waiter = None
