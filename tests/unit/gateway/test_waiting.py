"""The waiting room alone, on a clock that the tests turn."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.gateway.waiting import (
    FIRST_WINDOW,
    STEP_S,
    WIDEST_WINDOW,
    Full,
    Place,
    RoomLimits,
    Ticket,
    WaitingRoom,
)


def filled(count: int, **limits: int) -> tuple[WaitingRoom, list[Ticket]]:
    room = WaitingRoom(RoomLimits(**limits))
    return room, [room.enter("m", 10, max_held=10_000) for _ in range(count)]


def full(room: WaitingRoom, deployment: str = "m", size_bytes: int = 0, max_held: int = 10_000) -> str:
    with pytest.raises(Full) as caught:
        room.enter(deployment, size_bytes, max_held)
    return f"{caught.value.limit} {caught.value.value}"


def test_each_limit_has_a_name() -> None:
    room, _ = filled(3, max_held=4, max_held_bytes=50)
    assert full(room, max_held=3) == "spec.admission.max_held 3"
    assert full(room, size_bytes=21) == "max_held_bytes 50"
    other = room.enter("n", 20, 1)
    assert full(room, "n", max_held=1) == "spec.admission.max_held 1"
    assert full(room) == "max_held 4"
    room.leave(other)
    assert (room.held, room.held_bytes) == ({"m": 3}, 30)
    room.enter("m", 20, 10)


def test_they_are_called_in_the_order_in_which_they_came_and_ever_more_at_once() -> None:
    room, tickets = filled(200)
    assert room.call("m", 0) == [], "the line is closed"
    room.open("m", 1, now=10)
    called = room.call("m", 10)
    assert called == tickets[:FIRST_WINDOW]
    assert room.position(tickets[FIRST_WINDOW]) == 1
    assert room.call("m", 10 + STEP_S / 2) == []
    called += room.call("m", 10 + STEP_S)
    assert called == tickets[:32]
    called += room.call("m", 100)
    assert called == tickets[:WIDEST_WINDOW], "no more than this are unanswered"
    for ticket in called[:5]:
        room.answered(ticket)
    assert room.call("m", 100) == tickets[WIDEST_WINDOW : WIDEST_WINDOW + 5]


def test_two_replicas_take_twice_as_many() -> None:
    room, tickets = filled(100)
    room.open("m", 2, now=0)
    assert len(room.call("m", 0)) == 2 * FIRST_WINDOW
    room.open("m", 1, now=0)
    assert room.call("m", STEP_S) == tickets[32:48], "one went: it grows by the step of the other"


def test_who_is_turned_away_waits_at_its_old_place_and_the_window_is_halved_once() -> None:
    room, tickets = filled(40)
    room.open("m", 1, now=0)
    called = room.call("m", 0)
    for ticket in reversed(called):
        room.turned_away(ticket, now=1)
    assert [room.position(ticket) for ticket in tickets[:3]] == [1, 2, 3]
    assert room.call("m", 1) == tickets[: FIRST_WINDOW // 2]
    room.turned_away(tickets[0], now=1 + STEP_S)
    assert room.call("m", 1 + STEP_S) == [], "half of the half, and seven are out"


def test_a_line_that_closes_begins_anew_when_it_opens() -> None:
    room, tickets = filled(100)
    room.open("m", 1, now=0)
    called = room.call("m", 60)
    room.close("m")
    for ticket in called:
        room.turned_away(ticket, now=60)
    assert room.call("m", 61) == []
    room.open("m", 1, now=62)
    assert room.call("m", 62) == tickets[:FIRST_WINDOW]


def test_who_is_answered_or_gone_is_not_held_and_a_line_without_any_is_forgotten() -> None:
    room, (one, two) = filled(2)
    room.open("m", 1, now=0)
    room.call("m", 0)
    room.answered(one)
    assert (room.held, room.held_bytes) == ({"m": 1}, 20), "its body is in memory until it leaves"
    room.leave(one)
    room.answered(one)
    assert one.place is Place.GONE
    assert (room.held, room.held_bytes) == ({"m": 1}, 10)
    room.leave(two)
    room.leave(two)
    room.turned_away(two, 1)
    assert (room.held, room.held_bytes) == ({}, 0)
    room.open("m", 1, now=0)
    assert not room.is_open("m"), "there is no line"


class Model(RuleBasedStateMachine):
    """Whatever happens, the counts are those of the tickets, the bounds hold, and lines are in order."""

    def __init__(self) -> None:
        super().__init__()
        self.room = WaitingRoom(RoomLimits(max_held=40, max_held_bytes=300))
        self.tickets: list[Ticket] = []
        self.now = 0.0

    @rule(name=st.sampled_from("mn"), size=st.integers(0, 30))
    def enter(self, name: str, size: int) -> None:
        held = self.room.held
        if held.get(name, 0) < 30 and sum(held.values()) < 40 and self.room.held_bytes + size <= 300:
            self.tickets.append(self.room.enter(name, size, 30))
        else:
            assert full(self.room, name, size, max_held=30)

    @rule(name=st.sampled_from("mn"), replicas=st.integers(1, 3))
    def open(self, name: str, replicas: int) -> None:
        self.room.open(name, replicas, self.now)

    @rule(name=st.sampled_from("mn"))
    def close(self, name: str) -> None:
        self.room.close(name)

    @rule(name=st.sampled_from("mn"), seconds=st.floats(0, 2))
    def call(self, name: str, seconds: float) -> None:
        self.now += seconds
        before = [one for one in self.tickets if one.line == name and one.place is Place.WAITING]
        called = self.room.call(name, self.now)
        assert called == sorted(before, key=lambda one: one.serial)[: len(called)]

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), what=st.sampled_from(["answered", "turned_away", "leave"]))
    def move(self, data: st.DataObject, what: str) -> None:
        ticket = data.draw(st.sampled_from(self.tickets))
        if what == "turned_away":
            self.room.turned_away(ticket, self.now)
        elif what == "leave":
            self.room.leave(ticket)
        elif ticket.place is Place.CALLED:
            self.room.answered(ticket)

    @invariant()
    def counts_agree(self) -> None:
        held = [one for one in self.tickets if one.place in (Place.WAITING, Place.CALLED)]
        assert sum(self.room.held.values()) == len(held) <= 40
        assert all(0 < count <= 30 for count in self.room.held.values())
        in_memory = [one for one in self.tickets if one.place is not Place.GONE]
        assert self.room.held_bytes == sum(one.size_bytes for one in in_memory) <= 300
        for name in "mn":
            line = [one for one in held if one.line == name and one.place is Place.WAITING]
            assert [self.room.position(one) for one in line] == list(range(1, len(line) + 1))


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
