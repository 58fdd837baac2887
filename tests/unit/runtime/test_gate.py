"""The gate: who comes in, who is told what, and when it is empty."""

from __future__ import annotations

import asyncio

import pytest

from penstock_runtime.gate import Closed, Gate


async def guest(gate: Gate, inside: asyncio.Event, leave: asyncio.Event) -> str:
    try:
        with gate.enter():
            inside.set()
            await leave.wait()
    except Closed as closed:
        return f"told: {closed}"
    return "left"


async def test_closed_until_it_opens_and_after_it_closes() -> None:
    gate = Gate("starting")
    with pytest.raises(Closed, match="starting"), gate.enter():
        pass
    gate.open()
    with gate.enter():
        assert gate.inside == 1
        gate.close("leaving")
        with pytest.raises(Closed, match="leaving"):
            await asyncio.create_task(enter(gate))
        assert gate.inside == 1
    assert gate.inside == 0


async def enter(gate: Gate) -> None:
    with gate.enter():
        pass


async def test_empty_waits_for_those_inside_and_no_longer() -> None:
    gate = Gate("")
    gate.open()
    inside, leave = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(guest(gate, inside, leave))
    await inside.wait()
    assert not await gate.empty(0)
    assert not await gate.empty(-1)
    leave.set()
    assert await gate.empty(5)
    assert await task == "left"


async def test_a_cut_is_told_and_a_client_who_leaves_is_not() -> None:
    gate = Gate("")
    gate.open()
    inside, leave = asyncio.Event(), asyncio.Event()
    leaver = asyncio.create_task(guest(gate, inside, leave))
    await inside.wait()
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert gate.inside == 0

    inside.clear()
    stayer = asyncio.create_task(guest(gate, inside, leave))
    await inside.wait()
    assert gate.cut("the engine is gone") == 1
    assert await stayer == "told: the engine is gone"
    assert stayer.cancelling() == 0
    assert await gate.empty(0)
    with pytest.raises(Closed, match="the engine is gone"):
        await enter(gate)


async def test_a_client_who_leaves_while_he_is_cut_has_left() -> None:
    gate = Gate("")
    gate.open()
    inside, leave = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(guest(gate, inside, leave))
    await inside.wait()
    gate.cut("the engine is gone")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
