"""Attempts' folders: private, and the only ones that are ever forgotten."""

from __future__ import annotations

import os
import time
from pathlib import Path

from penstock.controller.folders import Folders


def test_only_attempts_folders_are_ever_old(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    folders.prepare("a" * 20, {}, "s3cret")
    made = folders.path("a" * 20)
    (tmp_path / "somebody-elses").mkdir()
    (tmp_path / "link").symlink_to(made)
    for entry in tmp_path.iterdir():
        os.utime(entry, (1, 1), follow_symlinks=False)
    assert set(folders.older_than(time.time())) == {None, "a" * 20}
    assert list(folders.older_than(0)) == [None, None, None]
    assert made.stat().st_mode & 0o777 == 0o700
    assert {file.name: file.stat().st_mode & 0o777 for file in made.iterdir()} == {
        "agent.json": 0o600,
        "secret": 0o600,
    }


def test_a_secret_that_an_agent_may_have_read_stays(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    assert folders.prepare("a" * 20, {}, "first") == "first"
    assert folders.prepare("a" * 20, {"attempt": "2"}, "second") == "first"
    assert (tmp_path / ("a" * 20) / "secret").read_text() == "first\n"
    assert (tmp_path / ("a" * 20) / "agent.json").read_text() == '{\n "attempt": "2"\n}'
    (tmp_path / ("a" * 20) / "secret").write_text("")  # As a power cut may leave it.
    assert folders.prepare("a" * 20, {}, "third") == "third"
