"""Attempts' folders: private, and the only ones that are ever forgotten."""

from __future__ import annotations

import os
import time
from pathlib import Path

from penstock.controller.folders import Folders


def test_only_attempts_folders_are_ever_old(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    made = folders.prepare("a" * 20, {}, "s3cret")
    (tmp_path / "somebody-elses").mkdir()
    (tmp_path / "link").symlink_to(made)
    for entry in tmp_path.iterdir():
        os.utime(entry, (1, 1), follow_symlinks=False)
    assert folders.older_than(time.time()) == ["a" * 20]
    assert folders.older_than(0) == []
    assert made.stat().st_mode & 0o777 == 0o700
    assert {file.name: file.stat().st_mode & 0o777 for file in made.iterdir()} == {
        "agent.json": 0o600,
        "secret": 0o600,
    }
