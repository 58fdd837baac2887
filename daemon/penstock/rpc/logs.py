"""A job's output, read from the shared file system in bounded pieces. Bytes in, bytes out; knows nothing of who
wrote them.

The agent keeps the file bounded: above 64 MiB it is cut to its last MiB, behind a line that says how many bytes went.
Whoever follows it goes on where they were.

The file appears when the job starts and may appear later still on a slow file system; until then it has no
content. Reading is done in a thread, because a shared file system may hang.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

CHUNK_BYTES = 64 * 1024
"""What a message carries at most."""
POLL_S = 0.2
CHECK_S = 2.0
"""How often it is asked whether more will come."""

_CUT = re.compile(rb"--- penstock: ([0-9]+) bytes were cut here")
"""As runtime/penstock_runtime/output.py writes it."""


async def stream_output(
    path: Path, tail_lines: int | None, is_over: Callable[[], Awaitable[bool]] | None
) -> AsyncIterator[bytes]:
    """The file's content from its last `tail_lines` lines on (None: all).

    With `is_over` it goes on with what is written later, until that says so and the file has been read to its
    end.
    """
    offset = await asyncio.to_thread(_tail_offset, path, tail_lines)
    loop = asyncio.get_running_loop()
    over, asked_at = is_over is None, float("-inf")
    while True:
        if is_over is not None and not over and loop.time() - asked_at >= CHECK_S:
            # Asked before the reading, so that what was written before the end is still read.
            over, asked_at = await is_over(), loop.time()
        offset, content = await asyncio.to_thread(_read, path, offset)
        if content:
            offset += len(content)
            yield content
        elif over:
            return
        else:
            await asyncio.sleep(POLL_S)


def _read(path: Path, offset: int) -> tuple[int, bytes]:
    """What is there to read, and from where: not `offset` where the file has become shorter."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                return offset, b""  # It may be about to be cut, and what it begins with decides.
            if size < offset:
                first = file.readline(200)
                cut = _CUT.match(first)
                # Without that line it is another file: a requeued job has begun it anew.
                offset = len(first) + max(0, offset - int(cut[1])) if cut else 0
            file.seek(offset)
            return offset, file.read(CHUNK_BYTES)
    except FileNotFoundError:
        return offset, b""


def _tail_offset(path: Path, lines: int | None) -> int:
    """Where the last `lines` lines begin; a line without its end at the end of the file counts as one."""
    if lines is None:
        return 0
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            if lines == 0 or end == 0:
                return end
            file.seek(end - 1)
            # The end of the last line closes that line and opens none.
            wanted = lines + (file.read(1) == b"\n")
            position = end
            while position > 0:
                begin = max(0, position - CHUNK_BYTES)
                file.seek(begin)
                block = file.read(position - begin)
                count = block.count(b"\n")
                if count >= wanted:
                    place = -1
                    for _ in range(count - wanted + 1):
                        place = block.index(b"\n", place + 1)
                    return begin + place + 1
                wanted -= count
                position = begin
            return 0
    except FileNotFoundError:
        return 0
