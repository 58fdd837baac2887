"""A child process that prints: started in a group of its own, its output passed on, ended whole.

It does not know what it runs: the engine on this node, or the step that has the agents of the other nodes.

The rule guarded here: nothing of it stays behind. What is left of its group when it ends is killed, and so is a
process that it only stands for: `srun` is no parent of what it starts, so such a program writes its pid into a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from penstock_runtime import output as job_output

LAST_LINES = 50
LAST_LINE_BYTES = 1024
LAST_BYTES = 16 * 1024
"""A child's last words: so many lines, each cut, and so much in all. A stack trace of vLLM is about this long."""
READ_BYTES = 64 * 1024
OUTPUT_END_S = 1.0
"""After the exit, how long its last output may take to arrive."""


@dataclass(frozen=True, slots=True)
class ChildExit:
    """How it ended."""

    # 0 to 255, or the negative number of the signal that killed it.
    code: int
    # Whether `stop` had been called before.
    asked: bool


class Child:
    """One process, from start to exit. All of it on one event loop.

    `env` is the whole environment. `echo` is where its output goes as well (the job's standard output unless told
    otherwise). `pid_file`: where the process that counts writes its pid, where that is not the one that was started.
    """

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], *, echo: BinaryIO | None = None, pid_file: str = ""
    ) -> None:
        self._argv = argv
        self._env = env
        self._echo = sys.stdout.buffer if echo is None else echo
        self._pid_file = pid_file
        self._lines = _LastLines()
        self._process: asyncio.subprocess.Process | None = None
        self._exit: asyncio.Task[ChildExit] | None = None
        self._asked = False

    async def start(self) -> None:
        """Start it. Raises OSError where there is no such program."""
        # A pipe of our own: with asyncio's, the exit is not told before every worker has closed its end too.
        ours, theirs = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                env=self._env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                process_group=0,
            )
        except BaseException:  # Whatever it is, or who started it was cancelled: nobody reads from our end.
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._process = process
        self._exit = asyncio.create_task(self._watch(process, ours))

    @property
    def pid(self) -> int:
        """Of the process that was started, which leads its group."""
        if self._process is None:
            raise RuntimeError("it has not been started")
        return self._process.pid

    @property
    def last_words(self) -> tuple[str, ...]:
        """The last lines of its output so far, oldest first."""
        return self._lines.get()

    @property
    def exited(self) -> asyncio.Task[ChildExit]:
        """Done once it has ended."""
        if self._exit is None:
            raise RuntimeError("it has not been started")
        return self._exit

    async def stop(self, grace_s: float) -> ChildExit:
        """SIGTERM, and SIGKILL for whatever is left after `grace_s`; returns once it is gone. May be called again."""
        exit_ = self.exited
        self._asked = True
        if not exit_.done():
            self._terminate()
            done, _ = await asyncio.wait((exit_,), timeout=grace_s)
            if not done:
                self._kill(self._stand_in_for())
        return await asyncio.shield(exit_)

    def _terminate(self) -> None:
        # To the parent alone: it tells its workers in an order of its own.
        with contextlib.suppress(ProcessLookupError):
            if (pid := self._stand_in_for()) is not None:
                os.kill(pid, signal.SIGTERM)
            elif self._process is not None:
                self._process.send_signal(signal.SIGTERM)

    def _stand_in_for(self) -> int | None:
        """The process that the one we started only stands for, once it is there."""
        try:
            return int(Path(self._pid_file).read_text()) if self._pid_file else None
        except (OSError, ValueError):
            return None

    def _kill(self, other: int | None = None) -> None:
        with contextlib.suppress(ProcessLookupError):
            if other is not None and (group := os.getpgid(other)) != os.getpgid(0):
                os.killpg(group, signal.SIGKILL)
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _watch(self, process: asyncio.subprocess.Process, output_fd: int) -> ChildExit:
        output = asyncio.create_task(self._tee(output_fd))
        exited = ChildExit(await process.wait(), self._asked)
        # Workers that outlive their parent hold GPUs, and our end of its output. Where it was killed, what it stood for
        # may live; where it has ended by itself that one is gone, and its pid may be another's.
        self._kill(self._stand_in_for() if exited.code < 0 else None)
        await asyncio.wait((output,), timeout=OUTPUT_END_S)
        output.cancel()
        return exited

    async def _tee(self, output_fd: int) -> None:
        output = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), os.fdopen(output_fd, "rb", buffering=0)
        )
        since_look = 0
        try:
            while data := await output.read(READ_BYTES):
                self._lines.add(data)
                since_look += len(data)
                with contextlib.suppress(OSError, ValueError):  # a job's log on a full disk ends no engine
                    self._echo.write(data)
                    self._echo.flush()
                if since_look >= job_output.LOOK_EVERY_BYTES:
                    since_look = 0
                    with contextlib.suppress(OSError):  # nor does one that is no file
                        job_output.bound(self._echo.fileno(), job_output.LIMIT_BYTES, job_output.KEEP_BYTES)
        finally:
            transport.close()


class _LastLines:
    """The end of a process's output, bounded in lines and in bytes."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=LAST_LINES)
        self._open = b""

    def add(self, data: bytes) -> None:
        *lines, rest = (self._open + data).split(b"\n")
        self._lines.extend(line[:LAST_LINE_BYTES] for line in lines)
        self._open = rest[:LAST_LINE_BYTES]

    def get(self) -> tuple[str, ...]:
        lines = [*self._lines, self._open] if self._open else list(self._lines)
        kept: deque[str] = deque()
        size = 0
        for line in reversed(lines[-LAST_LINES:]):
            size += len(line) + 1
            if size > LAST_BYTES:
                break
            kept.appendleft(line.decode(errors="replace").rstrip())
        return tuple(kept)
