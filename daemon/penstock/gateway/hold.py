"""Holding requests: each waits for its turn, hears how it stands, and is told when waiting makes no sense any more.

It joins the waiting room, which knows the order and the bounds, to what the deployments' prospects are. For each line,
which is a deployment's or an adapter's, there is one task, which asks through the front door whether a replica answers,
and then calls those whose turn it is. Whoever is called relays itself (relay.py), and comes back when no replica would
take it.

The rule guarded here: a request waits no longer than its deployment allows, its client does, or there is hope.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from penstock.core.prospect import Prospect
from penstock.core.routing import Route
from penstock.core.sentences import count, estimate
from penstock.gateway.served import Served, standing
from penstock.gateway.waiting import STEP_S, Full, Ticket, WaitingRoom

log = logging.getLogger(__name__)

FIRST_PROGRESS_S = 0.5
"""Who is served sooner than this hears nothing of having waited."""
PROGRESS_EVERY_S = 2.0
"""How often a waiting request looks how it stands; it tells its client what is new."""
PROGRESS_AGAIN_S = 4.0
"""And what is not new: some clients take a connection for dead that was silent for five seconds."""
LOSSES = 2
"""Replicas that one request may be with when they end: it may be what ended them."""
TURNS = 32
"""How often one request is called in vain: nobody answers it after all, or replicas have too much to do."""
RETRY_AFTER_S = 5
LONGEST_RETRY_AFTER_S = 3600
HOPELESS_RETRY_AFTER_S = 60
"""Where somebody must act first."""

Answers = Callable[[Route], Awaitable[bool]]
"""Whether the front door reaches a replica, of those that the route leads to, that serves."""


class Refused(Exception):
    """It is not held, or no longer. `limit`: the name of the limit that is reached; empty: there is no replica.

    `losses`: with how many replicas it may have been when they ended. If any, nobody is invited to send it again.
    """

    def __init__(self, sentence: str, retry_after_s: float, limit: str = "", *, losses: int = 0) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.retry_after_s = min(LONGEST_RETRY_AFTER_S, max(1, math.ceil(retry_after_s)))
        self.limit = limit
        self.losses = losses


@dataclass(frozen=True, slots=True)
class Progress:
    """How a held request stands."""

    position: int
    prospect: Prospect

    @property
    def sentence(self) -> str:
        """`waiting, position 3, job 71 PENDING (Priority), estimated start 14:05`, on one line."""
        parts = ["waiting", f"position {self.position}"]
        job = self.prospect.job
        if job is None:
            parts.append(self.prospect.sentence)
        else:
            reason = f" ({job.reason})" if job.waiting and job.reason else ""
            parts.append(f"job {job.job_id} {job.state_text or job.state.value}{reason}")
            if job.waiting and job.started_at is not None:
                parts.append(f"estimated start {estimate(job.started_at, datetime.now().astimezone())}")
        return " ".join(", ".join([*parts, *self.expectation]).split())

    @property
    def expectation(self) -> tuple[str, ...]:
        """`probably ready 14:07`, if anything says so."""
        ready_at = self.prospect.ready_at
        if ready_at is None:
            return ()
        return (f"probably ready {estimate(ready_at, datetime.now().astimezone())}",)


class Hold:
    """What the gateway's handlers share."""

    def __init__(self, served: Served, answers: Answers) -> None:
        self.room = WaitingRoom()
        self.served = served
        self._answers = answers
        self._held: dict[Ticket, Held] = {}
        self._relayed: dict[str, Held] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}

    async def consider(self, route: Route, patience_s: float, losses: int) -> Prospect:
        """Whether a request may wait that its client gives so much time, and that was with so many replicas when
        they ended. Raises Refused."""
        prospect = await self.served.prospect(route)
        if losses >= LOSSES:
            raise _lost(route, losses)
        longest_s = min(patience_s, route.admission.max_hold_s)
        if route.admission.max_held == 0 or longest_s <= 0:
            raise Refused(standing(route, prospect), _retry_after_s(prospect), losses=losses)
        if prospect.hopeless:
            sentence = f"{standing(route, prospect)}; no request is held for it: {prospect.hopeless}"
            raise Refused(sentence, HOPELESS_RETRY_AFTER_S, losses=losses)
        if prospect.wait_s > longest_s:
            whose = (
                "the request's own deadline"
                if patience_s < route.admission.max_hold_s
                else "spec.admission.max_hold_s"
            )
            raise Refused(
                f"{standing(route, prospect)}; that is {prospect.wait_s:.0f} s from now, and the request could be held"
                f" for {longest_s:.0f} s ({whose})",
                _retry_after_s(prospect),
                losses=losses,
            )
        try:
            self.room.check(route.line, route.admission.max_held)
        except Full as full:
            raise _too_many(route, prospect, full, losses) from None
        return prospect

    @contextlib.contextmanager
    def enter(
        self, route: Route, prospect: Prospect, size_bytes: int, patience_s: float, losses: int
    ) -> Iterator[Held]:
        """A request that was considered, and with how many replicas it was lost before. Raises Refused."""
        try:
            ticket = self.room.enter(route.line, size_bytes, route.admission.max_held)
        except Full as full:
            raise _too_many(route, prospect, full, losses) from None
        held = Held(self, ticket, route, min(patience_s, route.admission.max_hold_s), losses)
        self._held[ticket] = held
        self._relayed[held.key] = held
        if route.line not in self._keepers:
            log.info("requests wait for %r: %s", route.line, prospect.sentence)
            self._keepers[route.line] = asyncio.create_task(self._keep(route))
        try:
            yield held
        finally:
            self.room.leave(ticket)
            del self._held[ticket]
            del self._relayed[held.key]

    def returned(self, key: str, attempts: int) -> None:
        """The front door had no replica for a relayed request, and led it here again, as its attempt of this number."""
        held = self._relayed.get(key)
        if held is not None:
            held.returned_at_attempt = attempts

    def close(self) -> None:
        """Ends the tasks; those who wait are the servers' to end."""
        for keeper in self._keepers.values():
            keeper.cancel()

    async def _keep(self, began_with: Route) -> None:
        """Opens and closes the line, and calls those in it, until nobody is."""
        began, line = time.monotonic(), began_with.line
        try:
            while line in self.room.held:
                route = self.served.now(began_with)
                replicas = len(route.endpoints) if route is not None else 0
                if route is None or not replicas:
                    self.room.close(line)
                elif self.room.is_open(line) or await self._answered(route):
                    self.room.open(line, replicas, time.monotonic())
                for ticket in self.room.call(line, time.monotonic()):
                    self._held[ticket].called.set()
                await asyncio.sleep(STEP_S)
        finally:
            del self._keepers[line]
        log.info("nobody waits for %r any more, after %.1f s", line, time.monotonic() - began)

    async def _answered(self, route: Route) -> bool:
        try:
            return await self._answers(route)
        except Exception:
            # The line goes on waiting; a task that ended here would leave it waiting for nothing.
            log.exception("cannot ask whether a replica of %r answers", route.line)
            return False


