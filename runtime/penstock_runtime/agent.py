"""The life of one attempt: start, be ready, serve, leave. The composition root of the runtime.

    start    bind a port, start the engine; while it loads, register
    ready    a token from this very engine; then the gate opens, health says so, and the control plane is told
    serve    until somebody wants the replica to leave, or the engine is gone
    leave    out of routing, then no new calls, then the running ones end, then the engine does

There are two ways to the end. Asked (SIGTERM, SIGUSR1, the control plane): the attempt ENDED, exit code 0.
Not asked (the engine ended by itself or was never ready): it FAILED, and the exit code is never 0, because
Slurm would call the job COMPLETED. Which replica this is for whom, and whether another one starts, is the
control plane's business.

The rule guarded here: whichever way it ends, every call inside got its one status, and no engine is left
behind.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Sequence
from typing import Any

from penstock.v1 import replica_pb2, spec_pb2
from penstock.v1.runtime_pb2 import (
    AGENT_PHASE_DRAINING,
    AGENT_PHASE_ENDED,
    AGENT_PHASE_FAILED,
    AGENT_PHASE_READY,
    AGENT_PHASE_STARTING,
    AgentPhase,
)
from penstock_runtime.adapter_keeper import AdapterKeeper
from penstock_runtime.config import AdapterConfig, AgentConfig
from penstock_runtime.control import Control, Refused, Unreachable, backoff
from penstock_runtime.door import EngineDoor
from penstock_runtime.engine import (
    ENGINE_STOP_S,
    FAILED_EXIT_CODE,
    Engine,
    EngineError,
    EngineExit,
    StartError,
)
from penstock_runtime.gate import Gate
from penstock_runtime.inference import Inference
from penstock_runtime.reporter import Reporter
from penstock_runtime.server import AgentServer
from penstock_runtime.standing import Standing

EXIT_REFUSED = 77
"""Of an attempt that is not wanted: EX_NOPERM of sysexits.h."""

# The front door's health check asks several times a second; after this it has noticed even where nobody told it.
UNROUTED_AFTER_S = 2.0
# For last words to be heard, and for statuses to reach their callers.
LAST_REPORT_S = 10.0
LAST_REPORT_UNREGISTERED_S = 2.0
GOODBYE_S = 2.0
# Slurm's SIGTERM may reach the engine a moment before it reaches the agent.
SAME_SIGNAL_S = 0.5
# A dead replica is to be out of routing within 2 s; asking costs the engine next to nothing.
DEAD_INTERVAL_S = 0.5
# How soon a drain that waits for REST alone is over.
INSIDE_INTERVAL_S = 0.1
# An engine that is dead, or did not become ready, is often just ending, and then its own exit code says more.
SAME_END_S = 0.5

# TERM: Slurm ends the job, or somebody does. USR1: it will soon (sbatch --signal). INT: a person at a
# terminal.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

_log = logging.getLogger(__name__)


class Agent:
    """One attempt, from start to end. `job_id` and `restart_count` are Slurm's."""

    def __init__(
        self,
        config: AgentConfig,
        secret: str,
        engine: Engine,
        door: EngineDoor,
        *,
        job_id: int,
        restart_count: int,
        version: str,
    ) -> None:
        self._config = config
        self._engine = engine
        self._door = door
        self._job_id = job_id
        self._version = version
        self._begun = time.monotonic()
        self._gate = Gate(f"replica {config.replica} is still starting")
        self._server = AgentServer()
        self._control = Control(config.control, config.attempt, secret, restart_count)
        self._standing = Standing(AGENT_PHASE_STARTING, f"starting the engine {config.engine.name}")
        self._adapters = AdapterKeeper(engine, config.model.adapters, changed=self._adapters_changed)
        self._reporter = Reporter(
            self._control,
            self._standing,
            load=self._load,
            leave=self.leave,
            adapters=self._adapters.standings,
            want=self._want_adapters,
        )
        self._keeping: asyncio.Task[None] | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._registered = False
        self._leaving = asyncio.Event()
        self._leaving_why = ""
        # For the start-up time-out: what did not come.
        self._missing = "the engine"

    def leave(self, why: str) -> None:
        """The replica is to go. Once is enough: asking again does not cut short what is under way."""
        if not self._leaving.is_set():
            _log.info("asked to leave: %s", why)
            self._leaving_why = why
            self._leaving.set()

    async def run(self) -> int:
        """Lives, and returns the process's exit code."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.leave, number.name)
        try:
            return await self._with_engine()
        finally:
            await self._server.stop(GOODBYE_S)
            for task in (self._reporting, self._keeping):
                if task is not None:
                    task.cancel()
            await self._control.close()
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    async def _with_engine(self) -> int:
        config = self._config
        inference = Inference(
            self._engine,
            self._gate,
            model_names=config.model_names,
            adapters=lambda: self._adapters.names,
            task=config.engine.task,
        )
        try:
            port = await self._server.start(config.bind, inference)
            await self._engine.start()
        except (RuntimeError, StartError) as error:
            return await self._fail(str(error), FAILED_EXIT_CODE)
        _log.info("listening at %s:%d; the engine %s is starting", config.bind, port, config.engine.name)
        try:
            return await self._live(asyncio.ensure_future(self._engine.wait_exit()))
        finally:
            # Each way to here has either stopped the engine or given it up.
            await self._engine.stop(0)

    async def _live(self, exit_: asyncio.Future[EngineExit]) -> int:
        """Until the end of the engine, or of the wish for it."""
        leaving: asyncio.Task[Any] = asyncio.create_task(self._leaving.wait())
        starting: asyncio.Task[Any] = asyncio.create_task(self._start_up())
        ends: set[asyncio.Future[Any]] = {exit_, leaving}
        try:
            timeout_s = self._config.startup_timeout_s - self._age_s()
            await asyncio.wait({*ends, starting}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            # Decided: a start-up that goes on meanwhile must not open the gate behind our back.
            starting.cancel()
            await asyncio.wait({starting})
            if self._standing.phase != AGENT_PHASE_READY:
                return await self._never_ready(exit_, leaving, starting)
            dying = asyncio.create_task(self._until_dead())
            ends.add(dying)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if dying.done() and not leaving.done():
                self._close(f"the engine of replica {self._config.replica} is dead")
                await asyncio.wait({exit_}, timeout=SAME_END_S)
            if await self._left_by_itself(exit_, leaving):
                return await self._fail(str(exit_.result()), exit_.result().exit_code)
            if leaving.done():
                return await self._drain()
            return await self._fail(
                "the engine is dead, though its process has not ended yet", FAILED_EXIT_CODE
            )
        finally:
            for task in ends - {exit_}:
                task.cancel()

    async def _never_ready(
        self, exit_: asyncio.Future[EngineExit], leaving: asyncio.Task[Any], starting: asyncio.Task[Any]
    ) -> int:
        error = None if starting.cancelled() else starting.exception()
        if isinstance(error, StartError):
            await asyncio.wait({exit_}, timeout=SAME_END_S)
        if await self._left_by_itself(exit_, leaving):
            return await self._fail(f"{exit_.result()}, before it was ready", exit_.result().exit_code)
        if leaving.done():
            return await self._quit()
        if isinstance(error, Refused):
            _log.error("%s", error)
            return EXIT_REFUSED
        if isinstance(error, StartError):
            return await self._fail(str(error), FAILED_EXIT_CODE)
        if error is not None:
            raise error
        limit = f"{self._config.startup_timeout_s:g} s (startup_timeout_s)"
        return await self._fail(f"not ready within {limit}: no word from {self._missing}", FAILED_EXIT_CODE)

    # --- Starting.

    async def _start_up(self) -> None:
        """Registered and ready, both at once because either may take long. Raises Refused or StartError."""
        left_s = self._config.startup_timeout_s - self._age_s()
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._prove(left_s))
                both.create_task(self._register())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        ready_after_s = self._age_s()
        self._gate.open()
        self._door.open()
        await self._server.serving(True)
        self._keeping = asyncio.create_task(self._adapters.run())
        self._change(
            AGENT_PHASE_READY, f"serving, {ready_after_s:.1f} s after the start", ready_after_s=ready_after_s
        )

    async def _prove(self, timeout_s: float) -> None:
        await self._engine.wait_healthy(timeout_s)
        await self._engine.prove_ready(timeout_s)
        # One that cannot be loaded holds up nobody; those that can are there from the first request on.
        # Never all that is left: a model whose adapters are slow is ready within startup_timeout_s all the same.
        await self._adapters.load_all((self._config.startup_timeout_s - self._age_s()) / 2)
        self._missing = "the control plane"
        _log.info("the engine has made its first token, %.1f s after the start", self._age_s())

    async def _register(self) -> None:
        """Tries until the control plane answers. Raises Refused."""
        trouble = ""
        for wait_s in backoff():
            try:
                answer = await self._control.register(
                    job_id=self._job_id,
                    advertise=self._config.advertise,
                    port=self._server.port,
                    engine_port=self._door.port,
                    version=self._version,
                )
            except Unreachable as error:
                if str(error) != trouble:
                    _log.warning("cannot register yet and will try again: %s", error)
                    trouble = str(error)
                await asyncio.sleep(wait_s)
            else:
                break
        _log.info("registered")
        self._registered = True
        self._server.expect(answer.deployment_secret)
        self._door.expect(answer.engine_key)
        self._report_every(max(1, answer.report_interval_s))

    async def _until_dead(self) -> None:
        """Until the engine itself says that it is dead: vLLM's process may take ten seconds more to end."""
        while True:
            await asyncio.sleep(DEAD_INTERVAL_S)
            if await self._engine.dead() and await self._engine.dead():
                return

    # --- Ending.

    async def _left_by_itself(self, exit_: asyncio.Future[EngineExit], leaving: asyncio.Future[Any]) -> bool:
        """Whether the engine ended and nobody had asked it to, not even the signal that is just arriving here
        too."""
        if exit_.done() and not leaving.done():
            await asyncio.wait({leaving}, timeout=SAME_SIGNAL_S)
        return exit_.done() and not leaving.done()

    async def _fail(self, message: str, exit_code: int) -> int:
        """Not as asked: cut what is inside, and say why with the engine's last words."""
        self._gate.cut(f"replica {self._config.replica} failed: {message}")
        await self._server.serving(False)
        last_words = "\n".join(self._engine.last_words)
        self._change(AGENT_PHASE_FAILED, message, exit_code=exit_code, last_words=last_words)
        await self._last_report()
        return exit_code

    async def _quit(self) -> int:
        """Asked to leave before it was ready: nobody is inside, so there is nothing to wait for."""
        self._gate.cut(f"replica {self._config.replica} is leaving")
        await self._engine.stop(0)
        self._change(AGENT_PHASE_ENDED, f"left before it was ready: {self._leaving_why}", exit_code=0)
        await self._last_report()
        return 0

    async def _drain(self) -> int:
        """Out of routing, then no new calls, then the running ones end, then the engine does."""
        begun = time.monotonic()
        timeout_s = self._config.drain_timeout_s
        why = self._leaving_why
        await self._server.serving(False)
        running = self._gate.inside + await self._past_the_agent()
        self._change(AGENT_PHASE_DRAINING, f"leaving ({why}) with {running} running requests")
        try:
            await self._control.drain(why)
        except (Refused, Unreachable) as error:
            _log.warning("leaving without a word from the control plane: %s", error)
            await asyncio.sleep(max(0.0, begun + UNROUTED_AFTER_S - time.monotonic()))
        self._close(f"replica {self._config.replica} is leaving; another one can take this request")
        cut = 0
        both_empty = await asyncio.gather(
            self._gate.empty(begun + timeout_s - time.monotonic()), self._engine_empty(begun + timeout_s)
        )
        if not all(both_empty):
            past_the_agent = await self._past_the_agent()
            cut = past_the_agent + self._gate.cut(
                f"replica {self._config.replica} had to leave after {timeout_s:g} s (drain_timeout_s)"
            )
        await self._engine.stop(ENGINE_STOP_S)
        took_s = time.monotonic() - begun
        self._change(
            AGENT_PHASE_ENDED, f"left ({why}) after {took_s:.1f} s; {cut} requests were cut", exit_code=0
        )
        await self._last_report()
        return 0

    def _close(self, why: str) -> None:
        """Both ways in: gRPC's, and the engine's own."""
        self._gate.close(why)
        self._door.close(why)

    async def _engine_empty(self, deadline: float) -> bool:
        """Waits until no request is inside the engine; False when the deadline came first."""
        while await self._past_the_agent():
            if time.monotonic() + INSIDE_INTERVAL_S > deadline:
                return False
            await asyncio.sleep(INSIDE_INTERVAL_S)
        return True

    async def _past_the_agent(self) -> int:
        """Requests that the engine has from gateways directly. One that is too busy to say is busy with some."""
        try:
            return await self._engine.past_the_agent(self._gate.inside)
        except EngineError:
            return 0 if await self._engine.dead() else 1

    # --- Telling.

    def _change(
        self,
        phase: AgentPhase.ValueType,
        message: str,
        *,
        exit_code: int | None = None,
        last_words: str = "",
        ready_after_s: float | None = None,
    ) -> None:
        self._standing = self._standing.then(
            phase, message, exit_code=exit_code, last_words=last_words, ready_after_s=ready_after_s
        )
        level = logging.ERROR if phase == AGENT_PHASE_FAILED else logging.INFO
        _log.log(level, "%s: %s", AgentPhase.Name(phase).removeprefix("AGENT_PHASE_").lower(), message)
        self._reporter.change(self._standing)

    def _report_every(self, interval_s: float) -> asyncio.Task[None]:
        self._reporting = asyncio.create_task(self._reporter.run(interval_s))
        return self._reporting

    async def _last_report(self) -> None:
        """Waits, bounded, until the control plane has heard how it ended."""
        reporting = self._reporting or self._report_every(1)
        timeout_s = LAST_REPORT_S if self._registered else LAST_REPORT_UNREGISTERED_S
        done, _ = await asyncio.wait({reporting}, timeout=timeout_s)
        if not done:
            _log.warning("nobody heard the last report within %g s", timeout_s)

    def _adapters_changed(self) -> None:
        self._reporter.again()

    def _want_adapters(self, adapters: Sequence[spec_pb2.Adapter]) -> None:
        self._adapters.want([AdapterConfig(one.name, one.path) for one in adapters])

    async def _load(self) -> replica_pb2.Load:
        load = await self._engine.load()
        return replica_pb2.Load(
            running_requests=load.running,
            waiting_requests=load.waiting,
            kv_cache_usage=load.kv_cache_usage,
            prompt_tokens_total=load.prompt_tokens_total,
            generation_tokens_total=load.generation_tokens_total,
        )

    def _age_s(self) -> float:
        return time.monotonic() - self._begun
