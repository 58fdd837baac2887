"""`penstock serve`: starts the processes, starts them again when they end, and stops them together.

Children are no hostages: each has a session of its own and lives on when the supervisor is killed, so that no
token stream depends on it. The next supervisor finds them by pid and start time, takes over those that carry
streams (Envoy), and replaces the others. Nothing here knows what the children do.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
"""A child that cannot start must not keep a core busy; one that was killed must be back at once."""
STEADY_AFTER_S = 30.0
"""A child that lived this long starts again without a pause."""
STOP_PATIENCE_S = 10.0
"""From SIGTERM to SIGKILL."""
LOOK_EVERY_S = 0.2
"""At a child that another supervisor started: it is not ours to wait for."""
FINAL_EXIT = 78
"""EX_CONFIG of sysexits.h: starting the child again would not help, a human must."""


class AlreadyRunning(Exception):
    """Another supervisor serves from the same state folder."""


class Hopeless(Exception):
    """A child ended with FINAL_EXIT; it has said why."""


@dataclass(frozen=True, slots=True)
class Child:
    """One process to keep alive."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    adoptable: bool = False
    """Taken over, if it runs with the same command, instead of being replaced."""


@contextlib.contextmanager
def only_one(run_folder: Path) -> Iterator[None]:
    """Holds the state folder's lock. Raises AlreadyRunning. The kernel lets go of it when the process ends,
    however it ends."""
    run_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (run_folder / "supervisor.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"another penstock serve runs with the state folder {run_folder.parent}"
            ) from None
        yield


class Supervisor:
    """Keeps the children alive until cancelled."""

    def __init__(self, run_folder: Path, children: Sequence[Child]) -> None:
        self._run_folder = run_folder
        self._children = children

    async def run(self) -> None:
        """Starts all children in order and watches them; cancelled, stops them in reverse order. Raises
        Hopeless."""
        keepers = [_Keeper(child, self._run_folder / f"{child.name}.pid") for child in self._children]
        try:
            async with asyncio.TaskGroup() as group:
                for keeper in keepers:
                    group.create_task(keeper.run())
        except* Hopeless as errors:
            raise errors.exceptions[0] from None
        finally:
            for keeper in reversed(keepers):
                await keeper.stop()


class _Keeper:
    """One child's life."""

    def __init__(self, child: Child, pid_file: Path) -> None:
        self._child = child
        self._pid_file = pid_file
        self._process: psutil.Process | None = None

    async def run(self) -> None:
        pause = FIRST_PAUSE_S
        found = _alive(self._pid_file)
        if found is not None and self._child.adoptable and _runs(found, self._child):
            log.info("%s: taken over, pid %d", self._child.name, found.pid)
            self._process = found
            await self._gone(found)
            log.warning("%s ended", self._child.name)
        elif found is not None:
            log.info("%s: an earlier one is replaced, pid %d", self._child.name, found.pid)
            await _end(found)
        while True:
            started = time.monotonic()
            status = await self._live()
            if status == FINAL_EXIT:
                raise Hopeless(f"{self._child.name} cannot run; it has said why above")
            pause = (
                FIRST_PAUSE_S
                if time.monotonic() - started > STEADY_AFTER_S
                else min(2 * pause, LONGEST_PAUSE_S)
            )
            log.warning("%s ended with %d; started again in %.1f s", self._child.name, status, pause)
            await asyncio.sleep(pause)

    async def _live(self) -> int:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._child.command,
                env={**os.environ, **self._child.environment},
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:  # Out of processes or memory, for a while: no reason to end the others.
            log.error("%s: cannot be started: %s", self._child.name, error)
            return os.EX_OSERR
        self._process = _remember(process.pid, self._pid_file)
        log.info("%s: started, pid %d", self._child.name, process.pid)
        return await process.wait()

    async def _gone(self, process: psutil.Process) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):  # It may go between the two looks.
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(LOOK_EVERY_S)

    async def stop(self) -> None:
        if self._process is not None:
            await _end(self._process)
        self._pid_file.unlink(missing_ok=True)


def _remember(pid: int, pid_file: Path) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        note = json.dumps({"pid": pid, "created": process.create_time()})
    except psutil.NoSuchProcess:
        return None
    draft = pid_file.with_suffix(".draft")
    try:
        draft.write_text(note)
        draft.replace(pid_file)
    except OSError as error:  # A full disk: the child runs, and only the next supervisor will not know it.
        log.error("%s cannot be written: %s", pid_file, error)
    return process


def _alive(pid_file: Path) -> psutil.Process | None:
    """The process that the file tells of, if it is that very one and lives."""
    try:
        noted = json.loads(pid_file.read_text())
        process = psutil.Process(noted["pid"])
        same = abs(process.create_time() - noted["created"]) < 0.01
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return None


def _runs(process: psutil.Process, child: Child) -> bool:
    try:
        return process.cmdline()[1:] == list(child.command)[1:]
    except psutil.Error:
        return False


async def _end(process: psutil.Process) -> None:
    """SIGTERM, some patience, SIGKILL."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_PATIENCE_S
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                log.warning("pid %d does not end and is killed", process.pid)
                process.kill()
                return
            await asyncio.sleep(0.05)
