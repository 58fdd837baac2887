"""The agent of a node that is not the head of its replica: it runs its rank's engine for as long as the head lives.

It registers nowhere, serves nobody and decides nothing. Slurm's signals mean nothing to it, because they reach every
step of a job: the head drains first, and then says so here. It ends with 0 when it was told to, and with its engine's
code (or 70) otherwise, upon which srun ends the other ranks.

The rule guarded here: a rank never outlives its head. Where the link ends, the engine is killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from penstock_runtime.config import AgentConfig
from penstock_runtime.control import backoff
from penstock_runtime.engine import ENGINE_STOP_S, FAILED_EXIT_CODE, Engine, EngineExit, Rank, StartError
from penstock_runtime.link import Link, LinkError, connect, join
from penstock_runtime.starting import engine_launch

HEAD_TIMEOUT_S = 60.0
"""The head listens before it starts the ranks: where it cannot be reached for so long, it never will be."""

_log = logging.getLogger(__name__)


async def live(config: AgentConfig, secret: str, head: str, home: Path, environ: Mapping[str, str]) -> int:
    """One rank from start to end. Returns the exit code."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        loop.add_signal_handler(number, _log.info, "%s is for the head", number.name)
    # Slurm counts the tasks of the step from 0, and rank 0 is the head.
    number_of_rank = int(environ.get("SLURM_PROCID", "0")) + 1
    try:
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            link = await _reach(head)
        told = await join(link, secret, number_of_rank, environ.get("SLURMD_NODENAME", os.uname().nodename))
    except (LinkError, TimeoutError) as error:
        _log.error(
            "rank %d does not reach its head at %s: %s", number_of_rank, head, str(error) or "no answer"
        )
        return FAILED_EXIT_CODE
    rank = Rank(
        config.nodes, number_of_rank, str(told["master_address"]), int(told["master_port"]), link.own_address
    )
    _log.info("rank %d of %d, head at %s", rank.number, rank.nodes, head)
    try:
        engine = Engine(engine_launch(config, home, environ, rank))
        await engine.start()
    except (ValueError, StartError) as error:
        _log.error("%s", error)
        link.send(failed=str(error), exit_code=FAILED_EXIT_CODE, last_words=[])
        await link.close()
        return FAILED_EXIT_CODE
    try:
        return await _until_the_end(engine, link)
    finally:
        await engine.stop(0)
        await link.close()


async def _reach(head: str) -> Link:
    host, _, port = head.rpartition(":")
    for wait_s in backoff():
        try:
            return await connect(host.strip("[]"), int(port))
        except OSError as error:
            _log.warning("the head does not answer yet: %s", error)
            await asyncio.sleep(wait_s)
    raise AssertionError("backoff is endless")


async def _until_the_end(engine: Engine, link: Link) -> int:
    exit_: asyncio.Task[EngineExit] = asyncio.ensure_future(engine.wait_exit())
    heard = asyncio.ensure_future(link.receive())
    await asyncio.wait((exit_, heard), return_when=asyncio.FIRST_COMPLETED)
    if heard.done() and heard.result() is None:
        _log.error("the head is gone")
        return FAILED_EXIT_CODE
    if heard.done():
        await engine.stop(ENGINE_STOP_S)
        return 0
    heard.cancel()
    ended = exit_.result()
    _log.error("%s", ended)
    link.send(failed=str(ended), exit_code=ended.exit_code, last_words=list(ended.last_words))
    return ended.exit_code
