"""A process that answers one line with one line: started when first needed, and again after it died.

It knows nothing of Slurm; `pyslurm.py` says what the lines mean. One request is under way at a time.

The rule guarded here: a request that was sent and not answered in full raises BridgeBroken, and the process is ended,
so that a late answer can never be taken for another request's. It ends with us, too, even where we are killed: what is
sent later than our successor believes could be a second submission.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penstock.slurm import process as processes

log = logging.getLogger(__name__)

ANSWER_BYTES_MAX = 64 * 1024 * 1024
"""About 150,000 jobs of one user."""
STARTS_MAX = 5
STARTS_WINDOW_S = 60.0
"""At most STARTS_MAX starts in this time: a process that dies at once must not be started on every tick for ever."""
LAST_WORDS = 5
"""Lines of standard error kept for the error message."""
UNKILLABLE_MAX = 4
"""Processes that were killed and have not ended. Where so many hang the next would, too: it is not started."""
START_TIMEOUT_S = 30.0
"""Importing pyslurm reads slurm.conf, possibly from a file system that is slow at first."""


class BridgeBroken(Exception):
    """The process is not there, died, or gave no whole answer in time. `sent`: it may have done what was asked."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class Bridge:
    """The process and its pipe."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], timeout_s: float) -> None:
        """`command`: the program and its arguments. `environment`: all of it. `timeout_s`: for one answer."""
        self._command = tuple(command)
        self._environment = dict(environment)
        self._timeout_s = timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._errors: asyncio.Task[None] | None = None
        self._last_words: deque[str] = deque(maxlen=LAST_WORDS)
        self._starts: deque[float] = deque(maxlen=STARTS_MAX)
        self._unkillable: list[asyncio.subprocess.Process] = []
        self._lock = asyncio.Lock()
        self._number = 0
        self.greeting: Mapping[str, Any] = {}
        """The process's first line."""

    @property
    def pid(self) -> int | None:
        """The running process; None when there is none."""
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    async def start(self) -> None:
        """Start the process unless it runs. Raises BridgeBroken."""
        async with self._lock:
            await self._start()

    async def ask(
        self, call: str, may: Callable[[], None] | None = None, **arguments: Any
    ) -> Mapping[str, Any]:
        """Send one request and return its answer, `value` or `error` in it. Raises BridgeBroken.

        `may` is asked when it is this request's turn, right before it is sent; what that raises goes through.
        """
        async with self._lock:
            await self._start()
            if may is not None:
                may()
            self._number += 1
            request = {"id": self._number, "call": call, "with": arguments}
            try:
                answer = await self._exchange(json.dumps(request), self._timeout_s)
            except BaseException:
                # Also when this task is cancelled: the answer would be read as the next request's.
                await self._end()
                raise
            if answer.get("id") != self._number:
                await self._end()
                raise BridgeBroken(f"{self._name} answered another request than {call}", sent=True)
            return answer

    async def close(self) -> None:
        """End the process."""
        async with self._lock:
            await self._end()

    @property
    def _name(self) -> str:
        return f"the pyslurm process ({' '.join(self._command)})"

    async def _start(self) -> None:
        if self.pid is not None:
            return
        await self._end()
        self._unkillable = [one for one in self._unkillable if one.returncode is None]
        if len(self._unkillable) >= UNKILLABLE_MAX:
            raise BridgeBroken(
                f"{self._name} is not started: {len(self._unkillable)} were killed and have not ended;"
                f" {processes.FILE_SERVER}",
                sent=False,
            )
        now = time.monotonic()
        if len(self._starts) == STARTS_MAX and now - self._starts[0] < STARTS_WINDOW_S:
            raise BridgeBroken(
                f"{self._name} was started {STARTS_MAX} times in {STARTS_WINDOW_S:.0f} s and is left alone for now;"
                f" its last words: {self._said()}",
                sent=False,
            )
        self._starts.append(now)
        self._last_words.clear()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *processes.leash(),
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self._environment,
                limit=ANSWER_BYTES_MAX,
                start_new_session=True,  # a Ctrl-C meant for the daemon must not end a submission half-way
            )
        except OSError as error:
            raise BridgeBroken(f"{self._name} cannot be run: {error.strerror}", sent=False) from error
        self._errors = asyncio.create_task(self._listen(self._process.stderr))
        try:
            self.greeting = await self._exchange(None, START_TIMEOUT_S)
        except BridgeBroken as error:
            await self._end()
            obstacle = processes.not_run(self._said())
            said = f"{self._name} cannot be run: {obstacle}" if obstacle else str(error)
            raise BridgeBroken(said, sent=False) from error
        except BaseException:
            await self._end()
            raise
        if "error" in self.greeting:
            await self._end()
            raise BridgeBroken(f"{self._name} cannot use pyslurm: {self.greeting['error']}", sent=False)

    async def _exchange(self, line: str | None, timeout_s: float) -> Mapping[str, Any]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise BridgeBroken(f"{self._name} does not run", sent=False)
        try:
            async with asyncio.timeout(timeout_s):
                if line is not None:
                    process.stdin.write(line.encode() + b"\n")
                    await process.stdin.drain()
                answer = await process.stdout.readline()
        except TimeoutError:
            raise BridgeBroken(f"{self._name} gave no answer in {timeout_s:g} s", sent=True) from None
        except (ConnectionError, ValueError) as error:
            raise BridgeBroken(f"{self._name} broke off: {error}; {self._said()}", sent=True) from error
        if not answer.endswith(b"\n"):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await process.wait()
                    if self._errors is not None:
                        await self._errors
            raise BridgeBroken(f"{self._name} ended with {process.returncode}: {self._said()}", sent=True)
        try:
            loaded = json.loads(answer)
        except ValueError:
            loaded = None
        if not isinstance(loaded, dict):
            raise BridgeBroken(f"{self._name} printed what is not an answer: {answer[:80]!r}", sent=True)
        return loaded

    async def _listen(self, stream: asyncio.StreamReader | None) -> None:
        """Read standard error, so that it never fills up, and keep its end."""
        while stream is not None:
            try:
                line = await stream.readline()
            except ValueError:  # a line without an end; what was read of it is dropped
                continue
            if not line:
                return
            self._last_words.append(line.decode(errors="replace").strip())

    def _said(self) -> str:
        return "; ".join(self._last_words) or "it said nothing"

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # it holds nothing that a gentler end would save
        try:
            async with asyncio.timeout(processes.KILLED_WITHIN_S):
                await process.wait()
        except TimeoutError:
            self._unkillable.append(process)
            log.warning(
                "%s (process %d) was killed and has not ended in %g s; %s",
                self._name,
                process.pid,
                processes.KILLED_WITHIN_S,
                processes.FILE_SERVER,
            )
        if self._errors is not None:
            self._errors.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._errors
            self._errors = None
