"""What is read of adapters' folders before an engine starts, which nobody has looked at yet."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from penstock_runtime import adapters
from penstock_runtime.adapters import MAX_CONFIG_BYTES, ranks, readable, why_not
from penstock_runtime.config import AdapterConfig


def adapter(folder: Path, text: bytes) -> AdapterConfig:
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(text)
    return AdapterConfig(name=folder.name, path=str(folder))


def test_a_folder_that_does_not_answer_keeps_no_engine_from_being_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "LOOK_TIMEOUT_S", 3.0)
    good, hung = adapter(tmp_path / "good", b'{"r": 20}'), adapter(tmp_path / "hung", b"")
    file = tmp_path / "hung" / "adapter_config.json"
    file.unlink()
    os.mkfifo(file)
    # Whoever reads waits until something is written, or this is closed.
    writer = os.open(file, os.O_RDWR)
    try:
        found = ranks((good, hung))
    finally:
        os.close(writer)
    assert found == {good.path: 20, hung.path: f"{hung.path} could not be read within 3 s"}
    assert readable(found) == (good.path,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b" " * (MAX_CONFIG_BYTES + 1), "is longer than 1 MiB"),
        (b"[" * 200_000, "RecursionError"),
        (b'{"r": Infinity}', "OverflowError"),
        (b'{"r": "many"}', "invalid literal"),
        (b'{"rank": 8}', "KeyError"),
        (b"\xff", "DecodeError"),
    ],
)
def test_a_file_that_says_no_rank(tmp_path: Path, text: bytes, says: str) -> None:
    one = adapter(tmp_path / "one", text)
    found = ranks((one,))
    assert str(found[one.path]) == why_not(one, None)
    assert says in why_not(one, None)
    assert readable(found) == ()


def test_a_file_as_long_as_it_may_be_is_read(tmp_path: Path) -> None:
    text = json.dumps({"r": 8}).encode()
    one = adapter(tmp_path / "one", text + b" " * (MAX_CONFIG_BYTES - len(text)))
    assert ranks((one,)) == {one.path: 8}
