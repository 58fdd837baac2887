"""The waiting room: which requests may wait for a replica, in what order, and how many may go on at once.

Pure: it holds no request and asks no clock; the time, in seconds of any clock that never goes back, comes in. A
request that waits is a ticket, in the line of its deployment, or of its adapter:

    enter ──▶ waiting ──▶ called ──▶ answered        leave: from anywhere, for good
                 ▲───────────┘
            turned away: to its old place in the line

The rules guarded here: lines and what they hold are bounded, each by a limit with a name; tickets are called in the
order in which they came; and a replica that has just come back is not buried. How many may be called and
unanswered at once, the window, begins small, grows by the same step in each interval, up to a bound, and is halved when
one is turned away (additive increase, multiplicative decrease): it needs no word from the engine, and finds what the
engine takes within seconds. Called requests count until the first byte of their answer, for from then on the engine has
room for the next. Requests that were never held do not pass through here: they go to the replica directly, beside
those that are called.
"""

from __future__ import annotations

import bisect
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.gateway.settings import MIB

FIRST_WINDOW = 16
"""Unanswered requests for each replica when a line opens: a small part of any engine's batch."""
WINDOW_STEP = 16
STEP_S = 0.25
"""Each time this has passed, the window grows by WINDOW_STEP for each replica: up to the widest in 2 s."""
WIDEST_WINDOW = 128
"""For each replica. Engines batch this many and more by default (vLLM 256); what waits in an engine is lost with it."""


class Place(enum.Enum):
    """Where a ticket is."""

    WAITING = "waiting"
    CALLED = "called"
    ANSWERED = "answered"
    GONE = "gone"


@dataclass(slots=True, eq=False)
class Ticket:
    """One request."""

    serial: int
    """In the order of coming."""
    line: str
    """Its name."""
    size_bytes: int
    place: Place = Place.WAITING


class Full(Exception):
    """A limit is reached; `limit` is its name and `value` what it is."""

    def __init__(self, limit: str, value: int) -> None:
        super().__init__(f"{limit} is {value}")
        self.limit = limit
        self.value = value


@dataclass(frozen=True, slots=True)
class RoomLimits:
    """Of all lines together; each gateway has a room of its own."""

    max_held: int = 1024
    max_held_bytes: int = 256 * MIB
    """Of bodies in memory: those that are held, and those that were and whose answers go through here."""


@dataclass(slots=True)
class _Line:
    waiting: list[Ticket] = field(default_factory=list)
    """By serial."""
    called: int = 0
    window: int = 0
    """0: closed."""
    replicas: int = 0
    changed_at: float = 0.0
    """When the window last grew or shrank."""
    shrunk_at: float = float("-inf")

    @property
    def held(self) -> int:
        return len(self.waiting) + self.called


class WaitingRoom:
    """All lines of one gateway."""

    def __init__(self, limits: RoomLimits | None = None) -> None:
        self._limits = limits or RoomLimits()
        self._lines: dict[str, _Line] = {}
        self._serial = 0
        self._held = 0
        self._bytes = 0

    @property
    def held(self) -> Mapping[str, int]:
        """Requests without an answer yet, by line; those without any are left out."""
        return {name: line.held for name, line in self._lines.items()}

    @property
    def held_bytes(self) -> int:
        """Of the bodies of all of them, and of those that were held: they are in memory until they leave."""
        return self._bytes

    def check(self, name: str, max_held: int) -> None:
        """Raises Full when not even an empty request could enter."""
        line = self._lines.get(name)
        if (line.held if line else 0) >= max_held:
            raise Full("spec.admission.max_held", max_held)
        if self._held >= self._limits.max_held:
            raise Full("max_held", self._limits.max_held)

    def enter(self, name: str, size_bytes: int, max_held: int) -> Ticket:
        """The last of its line. Raises Full."""
        self.check(name, max_held)
        if self._bytes + size_bytes > self._limits.max_held_bytes:
            raise Full("max_held_bytes", self._limits.max_held_bytes)
        self._serial += 1
        ticket = Ticket(self._serial, name, size_bytes)
        self._lines.setdefault(name, _Line()).waiting.append(ticket)
        self._held += 1
        self._bytes += size_bytes
        return ticket

    def position(self, ticket: Ticket) -> int:
        """From 1; 0 for one that does not wait."""
        if ticket.place is not Place.WAITING:
            return 0
        return bisect.bisect_left(self._lines[ticket.line].waiting, ticket.serial, key=_serial) + 1

    def is_open(self, name: str) -> bool:
        """Whether tickets of this line are called."""
        line = self._lines.get(name)
        return line is not None and line.window > 0

    def open(self, name: str, replicas: int, now: float) -> None:
        """So many replicas (at least one) take requests now. A line that is open already keeps its window, as far as
        the number of replicas allows."""
        line = self._lines.get(name)
        if line is None:
            return
        if line.window == 0:
            line.window, line.changed_at = FIRST_WINDOW * replicas, now
        line.replicas = replicas
        line.window = min(line.window, WIDEST_WINDOW * replicas)

    def close(self, name: str) -> None:
        """No replica takes requests now."""
        if (line := self._lines.get(name)) is not None:
            line.window = 0

    def call(self, name: str, now: float) -> list[Ticket]:
        """Those whose turn it is; they count as called."""
        line = self._lines.get(name)
        if line is None or line.window == 0:
            return []
        steps = int((now - line.changed_at) / STEP_S)
        if steps > 0:
            line.changed_at += steps * STEP_S
            line.window = min(
                line.window + steps * WINDOW_STEP * line.replicas, WIDEST_WINDOW * line.replicas
            )
        room = max(0, line.window - line.called)
        called, line.waiting = line.waiting[:room], line.waiting[room:]
        for ticket in called:
            ticket.place = Place.CALLED
        line.called += len(called)
        return called

    def answered(self, ticket: Ticket) -> None:
        """The first byte of its answer has come. It is not held any more, but its body is in memory until it leaves."""
        if ticket.place is not Place.GONE:
            self._remove(ticket, Place.ANSWERED)

    def turned_away(self, ticket: Ticket, now: float) -> None:
        """No replica would take it: it waits again, before all who came after it."""
        if ticket.place is not Place.CALLED:
            return
        line = self._lines[ticket.line]
        line.called -= 1
        ticket.place = Place.WAITING
        bisect.insort(line.waiting, ticket, key=_serial)
        if line.window and now - line.shrunk_at >= STEP_S:
            # Those that were called together are turned away together, which says it once.
            line.window, line.changed_at, line.shrunk_at = max(1, line.window // 2), now, now

    def leave(self, ticket: Ticket) -> None:
        """It is over, in whatever way. Nothing for one that has left."""
        if ticket.place is not Place.GONE:
            self._bytes -= ticket.size_bytes
            self._remove(ticket, Place.GONE)

    def _remove(self, ticket: Ticket, place: Place) -> None:
        before, ticket.place = ticket.place, place
        if before not in (Place.WAITING, Place.CALLED):
            return
        line = self._lines[ticket.line]
        if before is Place.CALLED:
            line.called -= 1
        else:
            del line.waiting[bisect.bisect_left(line.waiting, ticket.serial, key=_serial)]
        self._held -= 1
        if not line.held:
            del self._lines[ticket.line]


def _serial(ticket: Ticket) -> int:
    return ticket.serial
