"""The embedded PostgreSQL: started, found again, stopped, and safe from whatever happens to its owner."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from penstock.store import embedded
from penstock.store.database import conninfo
from penstock.store.embedded import EmbeddedServer, EmbeddedServerError
from tests.databases import FAST
from tests.patience import PATIENCE_S

LOCK = ".s.PGSQL.5432.lock"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the server's account can pass through, unlike pytest's own under root."""
    with tempfile.TemporaryDirectory(prefix="penstock-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture
def server(folder: Path) -> Iterator[EmbeddedServer]:
    made = EmbeddedServer(folder / "postgres", settings=FAST)
    yield made
    made.stop()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def write(url: str, word: str) -> None:
    with psycopg.connect(conninfo(url)) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS words (word text)")
        conn.execute("INSERT INTO words VALUES (%s)", [word])


def read(url: str) -> list[str]:
    with psycopg.connect(conninfo(url)) as conn:
        return [row[0] for row in conn.execute("SELECT word FROM words ORDER BY word")]


def setting(url: str, name: str) -> str:
    with psycopg.connect(conninfo(url)) as conn:
        row = conn.execute("SELECT current_setting(%s)", [name]).fetchone()
    assert row is not None
    return str(row[0])


def test_a_server_with_a_socket_and_no_port(folder: Path, server: EmbeddedServer) -> None:
    url = server.start()
    pid = server.pid
    assert pid is not None
    assert setting(url, "listen_addresses") == ""
    assert setting(url, "server_version").startswith(f"{embedded.MAJOR}.")
    assert setting(url, "server_encoding") == "UTF8"
    assert psutil.Process(pid).net_connections("inet") == []
    socket_folder = folder / "postgres" / "socket"
    assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "postgres" / "data").stat().st_mode) == 0o700
    if os.geteuid() == 0:
        assert psutil.Process(pid).uids().effective != 0


def test_without_settings_what_is_committed_is_on_disk(folder: Path) -> None:
    server = EmbeddedServer(folder / "postgres")
    try:
        url = server.start()
        assert [setting(url, name) for name in ("fsync", "synchronous_commit", "full_page_writes")] == [
            "on"
        ] * 3
    finally:
        server.stop()


def test_started_again_it_has_what_was_committed(server: EmbeddedServer) -> None:
    url = server.start()
    write(url, "kept")
    server.stop()
    assert server.pid is None
    server.stop()
    assert server.start() == url
    assert read(url) == ["kept"]


def test_it_outlives_its_owners_death_and_is_found_again(folder: Path, server: EmbeddedServer) -> None:
    program = (
        "import sys, time; from pathlib import Path; from penstock.store.embedded import EmbeddedServer\n"
        "print(EmbeddedServer(Path(sys.argv[1])).start(), flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder / "postgres")], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        url = owner.stdout.readline().strip()
        pid = server.pid
        write(url, "before")
        owner.send_signal(signal.SIGKILL)
    assert pid is not None
    assert server.pid == pid
    assert server.start() == url
    assert server.pid == pid
    assert read(url) == ["before"]


def test_its_own_death_costs_nothing_that_was_committed(folder: Path) -> None:
    # As it is run for users: what makes tests fast makes commits forgetful.
    server = EmbeddedServer(folder / "postgres")
    try:
        url = server.start()
        pid = server.pid
        assert pid is not None
        write(url, "kept")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.pid is None)
        assert server.start() == url
        assert server.pid not in (None, pid)
        assert read(url) == ["kept"]
    finally:
        server.stop()


NOBODY_BURIES_IT = """
import ctypes, os, signal, sys, time
from pathlib import Path
import psutil
from penstock.store.embedded import EmbeddedServer
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
server = EmbeddedServer(Path(sys.argv[1]))
try:
    server.start()
    pid = server.pid
    os.kill(pid, signal.SIGKILL)
    while server.pid is not None:
        time.sleep(0.01)
    server.start()
    assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert server.pid not in (None, pid)
finally:
    server.stop()
"""
"""Becomes the parent of a server, kills it, and starts it again without having waited for it."""


def test_a_killed_server_that_nobody_buries_is_started_again(folder: Path) -> None:
    command = [sys.executable, "-c", NOBODY_BURIES_IT, str(folder / "postgres")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_start_waits_for_a_killed_servers_last_process(folder: Path, server: EmbeddedServer) -> None:
    url = server.start()
    pid = server.pid
    assert pid is not None
    with psycopg.connect(conninfo(url)) as conn:
        backend = psutil.Process(conn.info.backend_pid)
        backend.suspend()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.pid is None)
        starting = threading.Thread(target=server.start)
        starting.start()
        try:
            # Longer than a start takes to fail, or to succeed.
            starting.join(3)
            assert starting.is_alive()
            assert server.pid is None
        finally:
            backend.resume()
            starting.join(PATIENCE_S)
    assert server.pid not in (None, pid)


def test_a_killed_servers_processes_that_stay_are_told_of(
    folder: Path, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "LEFT_TIMEOUT_S", 0.1)
    url = server.start()
    pid = server.pid
    assert pid is not None
    with psycopg.connect(conninfo(url)) as conn:
        backend = psutil.Process(conn.info.backend_pid)
        backend.suspend()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.pid is None)
        try:
            with pytest.raises(EmbeddedServerError, match="of a server that was killed still use it"):
                server.start()
        finally:
            backend.resume()


