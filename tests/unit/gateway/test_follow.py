"""The front door is kept in step, whatever fails on the way."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from penstock.core.routing import Route, RoutingState
from penstock.gateway import follow
from penstock.gateway.follow import Follower
from tests.patience import PATIENCE_S

GOOD = RoutingState(())
BAD = RoutingState((Route("bad", ("bad",), "secret", ()),))


class Door:
    """It takes any state but BAD."""

    def __init__(self) -> None:
        self.taken: list[RoutingState] = []
        self.refused = asyncio.Event()

    async def set_state(self, state: RoutingState) -> None:
        if state is BAD:
            self.refused.set()
            raise ZeroDivisionError
        self.taken.append(state)

    async def applied(self, timeout_s: float) -> bool:
        return True


async def test_a_state_that_cannot_be_handed_on_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(follow, "RETRY_AFTER_S", 0.01)
    door, state = Door(), BAD

    async def load() -> RoutingState:
        return state

    follower = Follower(cast(Any, door), load)
    following = asyncio.create_task(follower.run())
    for _ in range(3):  # It is tried again, and told once.
        door.refused.clear()
        await asyncio.wait_for(door.refused.wait(), PATIENCE_S)
    assert [record.message for record in caplog.records] == [
        "the front door cannot be told what is served, and stays as it is"
    ]
    state = GOOD
    follower.changed()
    assert await follower.applied(PATIENCE_S)
    assert door.taken == [GOOD]
    following.cancel()
