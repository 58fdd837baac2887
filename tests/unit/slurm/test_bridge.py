"""The process behind the pyslurm backend when it misbehaves: each test writes the program."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penstock.core.jobs import Submission
from penstock.slurm import bridge
from penstock.slurm import process as processes
from penstock.slurm.bridge import Bridge, BridgeBroken
from penstock.slurm.choose import choose
from penstock.slurm.port import SlurmUnavailable, SubmissionUnknown
from penstock.slurm.pyslurm import SERVER, PySlurm
from penstock.testing.slurm import anybody
from tests.patience import PATIENCE_S

JOB = Submission(name="n-1", comment="c", script="#!/bin/sh\n", work_dir="/w", output="/w/out")

GREETING = "import json, sys, os, time\nprint(json.dumps({'pyslurm': '1'}), flush=True)\n"
LOOP = "for line in sys.stdin:\n    request = json.loads(line)\n"
ANSWER = "    print(json.dumps({'id': request['id'], 'value': []}), flush=True)\n"


def lives(pid: int) -> bool:
    """Whether it runs; nobody may be there to bury it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


def program(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "program.py"
    path.write_text(text)
    return path


def made(tmp_path: Path, text: str, *, timeout_s: float = 10) -> Bridge:
    return Bridge([sys.executable, str(program(tmp_path, text))], environment={}, timeout_s=timeout_s)


def backend(tmp_path: Path, text: str, *, timeout_s: float = 10) -> PySlurm:
    return PySlurm(python=[sys.executable], server=program(tmp_path, text), timeout_s=timeout_s)


async def test_answers_come_in_turn_from_one_process(tmp_path: Path) -> None:
    one = made(
        tmp_path,
        GREETING
        + LOOP
        + "    print(json.dumps({'id': request['id'], 'value': request['call']}), flush=True)\n",
    )
    answers = await asyncio.gather(*(one.ask(f"call-{number}") for number in range(20)))
    assert [answer["value"] for answer in answers] == [f"call-{number}" for number in range(20)]
    first = one.pid
    await one.ask("again")
    assert one.pid == first
    await one.close()
    assert one.pid is None


async def test_a_killed_process_is_started_again_at_the_next_call(tmp_path: Path) -> None:
    slurm = backend(tmp_path, GREETING + LOOP + ANSWER)
    assert await slurm.list_jobs() == ()
    killed = slurm.bridge.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    for _ in range(2):  # whether the first call still finds the old pipe is a matter of time
        try:
            assert await slurm.list_jobs() == ()
            break
        except SlurmUnavailable:
            continue
    assert slurm.bridge.pid not in (None, killed)
    await slurm.close()


@pytest.mark.parametrize(
    "deed",
    [
        "    sys.exit(3)\n",
        "    os.kill(os.getpid(), 9)\n",
        "    print('{\"id\"', end='', flush=True); sys.exit(0)\n",
        "    print('hello', flush=True)\n",
        "    print(json.dumps({'id': 77, 'value': 1}), flush=True)\n",
        "    print(json.dumps({'id': request['id'], 'value': 'many'}), flush=True)\n",
        "    print(json.dumps({'id': request['id']}), flush=True)\n",
        "    time.sleep(60)\n",
    ],
    ids=["exit", "killed", "half a line", "garbage", "wrong id", "wrong value", "no value", "late"],
)
async def test_without_a_whole_answer_nothing_is_concluded(tmp_path: Path, deed: str) -> None:
    slurm = backend(tmp_path, GREETING + LOOP + deed, timeout_s=0.5 if "sleep" in deed else 10)
    with pytest.raises(SlurmUnavailable):
        await slurm.list_jobs()
    with pytest.raises(SubmissionUnknown, match="submitting job n-1"):
        await slurm.submit(JOB, may=anybody)
    await slurm.close()
    assert slurm.bridge.pid is None


PARENT = """
import asyncio, sys
from penstock.slurm.bridge import Bridge
async def main():
    one = Bridge([sys.executable, "program.py"], environment={}, timeout_s=600)
    await one.ask("submit")
asyncio.run(main())
"""


def test_who_is_killed_takes_the_process_along(tmp_path: Path) -> None:
    """Its submission may not be sent when somebody else's doubt about it is over."""
    program(
        tmp_path, GREETING + LOOP + "    open('pid', 'w').write(f'{os.getpid()} ')\n    time.sleep(600)\n"
    )
    end = time.monotonic() + PATIENCE_S
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=tmp_path) as parent:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith(" "):
            assert time.monotonic() < end
            assert parent.poll() is None
            time.sleep(0.02)
        pid = int((tmp_path / "pid").read_text())
        assert lives(pid)
        parent.kill()
    while lives(pid):
        assert time.monotonic() < end, "it outlived its parent"
        time.sleep(0.02)


async def test_a_process_that_cannot_be_killed_is_left_and_so_many_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "KILLED_WITHIN_S", 0.1)
    monkeypatch.setattr(bridge, "UNKILLABLE_MAX", 1)
    one = made(tmp_path, GREETING + LOOP + "    time.sleep(600)\n", timeout_s=0.2)
    await one.start()
    pid = one.pid
    assert pid is not None
    with monkeypatch.context() as powerless:
        powerless.setattr(asyncio.subprocess.Process, "kill", lambda _: None)
        with pytest.raises(BridgeBroken, match="gave no answer in 0.2 s"):
            await one.ask("anything")
        with pytest.raises(BridgeBroken, match="is not started: 1 were killed and have not ended") as no:
            await one.ask("anything")
        assert not no.value.sent
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + PATIENCE_S
    while one.pid is None:
        assert time.monotonic() < end
        with contextlib.suppress(BridgeBroken):  # Until it is buried.
            await one.start()
        await asyncio.sleep(0.02)
    assert one.pid != pid
    await one.close()


