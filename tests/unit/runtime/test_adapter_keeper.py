"""Adapters that are slow, or whose folders do not answer, keep neither the model nor another adapter away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from penstock_runtime import adapter_keeper
from penstock_runtime.adapter_keeper import AdapterKeeper
from penstock_runtime.config import AdapterConfig
from penstock_runtime.engine import Engine, EngineError


class SlowEngine:
    """Takes adapters named slow-... only when it is told to; it goes on with what its caller has given up."""

    def __init__(self) -> None:
        self.launch = SimpleNamespace(adapters=(), takes_adapters=True, adapter_rank=16)
        self.may_load = asyncio.Event()
        self.loaded: dict[str, str] = {}
        self.tried: list[str] = []

    async def load_adapter(self, name: str, path: str, timeout_s: float) -> None:
        self.tried.append(name)
        if name.startswith("slow"):
            await self.may_load.wait()
        if name in self.loaded:
            raise EngineError(400, f"{name} has already been loaded")
        self.loaded[name] = path

    async def adapters(self) -> dict[str, str]:
        return self.loaded


def lora(folder: Path) -> AdapterConfig:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8}))
    return AdapterConfig(folder.name, str(folder))


def keeper(engine: SlowEngine, *wanted: AdapterConfig) -> AdapterKeeper:
    return AdapterKeeper(cast(Engine, cast(Any, engine)), wanted, changed=lambda: None)


@contextlib.asynccontextmanager
async def running(kept: AdapterKeeper) -> AsyncIterator[None]:
    task = asyncio.create_task(kept.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def until(kept: AdapterKeeper, *names: str) -> None:
    async with asyncio.timeout(60):
        while not set(names) <= set(kept.names):
            await asyncio.sleep(0.005)


async def test_slow_ones_are_left_to_the_time_after(tmp_path: Path) -> None:
    engine = SlowEngine()
    kept = keeper(engine, lora(tmp_path / "quick"), *(lora(tmp_path / f"slow-{n}") for n in range(5)))
    async with asyncio.timeout(60):
        await kept.load_all(3.0)  # Time for the quick one on a machine with hiccups, too.
    assert set(kept.names) == {"quick"}
    assert engine.tried == ["quick", "slow-0"]
    # It went through after all: that is found, not told as a failure.
    engine.loaded["slow-0"] = str(tmp_path / "slow-0")
    engine.may_load.set()
    async with running(kept):
        await until(kept, "quick", *(f"slow-{n}" for n in range(5)))
    assert [one.message for one in kept.standings()] == [""] * 6


async def test_the_wait_is_bounded_where_the_start_may_take_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_keeper, "FIRST_LOADS_S", 0.2)
    kept = keeper(SlowEngine(), lora(tmp_path / "slow"))
    async with asyncio.timeout(60):
        await kept.load_all(1800)
    assert set(kept.names) == set()


async def test_a_folder_that_does_not_answer_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_keeper, "LOOK_TIMEOUT_S", 3.0)
    monkeypatch.setattr(adapter_keeper, "RETRY_FIRST_S", 0.01)
    hung, good = lora(tmp_path / "hung"), lora(tmp_path / "good")
    file = tmp_path / "hung" / "adapter_config.json"
    file.unlink()
    os.mkfifo(file)
    # Whoever reads waits until something is written, or this is closed.
    writer = os.open(file, os.O_RDWR)
    try:
        kept = keeper(SlowEngine(), hung, good)
        await kept.load_all(60)
        told = {one.name: (one.loaded, one.message) for one in kept.standings()}
        message = f"{tmp_path}/hung could not be read within 3 s"
        assert told == {"hung": (False, message), "good": (True, "")}
        file.unlink()
        file.write_text(json.dumps({"r": 8}))
    finally:
        os.write(writer, b'{"r": 8}')
        os.close(writer)
    async with running(kept):
        await until(kept, "hung", "good")
    assert [one.message for one in kept.standings()] == ["", ""]
