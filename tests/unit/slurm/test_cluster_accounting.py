"""How the development cluster's accounting database is made, where making it was or is cut short."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.cluster import accounting
from deploy.cluster.processes import start_time, wait_for
from deploy.cluster.settings import ClusterError


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is run to make a database; a test writes it."""
    monkeypatch.setattr(accounting, "INSTALL", str(tmp_path / "install"))
    (tmp_path / "install").touch(mode=0o755)
    return tmp_path / "install"


def test_a_half_made_database_is_removed_first(tmp_path: Path, program: Path) -> None:
    data = accounting.folder(tmp_path) / "data"
    data.mkdir(parents=True)
    (data / "half").touch()
    program.write_text(f"#!/bin/sh\nmkdir {data} && touch {data}/whole\n")
    accounting.install(tmp_path)
    assert [file.name for file in data.iterdir()] == ["whole"]
    program.write_text("#!/bin/sh\nexit 1\n")
    accounting.install(tmp_path)  # is complete, and stays
    assert [file.name for file in data.iterdir()] == ["whole"]


def test_a_failure_is_told_in_its_words_and_is_not_complete(tmp_path: Path, program: Path) -> None:
    program.write_text("#!/bin/sh\necho no space left >&2\nexit 3\n")
    for _ in range(2):
        with pytest.raises(ClusterError, match="install ended with 3: no space left$"):
            accounting.install(tmp_path)


def test_one_that_does_not_end_is_ended_with_its_children(
    tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounting, "INSTALL_TIMEOUT_S", 3.0)  # Time to note its child.
    program.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! > {tmp_path}/child\nwait\n")
    with pytest.raises(ClusterError, match="install did not end within 3 s$"):
        accounting.install(tmp_path)
    child = int((tmp_path / "child").read_text())
    assert wait_for(lambda: start_time(child) is None, 60)
    assert not (accounting.folder(tmp_path) / "complete").exists()
