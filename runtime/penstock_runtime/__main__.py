"""`python -m penstock_runtime --folder FOLDER`: the agent's process.

A replica's batch script ends by becoming it (`exec`), so that Slurm's signals reach it. Its output is the job's
output: one line for each change, and the engine's own lines as they are. It exits with 0 when it was asked to leave,
with the engine's code (or 70) when the engine failed, 77 when the control plane refused the attempt, and 78 when
the folder cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from penstock_runtime.agent import Agent
from penstock_runtime.config import AgentConfig, ConfigError, read_folder
from penstock_runtime.engine import Engine, launch
from penstock_runtime.leash import leashed

EXIT_CONFIG = 78

# A Unix socket's path has at most 107 bytes; what we add to the folder stays below this.
SOCKET_HOME_BYTES = 64


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m penstock_runtime", description="The agent of one replica, inside its Slurm job."
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="the attempt's folder: agent.json and secret"
    )
    folder = parser.parse_args().folder
    try:
        config, secret = read_folder(folder)
    except ConfigError as error:
        print(f"penstock_runtime: {error}", file=sys.stderr)
        return EXIT_CONFIG
    start_log(config.attempt)
    # On the node itself, because sockets do not work on every shared file system; mkdtemp gives mode 0700, so
    # that
    # nobody else reaches the engine past the agent.
    with tempfile.TemporaryDirectory(
        prefix="penstock-", dir=socket_home(), ignore_cleanup_errors=True
    ) as home:
        return asyncio.run(live(config, secret, f"{home}/engine.sock", os.environ))


async def live(config: AgentConfig, secret: str, uds: str, environ: Mapping[str, str]) -> int:
    """One attempt from start to end, its engine on the socket `uds`. Returns the exit code."""
    try:
        what = launch(
            config.engine,
            config.environment,
            config.model,
            served_names=config.model_names,
            uds=uds,
        )
    except ValueError as error:
        logging.getLogger(__name__).error("%s", error)
        return EXIT_CONFIG
    agent = Agent(
        config,
        secret,
        Engine(replace(what, argv=leashed(what.argv, what.env))),
        job_id=number(environ, "SLURM_JOB_ID"),
        restart_count=number(environ, "SLURM_RESTART_COUNT"),
        version=version(),
    )
    return await agent.run()


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


def socket_home() -> str | None:
    """A folder on this node with a path short enough for sockets; None: Python's own choice, which begins
    with TMPDIR."""
    return None if len(os.fsencode(tempfile.gettempdir())) <= SOCKET_HOME_BYTES else "/tmp"


def start_log(attempt: str) -> None:
    """Every line says when (UTC), who, and which attempt; everything goes where the engine's output goes."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        stream=sys.stdout,
        level=logging.INFO,
        format=f"%(asctime)sZ penstock agent {attempt} %(levelname)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )


if __name__ == "__main__":
    sys.exit(main())
