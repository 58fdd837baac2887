"""What Envoy is started with, and how its log stays small."""

from __future__ import annotations

import json
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.gateway import envoy
from penstock.gateway.settings import AddressError, FrontDoorSettings


def settings(folder: Path) -> FrontDoorSettings:
    return FrontDoorSettings(
        state_folder=folder / "state",
        control="127.0.0.1:1",
        gateway="127.0.0.1:1",
        gateway_rest="127.0.0.1:1",
        xds=f"unix:{folder}/xds.sock",
    )


def test_envoy_takes_its_start_configuration(tmp_path: Path) -> None:
    mine = settings(tmp_path)
    path = envoy.write_bootstrap(mine)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    done = subprocess.run(
        [*envoy.command(mine, path), "--mode", "validate"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr

    admin = json.loads(envoy.bootstrap(mine))["admin"]["address"]["pipe"]
    assert admin == {"path": str(tmp_path / "state" / "envoy-admin.sock"), "mode": 0o600}
    assert envoy.bootstrap(mine) == envoy.bootstrap(replace(mine)), "the same settings give the same file"


def test_a_state_folder_with_a_long_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="at most 107 bytes"):
        envoy.bootstrap(replace(settings(tmp_path), state_folder=Path("/" + "x" * 100)))


def test_the_log_is_bounded_and_its_end_is_kept(tmp_path: Path) -> None:
    mine = settings(tmp_path)
    envoy.bound_log(mine, 100)
    mine.state_folder.mkdir()
    log = mine.state_folder / envoy.LOG_FILE
    with log.open("a") as writer:
        writer.write("x" * 500 + "the end")
        writer.flush()
        envoy.bound_log(mine, 100)
        assert log.stat().st_size == 0
        assert log.with_suffix(".log.1").read_text() == "x" * 93 + "the end"
        writer.write("more")
        writer.flush()
        envoy.bound_log(mine, 100)
        assert log.read_text() == "more"


def test_a_log_that_cannot_be_copied_is_cut_all_the_same(tmp_path: Path) -> None:
    mine = settings(tmp_path)
    mine.state_folder.mkdir()
    log = mine.state_folder / envoy.LOG_FILE
    log.write_text("x" * 500)
    log.with_suffix(".log.1").mkdir()
    with pytest.raises(IsADirectoryError):
        envoy.bound_log(mine, 100)
    assert log.stat().st_size == 0
