"""A replica over several nodes, seen from its head: the other nodes' agents, and the engine that all of them make up.

The head is the batch script of the job, on its first node; it starts one agent on each other node as a step. srun is
not the batch script itself because it answers SIGTERM by killing what it started: Slurm's signals are for the head,
which drains. What a rank does is rank.py's business, how both talk link.py's.

The rule guarded here: one for all. Whichever rank ends unasked, its engine or its agent, killed or cut off, the
replica's engine has ended, and what is left of it is stopped.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from penstock_runtime.child import Child
from penstock_runtime.engine import FAILED_EXIT_CODE, Engine, EngineExit, Launch, Rank, StartError
from penstock_runtime.leash import leashed
from penstock_runtime.link import MAX_LINE_BYTES, Link, LinkError, greet
from penstock_runtime.ports import HeldPort
from penstock_runtime.steps import srun

STEP_END_S = 5.0
"""After the ranks were told to stop and their engines had their time, how long their step may take to end."""
SAME_END_S = 0.4
"""One end leads to others, and the first is not always heard of first: so long the others are waited for. The agent,
where rank 0 has said itself that it is dead, waits a little longer for its exit."""

_log = logging.getLogger(__name__)


class Ranks:
    """The other nodes' agents. `head` says where rank 0's engine meets the others, and how many there are."""

    def __init__(
        self,
        head: Rank,
        folder: Path,
        secret: str,
        bind: str,
        environ: Mapping[str, str],
        master_port: HeldPort,
        *,
        echo: BinaryIO | None = None,
    ) -> None:
        self._head = head
        self._master_port = master_port
        self._folder = folder
        self._secret = secret
        self._bind = bind
        self._environ = environ
        self._echo = echo
        self._links: dict[int, Link] = {}
        self._step: Child | None = None
        self._server: asyncio.Server | None = None
        self._stopping = False
        self.complete = asyncio.Event()
        self.lost: asyncio.Future[EngineExit] = asyncio.get_running_loop().create_future()
        """Done once a rank has ended that nobody had asked to."""

    @property
    def last_words(self) -> tuple[str, ...]:
        """The last lines of what the other nodes printed, oldest first."""
        return self._step.last_words if self._step is not None else ()

    async def start(self) -> None:
        """Starts the step. Raises StartError where there is no srun, or no port."""
        try:
            self._server = await asyncio.start_server(self._meet, self._bind, 0, limit=MAX_LINE_BYTES)
            port = self._server.sockets[0].getsockname()[1]
            argv = step(self._head, self._folder, port, self._environ)
            self._step = Child(leashed(argv, self._environ), self._environ, echo=self._echo)
            await self._step.start()
        except OSError as error:
            raise StartError(f"the other nodes' agents cannot be started: {error}", ()) from error
        self._step.exited.add_done_callback(lambda _: asyncio.ensure_future(self._step_ended()))

    async def stop(self, grace_s: float) -> None:
        """Stops every rank's engine as Engine.stop does, and then the step."""
        self._stopping = True
        for link in self._links.values():
            link.send(stop=True)
        if self._step is not None:
            # An agent that came no further than Slurm's queue of steps hears nobody.
            patience_s = grace_s + STEP_END_S if self.complete.is_set() else 0.0
            await asyncio.wait((self._step.exited,), timeout=patience_s)
            await self._step.stop(STEP_END_S)
        if self._server is not None:
            self._server.close()
        self._master_port.close()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(reader, writer)
        number, node = 0, ""
        try:
            said = await greet(
                link,
                self._secret,
                master_address=self._head.master_address,
                master_port=self._head.master_port,
            )
            number, node = int(said["rank"]), str(said["node"])
            if number in self._links or not 0 < number < self._head.nodes:
                raise LinkError(f"there is no rank {number} to come")
            self._links[number] = link
            _log.info("rank %d of %d is here, on %s", number, self._head.nodes, node)
            if len(self._links) == self._head.nodes - 1:
                self.complete.set()
            self._lose(_end_of(f"rank {number} of the engine (on {node})", await link.receive()))
        except (LinkError, ValueError) as error:
            _log.warning("a connection that is no rank's: %s", error)
        finally:
            await link.close()

    async def _step_ended(self) -> None:
        await asyncio.sleep(SAME_END_S)
        if self._step is not None:
            code = self._step.exited.result().code
            self._lose(EngineExit(code, False, self.last_words, "srun with the other nodes' agents"))

    def _lose(self, ended: EngineExit) -> None:
        if not self._stopping and not self.lost.done():
            self.lost.set_result(ended)