def test_two_starts_at_once_are_one_server(folder: Path, server: EmbeddedServer) -> None:
    urls: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: urls.append(EmbeddedServer(folder / "postgres", settings=FAST).start())
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(urls) == 3
    assert set(urls) == {server.start()}
    data = str(folder / "postgres" / "data")

    def is_one_server() -> bool:
        postmasters = [
            process.pid
            for process in psutil.process_iter(["name", "cmdline"])
            if process.info["name"] == "postgres" and data in (process.info["cmdline"] or [])
        ]
        return postmasters == [server.pid]

    wait_until(is_one_server)  # A process that it has just forked has its command line for a moment.


def test_an_initdb_that_was_cut_short_is_begun_anew(folder: Path, server: EmbeddedServer) -> None:
    making = folder / "postgres" / "data.making"
    making.mkdir(parents=True)
    (making / "PG_VERSION").write_text("18\n")
    write(server.start(), "fine")
    assert not making.exists()


def test_files_that_name_some_other_process_are_leftovers(folder: Path, server: EmbeddedServer) -> None:
    """As after a power cut: the pid of the server that was has gone to somebody else, of the same account too."""
    url = server.start()
    write(url, "kept")
    locks = [folder / "postgres" / "data" / "postmaster.pid", folder / "postgres" / "socket" / LOCK]
    contents = [lock.read_text() for lock in locks]
    owner = locks[0].stat()
    server.stop()
    with subprocess.Popen(["sleep", "600"], user=owner.st_uid, cwd="/") as other:
        for lock, content in zip(locks, contents, strict=True):
            lock.write_text("\n".join([str(other.pid), *content.splitlines()[1:]]) + "\n")
            os.chown(lock, owner.st_uid, owner.st_gid)
        assert server.pid is None
        assert read(server.start()) == ["kept"]
        other.kill()


def test_a_long_path_gets_a_short_socket(folder: Path) -> None:
    deep = folder / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    server = EmbeddedServer(deep, settings=FAST)
    try:
        url = server.start()
        socket_folder = Path(setting(url, "unix_socket_directories"))
        assert len(str(socket_folder)) < 80
        assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
        write(url, "fine")
        assert EmbeddedServer(deep).start() == url
    finally:
        server.stop()
    socket_folder.rmdir()


def test_somebody_elses_folder_in_the_sockets_place_is_refused(folder: Path, server: EmbeddedServer) -> None:
    (folder / "postgres").mkdir()
    (folder / "postgres" / "socket").symlink_to("/tmp")
    with pytest.raises(EmbeddedServerError, match="is in the way"):
        server.start()


def test_data_of_another_release_are_left_alone(folder: Path, server: EmbeddedServer) -> None:
    server.start()
    server.stop()
    (folder / "postgres" / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedServerError, match="was made by PostgreSQL 17 and this release brings 18"):
        server.start()


@pytest.mark.parametrize("shared", [True, False])
def test_data_that_another_host_may_be_using_are_left_alone(
    folder: Path, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    write(server.start(), "kept")
    pid_file = folder / "postgres" / "data" / "postmaster.pid"
    content = pid_file.read_text()
    server.stop()
    pid_file.write_text(content)
    os.chown(pid_file, pid_file.parent.stat().st_uid, pid_file.parent.stat().st_gid)
    (folder / "postgres" / "host").write_text("elsewhere\n")
    monkeypatch.setattr(embedded, "_is_shared", lambda path: shared)
    if shared:
        with pytest.raises(EmbeddedServerError, match="was started on host elsewhere and not stopped"):
            server.start()
        pid_file.unlink()
    assert read(server.start()) == ["kept"]


def test_why_it_does_not_start_is_said_from_its_log(
    folder: Path, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "START_TRIES", 1)
    server.start()
    server.stop()
    (folder / "postgres" / "data" / "pg_wal").rename(folder / "pg_wal")
    with pytest.raises(EmbeddedServerError, match=r"does not start: .* FATAL: .*pg_wal"):
        server.start()


def test_why_it_does_not_start_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "START_TRIES", 1)
    server = EmbeddedServer(folder / "postgres", settings={"max_connections": "'many'"})
    with pytest.raises(EmbeddedServerError, match=r"does not start: .*postgresql.conf"):
        server.start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a server that runs as another account")
def test_under_root_a_closed_folder_is_not_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(embedded, "ROOT_HOME", folder / "home")
    server = EmbeddedServer(closed / "postgres", settings=FAST)
    try:
        url = server.start()
        write(url, "kept")
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        assert not (closed / "postgres" / "data").exists()
        server.stop()
        assert read(EmbeddedServer(closed / "postgres", settings=FAST).start()) == ["kept"]
    finally:
        server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a server that runs as another account")
def test_under_root_data_of_a_temporary_folder_go_when_it_is_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = folder / "home"
    monkeypatch.setattr(embedded, "ROOT_HOME", home)
    for name, owner in (("gone", folder / "gone"), ("there", folder), ("unmounted", Path("/srv/unmounted"))):
        (home / name).mkdir(parents=True)
        (home / name / "owner").write_text(f"{owner}\n")
    (home / "software").mkdir()
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    server = EmbeddedServer(closed / "postgres", settings=FAST)
    try:
        server.start()
        (own,) = {path.name for path in home.iterdir()} - {"there", "unmounted", "software"}
        assert (home / own / "owner").read_text() == f"{closed / 'postgres'}\n"
    finally:
        server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a server that runs as another account")
def test_under_root_binaries_that_cannot_be_reached_are_copied(
    folder: Path, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = embedded.installed_binaries()
    monkeypatch.setattr(embedded, "ROOT_HOME", folder / "home")
    monkeypatch.setattr(embedded, "reachable", lambda path, uid, gid: path != installed)
    write(server.start(), "fine")
    assert server.pid is not None
    assert Path(psutil.Process(server.pid).exe()).is_relative_to(folder / "home")
