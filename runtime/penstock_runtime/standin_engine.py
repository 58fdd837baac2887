"""The stand-in's engine: slots, a queue, tokens at a set speed, and faults on demand.

A request waits for one of `max_num_seqs` slots, then for its first token, and then receives its tokens at
`tokens_per_second`, until its answer is over, its limit is reached, or a stop string is found. It knows nothing of
HTTP.

Every field of `Behaviour` can be set when the process starts and changed while it runs; a change is seen by running
requests at their next token. `fail` is the one way in which everything ends at once, and it ends requests that wait,
sleep or hang as surely as those that stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
import types
import typing
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock_runtime.standin_metrics import Metrics
from penstock_runtime.standin_text import Prompt, StopFinder

SHORTEST_SLEEP_S = 0.002
"""Below this a sleep costs more than it tells: what falls due meanwhile is sent together."""
HANG_LOOK_S = 0.02
"""How often a hanging request looks whether it still should."""
CHUNKS_AT_ONCE = 16
"""Of chunks that are due, so many are sent together before anyone else has a turn."""
CORE_DIED = "EngineCore encountered an issue. See stack trace (above) for the root cause."
"""vLLM's own words, which end up in its error chunk."""


class BehaviourError(Exception):
    """A setting that is not known or has no such value; one sentence."""


class EngineDied(Exception):
    """The engine ended while a request was in it; the message is what its client is told."""