async def test_its_last_words_are_in_the_error(tmp_path: Path) -> None:
    one = made(
        tmp_path, GREETING + LOOP + "    print('out of oil', file=sys.stderr, flush=True); sys.exit(3)\n"
    )
    with pytest.raises(BridgeBroken, match="ended with 3: out of oil"):
        await one.ask("anything")


async def test_a_process_that_keeps_dying_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = made(tmp_path, GREETING + LOOP + "    open('starts', 'a').write('x'); sys.exit(3)\n")
    monkeypatch.chdir(tmp_path)
    for _ in range(bridge.STARTS_MAX):
        with pytest.raises(BridgeBroken, match="ended with 3"):
            await one.ask("anything")
    with pytest.raises(BridgeBroken, match="was started 5 times in 60 s and is left alone") as refused:
        await one.ask("anything")
    assert not refused.value.sent
    assert (tmp_path / "starts").read_text() == "x" * bridge.STARTS_MAX
    monkeypatch.setattr(bridge, "STARTS_WINDOW_S", 0.0)
    with pytest.raises(BridgeBroken, match="ended with 3"):
        await one.ask("anything")


async def test_an_answer_to_a_cancelled_call_is_not_taken_for_the_next(tmp_path: Path) -> None:
    slow_first = (
        "    if request['call'] == 'slow': time.sleep(1)\n"
        "    print(json.dumps({'id': request['id'], 'value': request['call']}), flush=True)\n"
    )
    one = made(tmp_path, GREETING + LOOP + slow_first)
    await one.ask("warm")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await one.ask("slow")
    assert (await one.ask("quick"))["value"] == "quick"
    await one.close()


async def test_a_submission_that_may_not_be_made_any_more_when_its_turn_comes(tmp_path: Path) -> None:
    """Nothing is sent, and the process goes on."""
    noting = "    open('calls', 'a').write(request['call'] + ' ')\n"
    slurm = backend(tmp_path, f"import os\nos.chdir({str(tmp_path)!r})\n" + GREETING + LOOP + noting + ANSWER)
    await slurm.list_jobs()
    pid, held = slurm.bridge.pid, True

    def may() -> None:
        if not held:
            raise PermissionError

    before = asyncio.create_task(slurm.list_jobs())
    waits = asyncio.create_task(slurm.submit(JOB, may=may))
    await asyncio.sleep(0)  # Both have begun.
    held = False
    with pytest.raises(PermissionError):
        await waits
    assert await before == await slurm.list_jobs() == ()
    assert slurm.bridge.pid == pid
    assert (tmp_path / "calls").read_text() == "list_jobs list_jobs list_jobs "
    await slurm.close()


async def test_a_submission_that_nobody_could_send_is_in_no_doubt(tmp_path: Path) -> None:
    slurm = PySlurm(python=[str(tmp_path / "nothing")])
    with pytest.raises(SlurmUnavailable, match="submitting job n-1: .*cannot be run: .*No such file"):
        await slurm.submit(JOB, may=anybody)


async def test_much_noise_on_standard_error_blocks_nothing(tmp_path: Path) -> None:
    one = made(
        tmp_path,
        GREETING
        + LOOP
        + "    sys.stderr.write('x' * 10_000_000 + '\\n' * 1000); sys.stderr.flush()\n"
        + ANSWER,
    )
    assert (await one.ask("anything"))["value"] == []
    await one.close()


async def test_the_real_script_under_a_python_without_pyslurm(tmp_path: Path) -> None:
    slurm = PySlurm(python=[sys.executable])
    with pytest.raises(
        SlurmUnavailable, match="cannot use pyslurm: ModuleNotFoundError: No module named 'pyslurm'"
    ):
        await slurm.list_jobs()
    assert slurm.bridge.pid is None
    assert SERVER.with_name("pyslurm.py").exists(), (
        "a module of that name lies beside the script and was not taken"
    )


async def test_the_choice(tmp_path: Path) -> None:
    fine, broken = program(tmp_path, GREETING + LOOP + ANSWER), tmp_path / "nothing"
    squeue = tmp_path / "enter"
    squeue.write_text("#!/bin/sh\n")
    squeue.chmod(0o755)

    chosen, why = await choose("auto", prefix=[str(squeue)])
    assert (chosen.backend, why) == (
        "cli",
        "Slurm through its commands: no Python with pyslurm is configured.",
    )
    chosen, why = await choose("auto", prefix=[str(squeue)], pyslurm_python=[str(broken)])
    assert chosen.backend == "cli"
    assert why.startswith("Slurm through its commands: pyslurm does not start: ")
    with pytest.raises(SlurmUnavailable, match="cannot be run: .*No such file"):
        await choose("pyslurm", pyslurm_python=[str(broken)])
    with pytest.raises(SlurmUnavailable, match="needs the setting"):
        await choose("pyslurm")
    # The script's own path comes last; a program that ignores it stands for a Python with pyslurm.
    chosen, why = await choose("auto", pyslurm_python=[sys.executable, str(fine)])
    assert (chosen.backend, why) == ("pyslurm", f"Slurm through pyslurm 1 under {sys.executable}.")
    await chosen.close()
    with pytest.raises(SlurmUnavailable, match="there is no .*/nothing in the PATH"):
        await choose("cli", prefix=[str(broken)])
