"""One command run to its end: bounded in time and in output, and leaving no process behind.

A thousand submissions are a thousand commands, so what starting one costs us is what submitting costs. asyncio's own
subprocesses take about three times as much of our CPU as this (a transport for each pipe, and on Python 3.11 a thread
for each child). What is written to the command lies in memory before it starts, so that only its output must be
waited for.

What it does not know: Slurm, and what the output means.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ERROR_CHARACTERS_MAX = 500
"""How much of a command's complaint goes into an error message."""
READ_BYTES = 1 << 16
"""In one go: what a pipe holds."""

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


async def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    name: str,
    stdin: str = "",
    timeout_s: float,
    output_bytes_max: int,
    leashed: bool = False,
    may: Callable[[], None] | None = None,
) -> Outcome:
    """Runs the command, in a session of its own, with exactly this environment.

    `name`: what error messages call it. Raises CommandFailed. When it is late, prints too much, or the caller is
    cancelled, it is killed with all that it started. `leashed`: the command (not what it has started) is killed, too,
    when this process is: by the kernel, even after a SIGKILL. `may` is asked right before it is started; what that
    raises goes through.
    """
    if leashed and shutil.which(command[0], path=environment.get("PATH", os.defpath)) is not None:
        command = (*leash(), *command)
    if may is not None:
        may()
    try:
        process = _start(command, environment, stdin)
    except OSError as error:
        raise CommandFailed(f"{name} cannot be run: {error.strerror}") from error
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await _output(process, output_bytes_max)
            status = await _ended(process)
    except TimeoutError:
        raise CommandFailed(f"{name} gave no answer in {timeout_s:g} s") from None
    except _TooMuch:
        raise CommandFailed(f"{name} printed more than {output_bytes_max} bytes") from None
    finally:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(_ended(process))
    outcome = Outcome(status, stdout.decode(errors="replace"), stderr.decode(errors="replace"))
    if leashed and status != 0 and outcome.stderr.startswith("setpriv: "):
        raise CommandFailed(f"{name} cannot be run: {outcome.complaint}")
    return outcome


@functools.cache
def leash() -> tuple[str, ...]:
    """What stands before a command that is to be killed with us (PR_SET_PDEATHSIG in prctl(2), which survives execve).

    A function between fork and exec would do it more cheaply, and could wait for ever for a lock that another thread
    held. setpriv has it since util-linux 2.33.
    """
    setpriv = shutil.which("setpriv")
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


async def _ended(process: subprocess.Popen[bytes]) -> int:
    """Its exit status. Who has closed both pipes is nearly always gone; a thread waits for one that is not."""
    status = process.poll()
    return await asyncio.to_thread(process.wait) if status is None else status