class Held:
    """One request that is held. Its handler waits, relays, and says what came of it."""

    def __init__(self, hold: Hold, ticket: Ticket, route: Route, longest_s: float, losses: int) -> None:
        self.key = secrets.token_hex(16)
        """Goes with the relayed request, so that it is known should it come back."""
        self.called = asyncio.Event()
        self.returned_at_attempt = 0
        """Of Envoy's attempts to relay it, the one that came here. 0: it has not come back."""
        self._hold = hold
        self._ticket = ticket
        self._route = route
        self._longest_s = longest_s
        self._entered = time.monotonic()
        self._losses = losses
        self._turns = 0
        self._said: Progress | None = None
        self._say_at = self._entered + FIRST_PROGRESS_S
        self._again_at = math.inf

    async def wait(self) -> AsyncIterator[Progress]:
        """Ends when it is called; until then what its client may want to hear. Raises Refused."""
        while not self.called.is_set():
            now = time.monotonic()
            end = self._entered + self._longest_s
            if now >= end:
                raise await self._time_is_up()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.called.wait(), min(end, self._say_at) - now)
            if self.called.is_set() or time.monotonic() < self._say_at:
                continue
            if (progress := await self._look()) is not None:
                yield progress

    async def _look(self) -> Progress | None:
        """What is to be said now. Raises Refused when there is no hope any more."""
        now = time.monotonic()
        self._say_at = now + PROGRESS_EVERY_S
        prospect = await self._hold.served.prospect(self._route)
        if self._hold.served.now(self._route) is None:
            raise Refused(_gone(self._route), HOPELESS_RETRY_AFTER_S, losses=self._losses)
        if prospect.hopeless:
            sentence = f"{standing(self._route, prospect)}; no request is held for it any longer: {prospect.hopeless}"
            raise Refused(sentence, HOPELESS_RETRY_AFTER_S, losses=self._losses)
        progress = Progress(self._hold.room.position(self._ticket), prospect)
        if progress == self._said and now < self._again_at:
            return None
        self._said, self._again_at = progress, now + PROGRESS_AGAIN_S
        return progress

    def answered(self) -> None:
        """The first byte of its answer has come: it is not held any more, and never relayed again."""
        self._hold.room.answered(self._ticket)

    def lost(self) -> None:
        """No replica answers, and perhaps some ended while they had it. It waits again. Raises Refused."""
        if attempt := self.returned_at_attempt:
            self._losses += losses(self._hold.served.now(self._route) or self._route, attempt)
        else:
            self._losses += 1
        self.returned_at_attempt = 0
        self._hold.room.close(self._route.line)
        if self._losses >= LOSSES:
            raise _lost(self._route, self._losses)
        if not self.turned_away():
            sentence = (
                f"no replica of deployment {self._route.deployment!r} took this request in {TURNS} tries"
            )
            raise Refused(sentence, RETRY_AFTER_S, losses=self._losses)

    def turned_away(self) -> bool:
        """It was called in vain; whether it waits again."""
        self._turns += 1
        if self._turns > TURNS:
            return False
        self.called.clear()
        self._hold.room.turned_away(self._ticket, time.monotonic())
        return True

    async def _time_is_up(self) -> Refused:
        prospect = await self._hold.served.prospect(self._route)
        limit_s = self._route.admission.max_hold_s
        whose = "spec.admission.max_hold_s" if self._longest_s >= limit_s else "its own deadline"
        sentence = (
            f"{standing(self._route, prospect)}; the request was held for {self._longest_s:.0f} s ({whose})"
        )
        return Refused(sentence, _retry_after_s(prospect), losses=self._losses)


