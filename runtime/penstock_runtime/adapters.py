"""LoRA adapters as files: the room that an engine sets aside for them when it starts, and whether one fits into it.

The engine must be told how much room that is before it reads any adapter, so the agent reads their ranks from their
folders. What a manifest gives in its own arguments comes later and has the last word. Facts about vLLM are from 0.32.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import TypeVar

from penstock_runtime.config import AdapterConfig, ModelConfig

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""That vLLM makes room for."""
LEAST_RANK = 16
"""Room for this costs little beside any model, and most adapters need no more."""
MAX_AT_ONCE = 8
"""Of a deployment's adapters, in one batch, unless told otherwise: memory is set aside for each on the GPU."""
MAX_IN_MEMORY = 64
"""As many as a deployment may have: one that was put out of the host's memory would be read again from its folder by
the next request for it, at the cost of all others'."""
RANK_ARGUMENT = "--max-lora-rank"
MAX_CONFIG_BYTES = 1 << 20
"""Of an adapter_config.json, which has some kilobytes; with every layer of a large model named, some hundred."""
LOOK_TIMEOUT_S = 10.0
"""For reading such a file. A network file system that hangs may never answer."""

Found = TypeVar("Found")


Ranks = Mapping[str, int | str]
"""By an adapter's folder: its rank, or the sentence that says why none could be read."""


def ranks(adapters: Sequence[AdapterConfig]) -> Ranks:
    """Of all adapters, read at the same time. A folder that does not answer is left to the keeper, which tries again:
    it must not keep the engine, and all other adapters, from being started."""
    looks = {adapter.path: in_thread(partial(_look, adapter.path)) for adapter in adapters}
    wait(looks.values(), LOOK_TIMEOUT_S)
    return {
        path: look.result() if look.done() else f"{path} could not be read within {LOOK_TIMEOUT_S:g} s"
        for path, look in looks.items()
    }


def lora_arguments(model: ModelConfig, found: Ranks) -> list[str]:
    """The arguments that make the room; where adapters are fixed, those that load them, too. None without any.

    Raises ValueError where adapters are fixed and one cannot be loaded: the engine would end of it.
    """
    room = model.adapter_room
    if room is None:
        return []
    at_once = room.max_in_batch or max(1, min(len(model.adapters), MAX_AT_ONCE))
    sizes = [RANK_ARGUMENT, str(max_rank(model, found)), "--max-loras", str(at_once)]
    sizes += ["--max-cpu-loras", str(max(at_once, MAX_IN_MEMORY))]
    if not model.adapters_fixed:
        return ["--enable-lora", *sizes]
    for adapter in model.adapters:
        if misfit := _misfit(found[adapter.path], max_rank(model, found)):
            raise ValueError(f"adapter {adapter.name!r}: {misfit}")
    modules = [json.dumps({"name": one.name, "path": one.path}) for one in model.adapters]
    return ["--enable-lora", *sizes, *(["--lora-modules", *modules] if modules else [])]


def max_rank(model: ModelConfig, found: Ranks) -> int:
    """The largest rank that there is to be room for."""
    if model.adapter_room is not None and model.adapter_room.max_rank:
        return model.adapter_room.max_rank
    there = max((rank for rank in found.values() if isinstance(rank, int)), default=0)
    return next((each for each in RANKS if each >= max(there, LEAST_RANK)), RANKS[-1])


def readable(found: Ranks) -> tuple[str, ...]:
    """The folders that are there and hold an adapter."""
    return tuple(path for path, rank in found.items() if isinstance(rank, int))


def why_not(adapter: AdapterConfig, room: int | None) -> str:
    """Why an engine with room for this rank cannot load it, as far as its folder says; empty: it may. `room` None: not
    known. It reads the folder, for as long as that takes."""
    return _misfit(_look(adapter.path), room)


def in_thread(asked: Callable[[], Found]) -> Future[Found]:
    """In a thread that the process's end does not wait for, as it does for those of a pool."""
    answer: Future[Found] = Future()

    def ask() -> None:
        try:
            answer.set_result(asked())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    return answer


def _misfit(rank: int | str, room: int | None) -> str:
    if isinstance(rank, str):
        return rank
    if room is not None and rank > room:
        return f"its rank is {rank}, and the engine has room for {room} (spec.model.adapter_room.max_rank)"
    return ""


def _look(path: str) -> int | str:
    """As in Ranks."""
    try:
        with (Path(path) / "adapter_config.json").open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            return f"{path}/adapter_config.json is longer than {MAX_CONFIG_BYTES >> 20} MiB"
        return int(json.loads(text)["r"])
    except (OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        said = (error.strerror if isinstance(error, OSError) else None) or repr(error)
        return f"{path} has no adapter_config.json with a rank ({said})"
