"""LoRA adapters as files: the room that an engine sets aside for them when it starts, and whether one fits into it.

The engine must be told how much room that is before it reads any adapter, so the agent reads their ranks from their
folders. What a manifest gives in its own arguments comes later and has the last word. Facts about vLLM are from 0.32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

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


def lora_arguments(model: ModelConfig) -> list[str]:
    """The arguments that make the room; where adapters are fixed, those that load them, too. None without any.

    Raises ValueError where adapters are fixed and one cannot be loaded: the engine would end of it.
    """
    room = model.adapter_room
    if room is None:
        return []
    at_once = room.max_in_batch or max(1, min(len(model.adapters), MAX_AT_ONCE))
    sizes = [RANK_ARGUMENT, str(max_rank(model)), "--max-loras", str(at_once)]
    sizes += ["--max-cpu-loras", str(max(at_once, MAX_IN_MEMORY))]
    if not model.adapters_fixed:
        return ["--enable-lora", *sizes]
    for adapter in model.adapters:
        if misfit := why_not(adapter, max_rank(model)):
            raise ValueError(f"adapter {adapter.name!r}: {misfit}")
    modules = [json.dumps({"name": one.name, "path": one.path}) for one in model.adapters]
    return ["--enable-lora", *sizes, *(["--lora-modules", *modules] if modules else [])]


def max_rank(model: ModelConfig) -> int:
    """The largest rank that there is to be room for."""
    if model.adapter_room is not None and model.adapter_room.max_rank:
        return model.adapter_room.max_rank
    there = max((_rank_or_none(one.path) or 0 for one in model.adapters), default=0)
    return next((each for each in RANKS if each >= max(there, LEAST_RANK)), RANKS[-1])


def readable(adapters: Sequence[AdapterConfig]) -> tuple[AdapterConfig, ...]:
    """Those whose folders are there and hold an adapter."""
    return tuple(adapter for adapter in adapters if _rank_or_none(adapter.path) is not None)


def why_not(adapter: AdapterConfig, room: int | None) -> str:
    """Why an engine with room for this rank cannot load it, as far as its folder says; empty: it may. `room` None: not
    known."""
    try:
        rank = _rank(adapter.path)
    except (OSError, ValueError, TypeError, LookupError) as error:
        said = (error.strerror if isinstance(error, OSError) else None) or repr(error)
        return f"{adapter.path} has no adapter_config.json with a rank ({said})"
    if room is not None and rank > room:
        return f"its rank is {rank}, and the engine has room for {room} (spec.model.adapter_room.max_rank)"
    return ""


def _rank_or_none(path: str) -> int | None:
    try:
        return _rank(path)
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _rank(path: str) -> int:
    return int(json.loads((Path(path) / "adapter_config.json").read_text())["r"])
