"""Keeps a process from outliving the one that started it, and then becomes it.

    python leash.py PARENT_PID PROGRAM [ARGUMENT ...]

An agent that is killed cannot stop its engine, and where Slurm tracks processes by group or by ancestry, an
engine in a group of its own would go on holding its GPUs. So the engine is started through this: it asks the
kernel for SIGTERM when its parent ends (PR_SET_PDEATHSIG in prctl(2), which survives execve), and then
executes the program in its own place. SIGTERM, not SIGKILL, because an engine has children of its own, whom
only it can take along.

A function between fork and exec would do the same without a program of its own, but the agent has threads (gRPC's), and
Python code there can wait for ever for a lock that one of them held.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence

PR_SET_PDEATHSIG = 1
# As shells have it.
EXIT_NOT_FOUND = 127


def leashed(argv: Sequence[str], env: Mapping[str, str]) -> tuple[str, ...]:
    """The command that runs `argv` on a leash held by this process.

    A program that is not there is left as it is, so that starting it fails where the caller can see why.
    """
    if shutil.which(argv[0], path=env.get("PATH", os.defpath)) is None:
        return tuple(argv)
    # -I and -S: whatever the engine's environment says about Python is meant for the engine.
    return (sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid()), *argv)


def main() -> int:
    """Ties itself to its parent and becomes the program."""
    parent, *argv = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        print(f"the engine cannot be tied to its agent: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
    if os.getppid() != int(parent):
        return 0  # it died before it could be asked for
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        print(f"{argv[0]} cannot be run: {error.strerror}", file=sys.stderr)
        return EXIT_NOT_FOUND


if __name__ == "__main__":
    sys.exit(main())
