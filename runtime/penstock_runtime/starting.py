"""From an attempt's configuration and this node to the engine's process: what both kinds of agent do alike."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from penstock_runtime.config import AgentConfig
from penstock_runtime.door import EngineDoor
from penstock_runtime.engine import Launch, Rank, launch
from penstock_runtime.environment import Host
from penstock_runtime.leash import leashed

AMD_DEVICE = "/dev/kfd"


def engine_launch(
    config: AgentConfig, door: EngineDoor | Path, environ: Mapping[str, str], rank: Rank | None = None
) -> Launch:
    """The engine of this node, on a leash held by this process. Raises ValueError for what cannot be started."""
    what = launch(
        config.engine,
        config.environment,
        config.model,
        served_names=config.model_names,
        door=door,
        host=this_host(config, environ),
        rank=rank,
    )
    command = what.command
    return replace(what, command=replace(command, argv=leashed(command.argv, command.env)))


def this_host(config: AgentConfig, environ: Mapping[str, str]) -> Host:
    """What of this node matters to an engine's environment."""
    gpu_flag = "--rocm" if os.path.exists(AMD_DEVICE) else "--nv"
    path = environ.get("PATH", os.defpath)
    has_apptainer = shutil.which("apptainer", path=path) or not shutil.which("singularity", path=path)
    return Host(environ, "apptainer" if has_apptainer else "singularity", gpu_flag if config.gpus > 0 else "")
