"""Keeps the engine's LoRA adapters as the control plane wants them, while the engine runs.

    wanted and not there    load it; where that fails, try again, later and later
    there and not wanted    leave it for UNLOAD_AFTER_S, so that front doors send nothing to it any more, then unload it
    from another folder     as not wanted, and then load it from the right one

One thing is done at a time, because each stops the engine's work for a moment. What an engine can load is the engine's
to say; which adapters there are to be is the control plane's.

The rule guarded here: what is said to be loaded is what the engine has said to have taken, from that very folder. An
adapter that cannot be loaded costs nobody the model or another adapter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Sequence

from penstock.v1 import replica_pb2
from penstock_runtime.adapters import LOOK_TIMEOUT_S, in_thread, why_not
from penstock_runtime.config import AdapterConfig
from penstock_runtime.engine import Engine, EngineError

UNLOAD_AFTER_S = 1.0
"""Front doors hear of an adapter that is not wanted any more when the agent does, or before, and need milliseconds."""
LOAD_TIMEOUT_S = 300.0
"""Adapters have some hundred megabytes, and shared file systems are slow at times."""
FIRST_LOADS_S = 30.0
"""For so long a model that could serve already waits for all its adapters together."""
RETRY_FIRST_S = 1.0
RETRY_LONGEST_S = 60.0
MAX_MESSAGE_CHARACTERS = 500
"""The contract's 1024 are more than anybody reads in a table."""

_log = logging.getLogger(__name__)

_Move = tuple[str, str | None, str | None]
"""An adapter's name, the folder that it is loaded from, and the one that it should be."""


class AdapterKeeper:
    """The adapters of one engine. `changed` is called when what `standings` says is another."""

    def __init__(
        self, engine: Engine, wanted: Sequence[AdapterConfig], *, changed: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._changed = changed
        self._wanted = {adapter.name: adapter.path for adapter in wanted}
        # What it was started with, which is proven before it is ready.
        self._loaded = {adapter.name: adapter.path for adapter in engine.launch.adapters}
        self._troubles: dict[_Move, str] = {}
        self._due: dict[_Move, float] = {}
        self._failures: dict[_Move, int] = {}
        # Folders that are being looked at, and why they cannot be loaded. One that hangs keeps its thread: so one each.
        self._looks: dict[str, asyncio.Future[str]] = {}
        self._woken = asyncio.Event()

    @property
    def names(self) -> Collection[str]:
        """Those that may be asked for."""
        return self._loaded.keys()

    def standings(self) -> list[replica_pb2.AdapterStanding]:
        """How each that is wanted stands."""
        return [
            replica_pb2.AdapterStanding(
                name=name,
                path=path,
                loaded=self._loaded.get(name) == path,
                message=self._troubles.get((name, self._loaded.get(name), path), ""),
            )
            for name, path in self._wanted.items()
        ]

    def want(self, adapters: Sequence[AdapterConfig]) -> None:
        """From now on these are to be there, and no others."""
        wanted = {adapter.name: adapter.path for adapter in adapters}
        if wanted == self._wanted:
            return
        _log.info("adapters that are wanted: %s", ", ".join(wanted) or "none")
        self._wanted = wanted
        self._woken.set()
        self._changed()

    async def load_all(self, timeout_s: float) -> None:
        """One try for each that is wanted, before anybody may ask for it; what takes longer is left to `run`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(timeout_s, FIRST_LOADS_S)):
                await self._once()
                return
        _log.warning("adapters that are slow to load are loaded while the replica serves")

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._woken.clear()
            wait_s = await self._once()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()

    async def _once(self) -> float | None:
        """Does what is due; returns after how many seconds something will be, None: nothing until more is wanted."""
        for name in (*self._loaded, *self._wanted):
            while (move := self._move(name)) and self._due_at(move) <= time.monotonic():
                if not await self._tried(move):
                    break
        moves = [move for name in (*self._loaded, *self._wanted) if (move := self._move(name))]
        for remembered in (self._due, self._failures, self._troubles):
            for move in remembered.keys() - set(moves):
                del remembered[move]
        return max(0.0, min(map(self._due_at, moves)) - time.monotonic()) if moves else None

    def _move(self, name: str) -> _Move | None:
        has, wants = self._loaded.get(name), self._wanted.get(name)
        return (name, has, wants) if has != wants else None

    def _due_at(self, move: _Move) -> float:
        delay_s = UNLOAD_AFTER_S if move[1] is not None else 0.0
        return self._due.setdefault(move, time.monotonic() + delay_s)

    async def _tried(self, move: _Move) -> bool:
        """Whether it was done."""
        name, has, wants = move
        try:
            if has is not None:
                await self._unload(name)
            elif wants is not None:
                await self._load(AdapterConfig(name, wants))
        except EngineError as error:
            self._failed(move, str(error)[:MAX_MESSAGE_CHARACTERS])
            return False
        self._changed()
        return True

    def _failed(self, move: _Move, message: str) -> None:
        failures = self._failures[move] = self._failures.get(move, 0) + 1
        wait_s = min(RETRY_LONGEST_S, RETRY_FIRST_S * 2.0 ** (failures - 1))
        self._due[move] = time.monotonic() + wait_s
        if self._troubles.get(move) != message:
            _log.warning("adapter %r: %s; tried again, the next time in %g s", move[0], message, wait_s)
            self._troubles[move] = message
            self._changed()

    async def _load(self, adapter: AdapterConfig) -> None:
        """Raises EngineError."""
        if not self._engine.launch.takes_adapters:
            raise EngineError(0, "the engine was started without room for adapters that come later")
        room = self._engine.launch.adapter_rank
        if misfit := await self._look(adapter, room):
            raise EngineError(0, misfit)
        begun = time.monotonic()
        try:
            await self._engine.load_adapter(adapter.name, adapter.path, LOAD_TIMEOUT_S)
        except EngineError:
            # A try that took too long may have gone through, and is then refused as one too many.
            there = (await self._engine.adapters()).get(adapter.name)
            if there is not None:
                self._loaded[adapter.name] = there
            if there != adapter.path:
                raise
        self._loaded[adapter.name] = adapter.path
        _log.info("adapter %r is loaded, in %.1f s", adapter.name, time.monotonic() - begun)

    async def _look(self, adapter: AdapterConfig, room: int | None) -> str:
        """What `why_not` says, or that it says nothing."""
        look = self._looks.get(adapter.path)
        if look is None:
            look = self._looks[adapter.path] = asyncio.wrap_future(in_thread(lambda: why_not(adapter, room)))
        await asyncio.wait({look}, timeout=LOOK_TIMEOUT_S)
        if not look.done():
            return f"{adapter.path} could not be read within {LOOK_TIMEOUT_S:g} s"
        del self._looks[adapter.path]
        return look.result()

    async def _unload(self, name: str) -> None:
        """Raises EngineError."""
        if not self._engine.launch.takes_adapters:
            raise EngineError(0, "the engine unloads no adapters while it runs")
        try:
            await self._engine.unload_adapter(name, LOAD_TIMEOUT_S)
        except EngineError:
            if name in await self._engine.adapters():
                raise
        del self._loaded[name]
        _log.info("adapter %r is unloaded", name)