def losses(route: Route, attempt: int) -> int:
    """With how many replicas a request may have been when they ended, by the number of Envoy's attempt that came here.

    Envoy tries two different ones before, or the only one twice: of a replica that just ended it learns by that.
    """
    return min(attempt - 1, max(1, len(route.endpoints)))


def _retry_after_s(prospect: Prospect) -> float:
    """Not before a replica may be ready, and best when one probably is."""
    left_s = 0.0
    if prospect.ready_at is not None:
        left_s = (prospect.ready_at - datetime.now().astimezone()).total_seconds()
    return max(RETRY_AFTER_S, prospect.wait_s, left_s)


def _gone(route: Route) -> str:
    if route.adapter:
        return f"adapter {route.adapter!r} of deployment {route.deployment!r} is not wanted any more"
    return f"deployment {route.deployment!r} was deleted"


def _lost(route: Route, losses: int) -> Refused:
    return Refused(
        f"{count(losses, 'replica')} of deployment {route.deployment!r} ended, or could not be reached, before this"
        " request was answered; it is not tried again",
        RETRY_AFTER_S,
        losses=losses,
    )


def _too_many(route: Route, prospect: Prospect, full: Full, losses: int) -> Refused:
    what = "bytes of requests" if full.limit.endswith("bytes") else "requests"
    where = (
        f"deployment {route.deployment!r}" if full.limit.startswith("spec.") else "this gateway's deployments"
    )
    sentence = f"{standing(route, prospect)}; {full.value} {what} wait for {where} already ({full.limit})"
    return Refused(sentence, _retry_after_s(prospect), full.limit, losses=losses)
