"""`python -m penstock_runtime --folder FOLDER`: the agent's process.

A replica's batch script ends by becoming it (`exec`), so that Slurm's signals reach it; with `--head` it is the agent
of another of the replica's nodes, started by that one as a step. Its output is the job's output: one line for each
change, and the engine's own lines as they are. It exits with 0 when it was asked to leave, with the engine's code (or
70) when the engine failed, 77 when the control plane refused the attempt, and 78 when the folder cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from penstock_runtime import rank
from penstock_runtime.agent import Agent
from penstock_runtime.config import AgentConfig, ConfigError, read_folder
from penstock_runtime.control import address_towards
from penstock_runtime.door import EngineDoor
from penstock_runtime.engine import Engine, Rank
from penstock_runtime.ports import HeldPort
from penstock_runtime.ranks import Ranks, SpreadEngine
from penstock_runtime.starting import engine_launch

EXIT_CONFIG = 78


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m penstock_runtime", description="The agent of one replica, inside its Slurm job."
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="the attempt's folder: agent.json and secret"
    )
    parser.add_argument("--head", help="host:port of the head, for the agent of a replica's other node")
    given = parser.parse_args()
    folder = given.folder
    try:
        config, secret = read_folder(folder)
    except ConfigError as error:
        print(f"penstock_runtime: {error}", file=sys.stderr)
        return EXIT_CONFIG
    start_log(f"agent {config.attempt}" + (" on another node" if given.head is not None else ""))
    # mkdtemp gives mode 0700: the keys to the engine are in there.
    with tempfile.TemporaryDirectory(prefix="penstock-", ignore_cleanup_errors=True) as home:
        if given.head is not None:
            return asyncio.run(rank.live(config, secret, given.head, Path(home), os.environ))
        return asyncio.run(live(config, secret, folder, Path(home), os.environ))


async def live(config: AgentConfig, secret: str, folder: Path, home: Path, environ: Mapping[str, str]) -> int:
    """One attempt from start to end, its engine's door in the folder `home`. Returns the exit code."""
    try:
        # Held until the process ends.
        door = EngineDoor(home, config.bind)
        engine = make_engine(config, secret, folder, door, environ)
    except (ValueError, OSError) as error:
        logging.getLogger(__name__).error("%s", error)
        return EXIT_CONFIG
    agent = Agent(
        config,
        secret,
        engine,
        door,
        job_id=number(environ, "SLURM_JOB_ID"),
        restart_count=number(environ, "SLURM_RESTART_COUNT"),
        version=version(),
    )
    return await agent.run()


def make_engine(
    config: AgentConfig, secret: str, folder: Path, door: EngineDoor, environ: Mapping[str, str]
) -> Engine:
    """The engine, of this node alone or of all nodes of the job. Raises ValueError, and OSError without a network."""
    if config.nodes == 1:
        return Engine(engine_launch(config, door, environ))
    address = config.advertise or own_address(config.control)
    # Held until the process ends.
    port = HeldPort(config.bind)
    head = Rank(config.nodes, 0, address, port.number, address)
    ranks = Ranks(head, folder, secret, config.bind, environ, port)
    return SpreadEngine(engine_launch(config, door, environ, head), ranks)


def own_address(endpoints: Sequence[str]) -> str:
    """The address of this node that routes to the control plane; its other nodes are taken to have a way there, too.

    Raises OSError where there is no way to any of the endpoints.
    """
    for endpoint in endpoints[:-1]:
        with contextlib.suppress(OSError):
            return address_towards(endpoint)
    return address_towards(endpoints[-1])


def number(environ: Mapping[str, str], name: str) -> int:
    """A whole number that Slurm gives; 0 where it gives none (the restart count of a first start)."""
    text = environ.get(name, "")
    return int(text) if text.isdigit() else 0


def version() -> str:
    """Penstock's version."""
    try:
        return importlib.metadata.version("penstock")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def start_log(who: str) -> None:
    """Every line says when (UTC) and who; everything goes where the engine's output goes."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        stream=sys.stdout,
        level=logging.INFO,
        format=f"%(asctime)sZ penstock {who} %(levelname)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )


if __name__ == "__main__":
    sys.exit(main())
