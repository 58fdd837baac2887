"""Processes of this machine, as /proc has them: which they are, when they began, with what environment.

A pid alone names nobody for long: with the start time and the boot it names one process for ever."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Started:
    """A daemon that this program started."""

    pid: int
    start_time: int
    """Clock ticks after boot, as in /proc/PID/stat; with the pid it names one process for ever, until a reboot."""
    boot_id: str


def start_time(pid: int) -> int | None:
    """When process `pid` started, in clock ticks after boot; None when there is none, or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def environ_of(pid: int) -> dict[str, str]:
    """The environment that process `pid` was started with; empty when it is gone or another user's."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0"))
    return {os.fsdecode(key): os.fsdecode(value) for key, separator, value in pairs if separator}


def processes() -> Iterator[int]:
    yield from (int(name) for name in os.listdir("/proc") if name.isdigit())


def user() -> str:
    """Whose processes ours are."""
    return pwd.getpwuid(os.geteuid()).pw_name


def wait_for(condition: Callable[[], bool], timeout_s: float, *, every_s: float = 0.02) -> bool:
    """Whether the condition became true within the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True
