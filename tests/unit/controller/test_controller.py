"""What must not end a controller."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from penstock.controller import controller
from penstock.controller.controller import Controller
from tests.patience import PATIENCE_S


class Looks:
    """A reconciler and a lease, of which a controller that looks around needs no more. The first look fails."""

    held = True

    def __init__(self) -> None:
        self.looks = 0
        self.again = asyncio.Event()

    async def look_around(self) -> bool:
        self.looks += 1
        if self.looks == 1:
            raise ZeroDivisionError
        self.again.set()
        return True


async def test_a_look_around_that_fails_is_made_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(controller, "LOOK_AROUND_EVERY_S", 0.01)
    parts = cast(Any, Looks())
    made = Controller(cast(Any, None), parts, cast(Any, None), parts, cast(Any, None), interval_s=5)
    looking = asyncio.create_task(made._look_around())
    await asyncio.wait_for(parts.again.wait(), PATIENCE_S)
    looking.cancel()
    assert [record.message for record in caplog.records] == [
        "the look at the nodes failed; it is tried again in 0.01 s"
    ]
