"""One command run to its end: bounded in time and in output, and leaving no process behind.

A thousand submissions are a thousand commands, so what starting one costs us is what submitting costs. asyncio's own
subprocesses take about three times as much of our CPU as this (a transport for each pipe, and on Python 3.11 a thread
for each child). What is written to the command lies in memory before it starts, so that only its output must be
waited for.

What it does not know: Slurm, and what the output means.

The rule guarded here: no command holds its caller, whatever holds the command. One that waits for a file server in
uninterruptible sleep cannot be killed; it is waited for a few seconds and left to a thread that nobody waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)

ERROR_CHARACTERS_MAX = 500
"""How much of a command's complaint goes into an error message."""
READ_BYTES = 1 << 16
"""In one go: what a pipe holds."""

KILLED_WITHIN_S = 5.0
"""Who is killed and can go is gone in milliseconds, on a busy machine in a second."""
UNKILLABLE_MAX = 16
"""Each holds a thread and a process. Where so many hang the next would, too: it is not started."""
FILE_SERVER = "look at the file server that Slurm's programs or its configuration lie on"

LEASH_OF_PYTHON = (
    sys.executable,
    "-I",
    "-S",
    "-c",
    """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError as error:
    sys.exit(f"setpriv: {sys.argv[1]}: {error.strerror}")
""",
)
"""Does what setpriv does, at ten times its cost."""
LEASH_SAYS = "setpriv: "


@dataclass(frozen=True, slots=True)
class Outcome:
    """A command that ran to its end."""

    status: int
    """The exit status; -N when signal N ended it."""
    stdout: str
    stderr: str

    @property
    def complaint(self) -> str:
        """What the command said, on one line, for an error message."""
        text = " ".join(self.stderr.split()) or " ".join(self.stdout.split())
        return text[:ERROR_CHARACTERS_MAX] or f"exit status {self.status} and not a word"


class CommandFailed(Exception):
    """A command did not run to its end: missing, late, or printing without end."""


class NotStarted(CommandFailed):
    """Nothing of it was begun."""


_unkillable: list[subprocess.Popen[bytes]] = []
"""Killed, and not gone by then: at most UNKILLABLE_MAX and those that ran when it was reached."""


async def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    name: str,
    stdin: str = "",
    timeout_s: float,
    output_bytes_max: int,
    may: Callable[[], None] | None = None,
) -> Outcome:
    """Runs the command, in a session of its own, with exactly this environment.

    `name`: what error messages call it. Raises CommandFailed. When it is late, prints too much, or the caller is
    cancelled, it is killed with all that it started; when this process is killed, even with SIGKILL, the kernel kills
    the command (not what it has started). `may` is asked right before it is started; what that raises goes through.
    """
    _unkillable[:] = [one for one in _unkillable if one.returncode is None]
    if (hanging := len(_unkillable)) >= UNKILLABLE_MAX:
        raise NotStarted(
            f"{name} is not started: {hanging} commands were killed and have not ended; {FILE_SERVER}"
        )
    if may is not None:
        may()
    try:
        # The leash, which lies on this host, finds and loads the program: were that done here, a file server that
        # hangs would hold the event loop.
        process = _start((*leash(), *command), environment, stdin)
    except OSError as error:
        raise NotStarted(f"{name} cannot be run: {error.strerror}") from error
    failure, gone = "", True
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await _output(process, output_bytes_max)
            status = await _ended(process)
    except TimeoutError:
        failure = f"{name} gave no answer in {timeout_s:g} s"
    except _TooMuch:
        failure = f"{name} printed more than {output_bytes_max} bytes"
    finally:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        if process.returncode is None:
            gone = await _killed(process, name)
    if failure:
        raise CommandFailed(failure if gone else f"{failure} and cannot be killed; {FILE_SERVER}")
    outcome = Outcome(status, stdout.decode(errors="replace"), stderr.decode(errors="replace"))
    if status != 0 and (obstacle := not_run(outcome.stderr)):
        raise NotStarted(f"{name} cannot be run: {obstacle}")
    return outcome


def not_run(stderr: str) -> str:
    """Why the leash could not begin its command, as it says itself; empty: it began."""
    said = " ".join(stderr.split())
    return said.removeprefix(LEASH_SAYS)[:ERROR_CHARACTERS_MAX] if said.startswith(LEASH_SAYS) else ""


@functools.cache
def leash() -> tuple[str, ...]:
    """What stands before a command that is to be killed with us (PR_SET_PDEATHSIG in prctl(2), which survives execve).

    A function between fork and exec would do it more cheaply, and could wait for ever for a lock that another thread
    held. setpriv has it since util-linux 2.33; it is not looked for where a file server could hang.
    """
    setpriv = shutil.which("setpriv", path="/usr/bin:/bin")
    if setpriv is not None:
        command = (setpriv, "--pdeathsig", "KILL")
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if subprocess.run((*command, "true"), capture_output=True, timeout=5).returncode == 0:
                return command
    return LEASH_OF_PYTHON


class _TooMuch(Exception):
    pass


def _start(command: Sequence[str], environment: Mapping[str, str], stdin: str) -> subprocess.Popen[bytes]:
    with open(os.memfd_create("stdin"), "w+b", buffering=0) as given:
        given.write(stdin.encode())
        given.seek(0)
        return subprocess.Popen(
            command,
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,  # A Ctrl-C meant for the daemon must not end an sbatch half-way.
        )


async def _output(process: subprocess.Popen[bytes], bytes_max: int) -> tuple[bytes, bytes]:
    """All that it prints until it has closed both pipes. Raises _TooMuch."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    printed = {stream.fileno(): io.BytesIO() for stream in (process.stdout, process.stderr) if stream}
    unread = set(printed)

    def readable(descriptor: int) -> None:
        piece = os.read(descriptor, READ_BYTES)
        printed[descriptor].write(piece)
        if not piece:
            loop.remove_reader(descriptor)
            unread.discard(descriptor)
        if ended.done():
            return
        if not unread:
            ended.set_result(None)
        elif sum(text.tell() for text in printed.values()) > bytes_max:
            ended.set_exception(_TooMuch())

    for descriptor in printed:
        loop.add_reader(descriptor, readable, descriptor)
    try:
        await ended
    finally:
        for descriptor in unread:
            loop.remove_reader(descriptor)
    stdout, stderr = (text.getvalue() for text in printed.values())
    return stdout, stderr


def _ended(process: subprocess.Popen[bytes]) -> asyncio.Future[int]:
    """Its exit status. Who has closed both pipes is nearly always gone; a thread waits for one that is not, and nobody
    for the thread."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    if (status := process.poll()) is not None:
        ended.set_result(status)
        return ended

    def tell(status: int) -> None:
        if not ended.done():
            ended.set_result(status)

    def wait() -> None:
        status = process.wait()
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody is there any more.
            loop.call_soon_threadsafe(tell, status)

    threading.Thread(target=wait, name="command", daemon=True).start()
    return ended


async def _killed(process: subprocess.Popen[bytes], name: str) -> bool:
    """Kills it with all that it started. Returns whether it is gone: one that hangs in the kernel is not."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        gone, _ = await asyncio.wait([_ended(process)], timeout=KILLED_WITHIN_S)
    finally:
        if process.returncode is None:
            _unkillable.append(process)
    if not gone:
        log.warning(
            "%s (process %d) was killed and has not ended in %g s; %s",
            name,
            process.pid,
            KILLED_WITHIN_S,
            FILE_SERVER,
        )
    return bool(gone)