def step(head: Rank, folder: Path, port: int, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The command that starts the other nodes' agents: every node of the job but the first, which is the head's."""
    return (
        *srun(environ, nodes=head.nodes - 1, where="--relative=1"),
        sys.executable,
        "-m",
        "penstock_runtime",
        "--folder",
        str(folder),
        "--head",
        f"{head.master_address}:{port}",
    )


def _end_of(who: str, said: dict[str, Any] | None) -> EngineExit:
    """What became of a rank, from its last message; None: it had no time for one."""
    if said is None:
        return EngineExit(FAILED_EXIT_CODE, False, (), who, f"{who} is gone without a word")
    words = tuple(str(line) for line in said.get("last_words", ()))
    return EngineExit(
        int(said.get("exit_code", FAILED_EXIT_CODE)), False, words, who, f"{who}: {said.get('failed')}"
    )


class SpreadEngine(Engine):
    """An engine over several nodes, to the agent like any other: rank 0 here, the others by `ranks`."""

    def __init__(self, launch: Launch, ranks: Ranks, *, echo: BinaryIO | None = None) -> None:
        super().__init__(launch, echo=echo)
        self._ranks = ranks
        self._end: asyncio.Task[EngineExit] | None = None

    async def start(self) -> None:
        """Start every rank. Raises StartError."""
        await self._ranks.start()
        try:
            await super().start()
        except StartError:
            await self._ranks.stop(0)
            raise
        self._end = asyncio.create_task(self._first_end())

    @property
    def last_words(self) -> tuple[str, ...]:
        """Rank 0's, which says most of what the others do not."""
        return super().last_words or self._ranks.last_words

    async def wait_healthy(self, timeout_s: float) -> None:
        """Wait for every rank to be there, and then for /health; raises StartError."""
        begun = asyncio.get_running_loop().time()
        ended = asyncio.ensure_future(self.wait_exit())
        here = asyncio.ensure_future(self._ranks.complete.wait())
        await asyncio.wait((ended, here), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        here.cancel()
        ended.cancel()
        if ended.done() and not ended.cancelled():
            raise StartError(str(ended.result()), ended.result().last_words)
        if not self._ranks.complete.is_set():
            raise StartError(f"not every rank was there within {timeout_s:g} s", self._ranks.last_words)
        await super().wait_healthy(timeout_s - (asyncio.get_running_loop().time() - begun))

    async def stop(self, grace_s: float) -> EngineExit:
        """Stop every rank, all at once: each notices that the others go."""
        head = super().stop(grace_s)
        ended, _ = await asyncio.gather(head, self._ranks.stop(grace_s))
        return ended

    async def wait_exit(self) -> EngineExit:
        """Wait until any rank ends, for whatever reason."""
        if self._end is None:
            return await super().wait_exit()
        return await asyncio.shield(self._end)

    async def _first_end(self) -> EngineExit:
        own = asyncio.ensure_future(super().wait_exit())
        await asyncio.wait((own, self._ranks.lost), return_when=asyncio.FIRST_COMPLETED)
        if own.done() and not own.result().asked and own.result().code == 0 and not self._ranks.lost.done():
            # So vLLM leaves when another rank is lost, which is the end that tells.
            await asyncio.wait((self._ranks.lost,), timeout=SAME_END_S)
        if own.done() and (own.result().asked or own.result().code != 0 or not self._ranks.lost.done()):
            return own.result()
        own.cancel()
        return self._ranks.lost.result()
