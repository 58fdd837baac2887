"""Tells the control plane where the agent stands: at each change at once, else every interval.

There is no queue: what counts is where the agent stands now, so each try sends the newest standing with the
newest load, and what could not be said in time is left unsaid. One report is under way at a time, which keeps
an old one from arriving after a new one. Registering comes before; deciding what an answer means for the
agent is agent.py's.

The rule guarded here: a control plane that does not answer changes nothing for the replica. It goes on
serving, and is heard again when somebody listens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import grpc

from penstock.v1 import replica_pb2, runtime_pb2, spec_pb2
from penstock_runtime.control import Control, Refused, Unreachable, backoff
from penstock_runtime.standing import MAX_LAST_WORDS_BYTES, MAX_MESSAGE_BYTES, MOVES, Standing, head, tail

# A busy engine is slow to say how busy it is; the report does not wait for it any longer.
LOAD_TIMEOUT_S = 1.0

_log = logging.getLogger(__name__)


class Reporter:
    """Reports for one attempt.

    `load` may raise: the report then goes without. `leave` is called with why, once told to drain. `adapters` says how
    they stand, and `want` is called with those that the control plane wants, at each answer that says.
    """

    def __init__(
        self,
        control: Control,
        standing: Standing,
        *,
        load: Callable[[], Awaitable[replica_pb2.Load]],
        leave: Callable[[str], None],
        adapters: Callable[[], Sequence[replica_pb2.AdapterStanding]],
        want: Callable[[Sequence[spec_pb2.Adapter]], None],
    ) -> None:
        self._control = control
        self._standing = standing
        self._load = load
        self._leave = leave
        self._adapters = adapters
        self._want = want
        self._changed = asyncio.Event()

    def change(self, standing: Standing) -> None:
        """From now on this is reported, first as soon as may be."""
        self._standing = standing
        self._changed.set()

    def again(self) -> None:
        """There is news besides the standing: it is reported as soon as may be."""
        self._changed.set()

    async def run(self, interval_s: float) -> None:
        """Reports until last words (FAILED, ENDED) were heard, or the control plane says that the attempt is over."""
        trouble = ""
        waits = backoff()
        while True:
            self._changed.clear()
            wait_s = interval_s
            try:
                standing, answer = await self._send()
            except (Refused, Unreachable) as error:
                if isinstance(error, Refused) and error.code is grpc.StatusCode.FAILED_PRECONDITION:
                    _log.warning("%s", error)
                    self._leave("the control plane says that this attempt is over")
                    return
                # A secret that was right when the agent registered and is wrong now is the control plane's trouble.
                if str(error) != trouble:
                    _log.warning("the control plane does not hear this replica, which goes on: %s", error)
                    trouble = str(error)
                wait_s = min(interval_s, next(waits))
            else:
                if trouble:
                    _log.info("the control plane hears this replica again")
                trouble, waits = "", backoff()
                if not MOVES[standing.phase]:
                    return
                if answer.HasField("adapters"):
                    self._want(answer.adapters.adapters)
                if answer.drain:
                    self._leave("the control plane asked for it")
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _send(self) -> tuple[Standing, runtime_pb2.ReportResponse]:
        load = await self._current_load()
        # Read after the load, which takes time: the newest standing counts.
        standing = self._standing
        request = runtime_pb2.ReportRequest(
            phase=standing.phase,
            message=head(standing.message, MAX_MESSAGE_BYTES),
            load=load,
            exit_code=standing.exit_code,
            last_words=tail(standing.last_words, MAX_LAST_WORDS_BYTES),
            ready_after_s=standing.ready_after_s,
            adapters=self._adapters(),
        )
        return standing, await self._control.report(request)

    async def _current_load(self) -> replica_pb2.Load | None:
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                return await self._load()
        except Exception as error:  # whatever it is, the report matters more
            _log.debug("the engine did not tell its load: %s", error)
            return None
