"""LoRA adapters: the engine's arguments that load them with their model.

The agent reads an adapter's rank from its folder, because the engine must be told how much room to set aside before it
reads any. What a manifest gives in its own arguments comes later and has the last word. Facts about vLLM are from 0.32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from penstock_runtime.config import AdapterConfig

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""That vLLM makes room for."""
MAX_AT_ONCE = 8
"""Of a deployment's adapters, in one batch; room for each is set aside on the GPU, and the others wait their turn."""


def lora_arguments(adapters: Sequence[AdapterConfig]) -> list[str]:
    """The arguments. Raises ValueError for a folder that holds no adapter, or one that is too large."""
    rank = max(_rank(adapter) for adapter in adapters)
    room = next((each for each in RANKS if each >= rank), None)
    if room is None:
        raise ValueError(f"an adapter has rank {rank}; the engine takes {RANKS[-1]} at most")
    modules = [json.dumps({"name": adapter.name, "path": adapter.path}) for adapter in adapters]
    sizes = ["--max-lora-rank", str(room), "--max-loras", str(min(len(adapters), MAX_AT_ONCE))]
    return ["--enable-lora", *sizes, "--lora-modules", *modules]


def _rank(adapter: AdapterConfig) -> int:
    try:
        return int(json.loads((Path(adapter.path) / "adapter_config.json").read_text())["r"])
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ValueError(
            f"adapter {adapter.name!r}: {adapter.path} has no adapter_config.json with a rank: {error!r}"
        ) from error
