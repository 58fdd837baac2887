"""When the chroot with Slurm 26.05 is taken as it is, and what is said where it cannot be made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy.cluster import chroot


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "penstock" / "slurm-26.05"
    folder.mkdir(parents=True)
    return folder


def test_a_complete_one_is_taken(cache: Path) -> None:
    (cache / "complete").write_text(chroot.recipe_hash() + "\n")
    assert chroot.ensure() == cache / "root"


def test_another_recipe_makes_it_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "complete").write_text(chroot.recipe_hash() + "\n")
    monkeypatch.setattr(chroot, "PACKAGES", [*chroot.PACKAGES, "one-more"])
    assert chroot.existing() is None


def test_a_half_made_one_is_none(cache: Path) -> None:
    (cache / "root").mkdir()
    assert chroot.existing() is None


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert chroot.main([]) == 1
    assert capsys.readouterr().err == (
        "chroot: NO SLURM 26.05 HERE: making a chroot takes root: run this as root once, or do without Slurm 26.05\n"
    )


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        chroot.ChrootError, match="missing debootstrap, unshare, chroot: apt-get install debootstrap"
    ):
        chroot.ensure()


def test_a_mirror_that_does_not_answer_is_told_with_its_words(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("debootstrap", "unshare", "chroot"):
        (programs / name).write_text("#!/bin/sh\necho E: cannot reach the mirror\nexit 1\n")
        (programs / name).chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(chroot, "KEYRING", "/dev/null")
    monkeypatch.setattr(chroot, "SUITE", "sid")
    monkeypatch.setattr(chroot, "DEBOOTSTRAP", tmp_path)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "sid").touch()
    with pytest.raises(chroot.ChrootError, match="debootstrap ended with 1: E: cannot reach the mirror"):
        chroot.ensure(quiet=True)
    assert chroot.existing() is None