class ConnectionCut(Exception):
    """The fault `cut_after_tokens`: the client's connection ends without a word."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Speed and faults. None means: not at all."""

    # From the process's start until it listens.
    start_delay_s: float = 0.0
    # Instead of listening, exit with this code (after start_delay_s).
    exit_at_start: int | None = None
    # From a slot to the first token.
    first_token_s: float = 0.0
    # Of each request by itself; 0 is as fast as can be.
    tokens_per_second: float = 0.0
    tokens_per_chunk: int = 1
    # The length of an answer that nothing else ends; one more token says that it is over.
    answer_tokens: int = 32
    # Requests that run at once; the others queue.
    max_num_seqs: int = 256
    # Once any request has this many tokens, die as vLLM does when its core dies: an error chunk and [DONE] under
    # HTTP 200 to all, /health 503, and after exit_linger_s an exit with code 0.
    die_after_tokens: int | None = None
    # Each request stands still at this many tokens (0: before the first) for as long as this is set.
    hang_after_tokens: int | None = None
    # Each request's connection ends without a word at this many tokens.
    cut_after_tokens: int | None = None
    # So many of the next requests are answered 500; -1 for all.
    fail_requests: int = 0
    # /health answers 503.
    unhealthy: bool = False
    # SIGTERM does nothing.
    ignore_sigterm: bool = False
    # From the last stream's end to the process's; vLLM takes up to 10 s.
    exit_linger_s: float = 0.0

    def __post_init__(self) -> None:
        least = {"tokens_per_chunk": 1, "answer_tokens": 1, "max_num_seqs": 1, "fail_requests": -1}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if value is not None and value < least.get(each.name, 0):
                raise BehaviourError(f"{each.name} is {value}; it must be {least.get(each.name, 0)} or above")

    @property
    def turning_points(self) -> tuple[int | None, ...]:
        """At these numbers of tokens something else happens than the next token."""
        return self.die_after_tokens, self.hang_after_tokens, self.cut_after_tokens

    def changed(self, changes: Mapping[str, Any]) -> Behaviour:
        """With some fields replaced. Values are JSON's, or texts as an environment has them; raises BehaviourError."""
        hints = typing.get_type_hints(Behaviour)
        for name in changes:
            if name not in hints:
                raise BehaviourError(f"{name} is not known; known are {', '.join(hints)}")
        return dataclasses.replace(
            self, **{name: _read(name, hints[name], changes[name]) for name in changes}
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """What one chunk of an answer carries: tokens `first` to `first + tokens - 1`, and the text that may be shown."""

    text: str
    first: int
    tokens: int
    finish_reason: str | None = None
    stop_reason: str | None = None


class Engine:
    """Requests in, pieces out. One per process; all of it on one event loop."""

    def __init__(self, behaviour: Behaviour, model_name: str, max_model_len: int) -> None:
        self.behaviour = behaviour
        self.max_model_len = max_model_len
        self.metrics = Metrics(model_name)
        self.running = 0
        self.failure: str | None = None
        self.failed = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._sleeping: set[asyncio.Future[None]] = set()
        self._cached_tokens = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def cache_usage(self) -> float:
        """The share of the cache's room that running requests take, 0 to 1."""
        return min(1.0, self._cached_tokens / (self.behaviour.max_num_seqs * self.max_model_len))

    def change(self, changes: Mapping[str, Any]) -> None:
        """Set some fields of the behaviour from now on; raises BehaviourError and changes nothing."""
        self.behaviour = self.behaviour.changed(changes)
        self._admit()

    def fail(self, message: str) -> None:
        """End every request with `message`, whatever it is doing; no more are taken."""
        self.failure = message
        self.failed.set()
        for future in (*self._waiting, *self._sleeping):
            if not future.done():
                future.set_exception(EngineDied(message))

    async def generate(
        self, prompt: Prompt, limit: int, *, ignore_eos: bool, stops: Sequence[str], keep_stop: bool = False
    ) -> AsyncGenerator[list[Piece], None]:
        """The answer to `prompt`, at most `limit` tokens of it: at each step the pieces that are due.

        The last piece has a finish reason. Raises EngineDied and ConnectionCut.
        """
        arrived = time.monotonic()
        outcome = "abort"
        async with self._slot():
            self.metrics.queue_time_s.observe(time.monotonic() - arrived)
            self.metrics.prompt_tokens += prompt.tokens
            self._cached_tokens += prompt.tokens
            mine = prompt.tokens
            try:
                await self._sleep(self.behaviour.first_token_s)
                due = last = time.monotonic()
                finder = StopFinder(stops, keep_stop)
                index = 0
                while True:
                    await self._faults(index)
                    behaviour = self.behaviour
                    now = time.monotonic()
                    wait, due = _chunks_due(behaviour, now, due)
                    if wait > 0:
                        await self._sleep(max(wait, SHORTEST_SLEEP_S))
                        continue
                    pieces: list[Piece] = []
                    while due <= now and len(pieces) < CHUNKS_AT_ONCE:
                        pieces.append(self._piece(prompt, index, limit, ignore_eos, finder))
                        index += pieces[-1].tokens
                        if pieces[-1].finish_reason or index in behaviour.turning_points:
                            break
                        due += _interval(behaviour)
                    made = sum(piece.tokens for piece in pieces)
                    self.metrics.generation_tokens += made
                    self._cached_tokens += made
                    mine += made
                    if index == made:
                        self.metrics.time_to_first_token_s.observe(now - arrived)
                    else:
                        self.metrics.inter_token_latency_s.observe((now - last) / made)
                    last = now
                    yield pieces
                    if reason := pieces[-1].finish_reason:
                        outcome = reason
                        return
                    if behaviour.tokens_per_second == 0:
                        await asyncio.sleep(0)
            except EngineDied:
                outcome = "error"
                raise
            finally:
                self._cached_tokens -= mine
                self.metrics.finished[outcome] += 1
                self.metrics.latency_s.observe(time.monotonic() - arrived)

    def _piece(self, prompt: Prompt, first: int, limit: int, ignore_eos: bool, finder: StopFinder) -> Piece:
        """The chunk that begins with token `first`."""
        behaviour = self.behaviour
        if prompt.script is not None:
            end = min(limit, len(prompt.script))
        else:
            end = limit if ignore_eos else min(limit, behaviour.answer_tokens)
        if first == end:  # all of the answer was said, and there was room left for the token that ends it
            return Piece(finder.rest(), first, 1, "stop")
        last = min(first + behaviour.tokens_per_chunk, end)
        for fault in behaviour.turning_points:
            if fault is not None and first < fault:
                last = min(last, fault)
        text = ""
        for index in range(first, last):
            text += finder.push(prompt.token(index))
            if finder.found is not None:
                return Piece(text, first, index + 1 - first, "stop", finder.found)
        if last == limit:
            return Piece(text + finder.rest(), first, last - first, "length")
        return Piece(text, first, last - first)

    async def _faults(self, index: int) -> None:
        if self.failure is not None:
            raise EngineDied(self.failure)
        if self.behaviour.die_after_tokens is not None and index >= self.behaviour.die_after_tokens:
            self.fail(CORE_DIED)
            raise EngineDied(CORE_DIED)
        if self.behaviour.cut_after_tokens is not None and index >= self.behaviour.cut_after_tokens:
            raise ConnectionCut
        while self.behaviour.hang_after_tokens is not None and index >= self.behaviour.hang_after_tokens:
            await self._sleep(HANG_LOOK_S)

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """A slot, after those who came before; given back however the request ends."""
        if self.failure is not None:
            raise EngineDied(self.failure)
        self.idle.clear()
        if self.running < self.behaviour.max_num_seqs and not self._waiting:
            self.running += 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn  # whoever ends the wait has counted us as running
            except BaseException:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                elif turn.done() and not turn.cancelled() and turn.exception() is None:
                    self._leave()
                self._look_idle()
                raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        self.running -= 1
        self._admit()
        self._look_idle()

    def _look_idle(self) -> None:
        if self.running == 0 and not self._waiting:
            self.idle.set()

    def _admit(self) -> None:
        while self._waiting and self.running < self.behaviour.max_num_seqs:
            turn = self._waiting.popleft()
            if not turn.done():
                self.running += 1
                turn.set_result(None)

    async def _sleep(self, seconds: float) -> None:
        """asyncio.sleep that `fail` ends."""
        if seconds <= 0:
            return
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        handle = loop.call_later(seconds, _wake, future)
        self._sleeping.add(future)
        try:
            await future
        finally:
            handle.cancel()
            self._sleeping.discard(future)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _interval(behaviour: Behaviour) -> float:
    """Seconds from one chunk to the next."""
    return behaviour.tokens_per_chunk / behaviour.tokens_per_second if behaviour.tokens_per_second else 0.0


def _chunks_due(behaviour: Behaviour, now: float, due: float) -> tuple[float, float]:
    """Seconds until the next chunk is due, and when it is. A speed that was just raised takes effect at once."""
    if behaviour.tokens_per_second == 0:
        return 0.0, now
    due = min(due, now + _interval(behaviour))
    return due - now, due


def _read(name: str, hint: Any, value: Any) -> Any:
    """`value` as the type `hint`: float, int, bool, or int | None."""
    optional = isinstance(hint, types.UnionType)
    kind = int if optional else hint
    if optional and value in (None, "", "none"):
        return None
    if kind is bool and str(value).lower() in ("true", "1", "false", "0"):
        return str(value).lower() in ("true", "1")
    if kind is not bool and isinstance(value, str | int | float) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            if kind is float or isinstance(value, int | str):
                return kind(value)
    raise BehaviourError(
        f"{name} is {value!r}; it must be of type {kind.__name__}{' or null' if optional else ''}"
    )
