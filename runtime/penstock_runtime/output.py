"""The job's output file, kept small: it is all that a person has of a job that failed, and nobody else rotates it.

The agent is the only one who writes to it: what the engine prints goes through the agent. So the file can be cut in its
place, by which whoever follows it keeps it open. It begins with a line that says how much was cut, whose form
daemon/penstock/rpc/logs.py reads.
"""

from __future__ import annotations

import os
import stat

LIMIT_BYTES = 64 * 1024 * 1024
"""Days of an engine's output at its usual level, and a thousand replicas of it are still some 60 GiB."""
KEEP_BYTES = 1024 * 1024
"""What stays of it: thousands of lines before the one that matters."""
LOOK_EVERY_BYTES = 1024 * 1024
"""So much is written between two looks at the file's size, which cost a round trip on a shared file system."""


def bound(fd: int, limit_bytes: int = LIMIT_BYTES, keep_bytes: int = KEEP_BYTES) -> None:
    """Cuts the regular file behind `fd` to its last whole lines once it is above the limit. Raises OSError."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size <= limit_bytes:
        return
    # Ours is open for writing only.
    with open(f"/proc/self/fd/{fd}", "rb") as reader:
        reader.seek(status.st_size - keep_bytes)
        kept = reader.read(keep_bytes)
    kept = kept[kept.find(b"\n") + 1 :]
    cut = status.st_size - len(kept)
    note = f"--- penstock: {cut} bytes were cut here: a job's output is kept below {limit_bytes} bytes ---\n"
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)  # Slurm opens it for appending; other writers would leave a hole.
    rest = memoryview(note.encode() + kept)
    while rest:
        rest = rest[os.write(fd, rest) :]
