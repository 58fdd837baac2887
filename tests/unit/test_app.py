"""How a process of Penstock begins and ends: what a human must mend is one sentence, and a stop is finished."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from penstock import app, process
from penstock.controller import file_calls
from penstock.controller.folders import Folders
from penstock.settings import Settings
from penstock.store import migrate
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
    assert process.run(nothing, Settings(**changed)) == FINAL_EXIT  # type: ignore[arg-type]
    assert [record.getMessage().startswith(said) for record in caplog.records] == [True]


@pytest.mark.parametrize(
    "origin", ["*", "https://chat.example.org", "http://127.0.0.1:3000", "https://[::1]:8443"]
)
def test_an_origin_as_a_browser_sends_it(origin: str) -> None:
    assert Settings(cors_origins=(origin,)).cors_origins == (origin,)


@pytest.mark.parametrize(
    "origin",
    [
        "https://Chat.example.org",
        "https://x.org:443",
        "http://x.org:80",
        "https://u@x.org",
        "https://x.org/",
        "x.org",
        "",
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="as a browser sends it"):
        Settings(cors_origins=(origin,))


def test_agents_may_call_the_front_door_by_the_name_that_they_have_for_it() -> None:
    named = Settings(hosts=("penstock.example.org",), control=("Login1.example.org:8600", "10.0.0.7:8600"))
    assert app.front_door_settings(named).hosts == ("penstock.example.org", "login1.example.org", "10.0.0.7")
    assert app.front_door_settings(Settings(control=("login1:8600",))).hosts == ()


@pytest.mark.parametrize(
    "host", ["", "Login1", "login1:8600", "https://login1", "*", "*.example.org", "a b", "a" * 254]
)
def test_a_host_that_is_no_name_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="must be a host's name in lower case, without a port"):
        Settings(hosts=(host,))


def test_a_host_without_slurm_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = Settings(database_url="postgresql://db/penstock", slurm_backend="cli")
    assert process.run(app.run_controller, settings) == 1
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "there is no sbatch in the PATH; no Python with pyslurm is configured"
    ]


async def test_a_file_server_that_hangs_keeps_no_controller_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(file_calls, "ANSWER_WITHIN_S", 0.05)
    monkeypatch.setattr(Folders, "make_root", lambda folders: answers.wait(30))
    await app._make_root(Folders(tmp_path / "attempts"))
    answers.set()
    assert f"the folder {tmp_path}/attempts does not answer for 0.05 s" in caplog.text


async def test_a_folder_that_cannot_be_made_ends_the_controller(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await app._make_root(Folders(tmp_path / "nowhere" / "attempts"))
    await app._make_root(Folders(tmp_path / "attempts"))
    assert (tmp_path / "attempts").stat().st_mode & 0o777 == 0o700


def test_a_second_supervisor_is_told_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with only_one(tmp_path / "run"):
        assert process.run(app.run_all, Settings(state_dir=tmp_path)) == FINAL_EXIT
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

    assert process.run(main, Settings()) == 0
    assert finished


def test_a_state_folder_that_others_may_write_to_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o1777)
    assert process.run(nothing, Settings(state_dir=tmp_path / "state")) == FINAL_EXIT
    assert f"state_dir: others may write to {tmp_path}/state (mode 1777)" in caplog.text


@pytest.mark.parametrize("ignored", [False, True], ids=["closed terminal", "nohup"])
def test_a_hangup_is_a_wish_to_stop_unless_ignored(ignored: bool) -> None:
    stopped = False

    async def main(settings: Settings) -> None:
        nonlocal stopped
        os.kill(os.getpid(), signal.SIGHUP)
        try:
            await asyncio.sleep(0.5)
        except asyncio.CancelledError:
            stopped = True
            raise

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        assert process.run(main, Settings()) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stopped is not ignored


class _Server:
    """An embedded server that ends at once, and whose pid file cannot be read at first."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.started_again = threading.Event()
        self._looks = 0

    @property
    def pid(self) -> int | None:
        self._looks += 1
        if self._looks == 1:
            raise PermissionError(13, "Permission denied", "postmaster.pid")
        return None

    def start(self) -> str:
        if self.calls:
            self.started_again.set()
            time.sleep(0.2)
        self.calls.append("started")
        return "postgresql://none/none"

    def stop(self) -> None:
        self.calls.append("stopped")


async def test_the_embedded_server_is_stopped_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "EMBEDDED_LOOK_S", 0.01)
    monkeypatch.setattr(migrate, "current", lambda url: "head")
    server = _Server()
    async with app._embedded(server):  # type: ignore[arg-type]
        assert await asyncio.to_thread(server.started_again.wait, 60)
    # Left while it was being started again.
    assert server.calls.count("stopped") == 1
    assert server.calls[-1] == "stopped"
    assert server.calls.count("started") >= 2


async def test_a_child_that_cannot_be_started_ends_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = Child("missing", [str(tmp_path / "no-such-program")])
    steady = Child("steady", ["sleep", "60"])
    with caplog.at_level(logging.INFO):
        running = asyncio.create_task(Supervisor(tmp_path, [missing, steady]).run())
        async with asyncio.timeout(60):
            while caplog.text.count("missing: cannot be started") < 2 or "steady: started" not in caplog.text:
                assert not running.done()
                await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
