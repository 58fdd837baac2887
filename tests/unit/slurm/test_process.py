"""A command on its leash: it does not outlive who started it, a leash is not taken for an answer, and a command that
cannot be killed holds nobody."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penstock.slurm import process
from penstock.slurm.process import CommandFailed, NotStarted
from tests.patience import PATIENCE_S

PARENT = """
import asyncio, os, sys
from penstock.slurm import process
if sys.argv[1] == "python":
    process.leash = lambda: process.LEASH_OF_PYTHON
asyncio.run(process.run(
    ["sh", "-c", "echo $$ > draft; mv draft pid; exec sleep 600"],
    dict(os.environ), name="it", timeout_s=600, output_bytes_max=1,
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
        end = time.monotonic() + PATIENCE_S
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
        with pytest.raises(NotStarted, match="sbatch cannot be run: .*No such file"):
            await process.run(
                [str(program)],
                dict(os.environ),
                name="sbatch",
                timeout_s=PATIENCE_S,
                output_bytes_max=1000,
            )


UNKILLED = """
import asyncio, os, sys, time
from penstock.slurm import process
process.KILLED_WITHIN_S = 0.2
process.os.killpg = lambda *_: None  # As good as SIGKILL is for who waits for a file server.
async def main():
    await process.run(["sleep", "600"], dict(os.environ), name="squeue", timeout_s=0.2, output_bytes_max=1)
try:
    asyncio.run(main())
except process.CommandFailed as error:
    print(error, flush=True)
"""


def test_what_cannot_be_killed_does_not_keep_us_from_ending() -> None:
    """The command goes on its leash then; in uninterruptible sleep, when its file server is back."""
    done = subprocess.run(
        [sys.executable, "-c", UNKILLED], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0
    assert "was killed and has not ended in 0.2 s" in done.stderr
    assert done.stdout.startswith(
        "squeue gave no answer in 0.2 s and cannot be killed; look at the file server"
    )


async def test_what_cannot_be_killed_is_left_and_so_many_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    killpg = os.killpg
    monkeypatch.setattr(process, "KILLED_WITHIN_S", 0.1)
    monkeypatch.setattr(process, "UNKILLABLE_MAX", 2)

    async def ask() -> process.Outcome:
        return await process.run(
            ["sleep", "600"], dict(os.environ), name="squeue", timeout_s=0.1, output_bytes_max=1
        )

    with monkeypatch.context() as powerless:
        powerless.setattr(os, "killpg", lambda pid, _: killed.append(pid))
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(CommandFailed, match="gave no answer in 0.1 s and cannot be killed"):
                await ask()
        assert time.monotonic() - began < PATIENCE_S
        with pytest.raises(NotStarted, match="squeue is not started: 2 commands were killed and have not"):
            await ask()
    assert len(killed) == 2
    for pid in killed:
        killpg(pid, signal.SIGKILL)
    end = time.monotonic() + PATIENCE_S
    monkeypatch.setattr(process, "KILLED_WITHIN_S", PATIENCE_S)
    while True:
        assert time.monotonic() < end, "nobody buries them"
        with pytest.raises((CommandFailed, NotStarted)) as told:
            await ask()
        # Buried a moment after they are gone.
        if not isinstance(told.value, NotStarted):
            break
        await asyncio.sleep(0.02)
    assert str(told.value).endswith("gave no answer in 0.1 s")
