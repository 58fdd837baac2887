"""How a process of Penstock begins and ends: what a human must mend is one sentence, and a stop is finished."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

import pytest

from penstock import app
from penstock.settings import Settings
from penstock.supervisor import FINAL_EXIT, AlreadyRunning, Child, Supervisor, only_one


async def nothing(settings: Settings) -> None:
    """A process that has nothing to do."""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"listen": "localhost:8600"}, "listen: 'localhost:8600': neither unix:/path nor IP:port"),
        ({"runtime_listen": "0.0.0.0"}, "runtime_listen: '0.0.0.0': neither unix:/path nor IP:port"),
        ({"database_url": "mysql://db/penstock"}, "database_url: the database URL cannot be read"),
    ],
)
def test_an_address_that_cannot_be_is_one_sentence(
    changed: dict[str, str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert app.run(nothing, Settings(**changed)) == FINAL_EXIT  # type: ignore[arg-type]
    assert [record.getMessage().startswith(said) for record in caplog.records] == [True]


def test_a_host_without_slurm_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = Settings(database_url="postgresql://db/penstock", slurm_backend="cli")
    assert app.run(app.run_controller, settings) == 1
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "there is no sbatch in the PATH; no Python with pyslurm is configured"
    ]


def test_a_second_supervisor_is_told_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with only_one(tmp_path / "run"):
        assert app.run(app.run_all, Settings(state_dir=tmp_path)) == FINAL_EXIT
        with pytest.raises(AlreadyRunning), only_one(tmp_path / "run"):
            pass
    assert "another penstock serve runs with the state folder" in caplog.text


def test_a_second_signal_does_not_cut_the_stop_short() -> None:
    finished = False

    async def main(settings: Settings) -> None:
        nonlocal finished
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.sleep(30)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.1)
            finished = True

    assert app.run(main, Settings()) == 0
    assert finished


async def test_a_child_that_cannot_be_started_ends_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = Child("missing", [str(tmp_path / "no-such-program")])
    steady = Child("steady", ["sleep", "60"])
    with caplog.at_level(logging.INFO):
        running = asyncio.create_task(Supervisor(tmp_path, [missing, steady]).run())
        async with asyncio.timeout(10):
            while caplog.text.count("missing: cannot be started") < 2 or "steady: started" not in caplog.text:
                assert not running.done()
                await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
