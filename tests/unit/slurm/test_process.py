"""A command on its leash: it does not outlive who started it, and a leash is not taken for an answer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penstock.slurm import process
from penstock.slurm.process import CommandFailed

WITHIN_S = 20
PARENT = """
import asyncio, os, sys
from penstock.slurm import process
if sys.argv[1] == "python":
    process.leash = lambda: process.LEASH_OF_PYTHON
asyncio.run(process.run(
    ["sh", "-c", "echo $$ > draft; mv draft pid; exec sleep 600"],
    dict(os.environ), name="it", timeout_s=600, output_bytes_max=1, leashed=True,
))
"""


def lives(pid: int) -> bool:
    """Whether it runs; nobody may be there to bury it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("by", ["setpriv", "python"])
def test_who_is_killed_takes_the_command_along(tmp_path: Path, by: str) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, by], cwd=tmp_path) as parent:
        end = time.monotonic() + WITHIN_S
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < end
            assert parent.poll() is None
            time.sleep(0.02)
        pid = int((tmp_path / "pid").read_text())
        assert lives(pid)
        parent.kill()
    while lives(pid):
        assert time.monotonic() < end, "it outlived its parent"
        time.sleep(0.02)


@pytest.mark.parametrize("leash", [process.leash(), process.LEASH_OF_PYTHON])
async def test_what_cannot_be_run_has_given_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leash: tuple[str, ...]
) -> None:
    monkeypatch.setattr(process, "leash", lambda: leash)
    (tmp_path / "program").write_text("#!/not/there\n")
    (tmp_path / "program").chmod(0o755)
    for program in (tmp_path / "program", tmp_path / "missing"):
        with pytest.raises(CommandFailed, match="sbatch cannot be run: .*No such file"):
            await process.run(
                [str(program)],
                dict(os.environ),
                name="sbatch",
                timeout_s=WITHIN_S,
                output_bytes_max=1000,
                leashed=True,
            )
