"""What of the embedded PostgreSQL is known without a server: where its socket goes, who can reach a folder, who still
uses the memory of a killed one, and why a start failed."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from penstock.store.embedded import SOCKET_PATH_BYTES, _attached, _is_shared, _log_sizes, _why, reachable
from penstock.store.embedded import _socket_folder as socket_folder

STRANGER = 54321


def test_each_folder_on_the_way_must_let_a_stranger_pass(tmp_path: Path) -> None:
    assert reachable(Path("/"), STRANGER, STRANGER)
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    inner.chmod(0o755)
    inner.parent.chmod(0o700)
    assert not reachable(inner, STRANGER, STRANGER)
    owner = inner.parent.stat()
    assert reachable(inner, owner.st_uid, owner.st_gid)


def test_the_owner_is_judged_by_the_owners_bits(tmp_path: Path) -> None:
    shut = tmp_path / "shut"
    shut.mkdir()
    shut.chmod(0o077)
    owner = shut.stat()
    assert not reachable(shut, owner.st_uid, owner.st_gid)
    shut.chmod(0o700)


def test_the_innermost_mount_says_whether_a_folder_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [
        SimpleNamespace(mountpoint=point, fstype=kind)
        for point, kind in (("/", "ext4"), ("/home", "nfs4"), ("/home/me/scratch", "xfs"), ("/gpfs", "gpfs"))
    ]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)
    shared = {
        path: _is_shared(Path(path))
        for path in ("/srv/a", "/home/me", "/home/me/scratch/a", "/gpfs/a", "/homes")
    }
    assert shared == {
        "/srv/a": False, "/home/me": True, "/home/me/scratch/a": False, "/gpfs/a": True, "/homes": False,
    }  # fmt: skip


@pytest.mark.parametrize("length", [1, 200])
def test_a_socket_path_is_short_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    base = Path("/srv") / ("x" * length)
    folder = socket_folder(base, None)
    assert len(os.fsencode(folder / ".s.PGSQL.5432")) <= SOCKET_PATH_BYTES
    assert (folder == base / "socket") == (length == 1)
    assert socket_folder(base, None) == folder
    assert socket_folder(base.with_name("other" * 50), None) != folder


def test_the_runtime_folder_is_taken_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Path("/srv") / ("x" * 200)
    runtime = Path("/tmp")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert socket_folder(long, None).parent == runtime
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert socket_folder(long, None).parent == Path("/tmp")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    assert socket_folder(long, None).parent == Path("/tmp")


SHARED_MEMORY = """\
       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime
   2244967    3932161   600                    56  8339 13378      8   999   995   999   995 1795385362 1795385362
-1879048191         12   600                    56  8339 13378      3   999   995   999   995 1795385362 1795385362
-1879048191         13   600                    56  8339 13378      0   999   995   999   995 1795385362 1795385362
""".splitlines()


@pytest.mark.parametrize(
    ("block", "processes"),
    [
        ("  2244967   3932161", 8),
        ("  2244967   3932162", 0),
        # The key 0x90000001, as PostgreSQL writes it, and with 32 bits.
        ("18446744071830503425        12", 3),
        ("2415919105        12", 3),
        ("18446744071830503425        13", 0),
        # Died before it was written, or while it was.
        ("", 0),
        ("  2244967", 0),
        ("  2244967   x", 0),
    ],
)
def test_a_killed_servers_processes_are_found_by_its_memory_block(block: str, processes: int) -> None:
    assert _attached(block, SHARED_MEMORY) == processes
    assert _attached(block, []) == 0


@pytest.mark.parametrize(
    ("begun", "added", "started", "why"),
    [
        # This start died before it logged: an earlier one's reason is not its own.
        ("", "", "", "pg_ctl: could not start server"),
        ("", "", "postgres: error while loading libraries", "postgres: error while loading libraries"),
        ("", "LOG: x\n2026 FATAL: mine\nLOG: shut down\n", "", "2026 FATAL: mine"),
        ("", "LOG: x\n", "", "LOG: x"),
        # The file of this day of the week was begun anew.
        ("anew", "LOG: y\n", "", "LOG: y"),
    ],
)
def test_why_a_start_failed_is_from_what_it_wrote(
    tmp_path: Path, begun: str, added: str, started: str, why: str
) -> None:
    monday, tuesday = (tmp_path / "log" / f"postgresql-{day}.log" for day in ("Mon", "Tue"))
    monday.parent.mkdir()
    monday.write_text("2026 FATAL: of monday\n")
    tuesday.write_text("LOG: starting PostgreSQL\n2026 FATAL: of an earlier start\n")
    before = _log_sizes(tmp_path)
    with tuesday.open("w" if begun else "a") as file:
        file.write(added)
    if started:
        (tmp_path / "start.log").write_text(f"{started}\n")
    assert _why(tmp_path, before, "pg_ctl: could not start server\n") == why
