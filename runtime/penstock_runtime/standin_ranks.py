"""The stand-in's ranks: one engine of several processes, in vLLM's ways.

Rank 0 listens at the master's address, and serves only once every other rank has come there. A rank that is lost kills
the engine, and a rank that has lost rank 0 ends with code 0, as vLLM's does, which is no success.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

CONNECT_EVERY_S = 0.05


class Head:
    """Rank 0's meeting point. `lost` is called for each rank that came and went."""

    def __init__(self, nodes: int, lost: Callable[[], None]) -> None:
        self._wanted = {str(number) for number in range(1, nodes)}
        self._here: set[str] = set()
        self._lost = lost
        self.complete = asyncio.Event()

    async def listen(self, host: str, port: int) -> asyncio.Server:
        """From now on others may come."""
        return await asyncio.start_server(self._meet, host, port)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError):
            rank = (await reader.readline()).decode(errors="replace").strip()
            if rank in self._wanted - self._here:
                self._here.add(rank)
                if self._here == self._wanted:
                    self.complete.set()
                await reader.read()
                self._lost()
        writer.close()


async def work(host: str, port: int, rank: int, stop: asyncio.Event) -> int:
    """A rank other than 0: there until rank 0 is gone, or it is stopped. Returns the exit code."""
    stopped = asyncio.ensure_future(stop.wait())
    while not stopped.done():
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.wait((stopped,), timeout=CONNECT_EVERY_S)
            continue
        writer.write(f"{rank}\n".encode())
        gone = asyncio.ensure_future(reader.read())
        await asyncio.wait((stopped, gone), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        writer.close()
        break
    stopped.cancel()
    return 0
