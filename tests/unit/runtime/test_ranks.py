"""Between the head's agent and the other nodes': who is let in, what is told, and the port where ranks meet."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from penstock_runtime import standin_ranks
from penstock_runtime.engine import EngineExit
from penstock_runtime.link import Link, LinkError, connect, greet, join
from penstock_runtime.ports import HeldPort
from penstock_runtime.ranks import _end_of


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Link, Link]]:
    """A head's and a rank's side of one connection."""
    met: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda *ends: met.set_result(Link(*ends)), "127.0.0.1", 0)
    rank = await connect("127.0.0.1", server.sockets[0].getsockname()[1])
    head = await met
    try:
        yield head, rank
    finally:
        await rank.close()
        await head.close()
        server.close()


async def test_both_know_the_secret() -> None:
    async with pair() as (head, rank):
        said, told = await asyncio.gather(
            greet(head, "s3cret", master_address="10.0.0.1", master_port=29777),
            join(rank, "s3cret", 1, "gpu2"),
        )
        assert (said["rank"], said["node"]) == (1, "gpu2")
        assert (told["master_address"], told["master_port"]) == ("10.0.0.1", 29777)
        assert rank.own_address == "127.0.0.1"
        rank.send(failed="the engine broke", exit_code=3, last_words=["why"])
        ended = _end_of("rank 1 of the engine (on gpu2)", await head.receive())
        assert ended == EngineExit(
            3, False, ("why",), ended.who, "rank 1 of the engine (on gpu2): the engine broke"
        )
        assert ended.exit_code == 3
        head.send(stop=True)
        assert await rank.receive() == {"stop": True}


async def test_a_rank_with_another_secret_is_not_let_in() -> None:
    async with pair() as (head, rank):
        joining = asyncio.create_task(join(rank, "guessed", 1, "gpu2"))
        with pytest.raises(LinkError, match="does not know the attempt's secret"):
            await greet(head, "s3cret")
        await head.close()
        with pytest.raises(LinkError, match="it left"):
            await joining


async def test_a_head_with_another_secret_is_not_followed() -> None:
    async with pair() as (head, rank):
        joining = asyncio.create_task(join(rank, "s3cret", 1, "gpu2"))
        said = await asyncio.create_task(_any_answer(head))
        head.send(proof=said["proof"], master_address="evil", master_port=1)
        with pytest.raises(LinkError, match="the head does not know the attempt's secret"):
            await joining


async def _any_answer(head: Link) -> dict[str, str]:
    head.send(nonce="x")
    said = await head.receive()
    assert said is not None
    return said


async def test_what_is_no_agent() -> None:
    async with pair() as (head, rank):
        rank._writer.write(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(LinkError, match="is no agent of Penstock"):
            await greet(head, "s3cret")


async def test_the_end_of_one_side_is_told_to_the_other() -> None:
    async with pair() as (head, rank):
        await rank.close()
        ended = _end_of("rank 1", await head.receive())
        assert (str(ended), ended.exit_code) == ("rank 1 is gone without a word", 70)


def test_a_held_port_can_be_listened_at_and_is_given_to_nobody_else() -> None:
    held = HeldPort("127.0.0.1")
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind(("127.0.0.1", held.number))
    with socket.create_server(("127.0.0.1", held.number)) as engine:
        with socket.create_connection(("127.0.0.1", held.number), timeout=5):
            engine.accept()[0].close()
    held.close()


async def test_the_stand_ins_ranks() -> None:
    lost = asyncio.Event()
    head = standin_ranks.Head(3, lost.set)
    server = await head.listen("127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    stops = [asyncio.Event(), asyncio.Event()]
    first = asyncio.create_task(standin_ranks.work("127.0.0.1", port, 1, stops[0]))
    await asyncio.sleep(0)
    assert not head.complete.is_set()
    second = asyncio.create_task(standin_ranks.work("127.0.0.1", port, 2, stops[1]))
    await asyncio.wait_for(head.complete.wait(), 60)
    assert not lost.is_set()
    stops[1].set()
    assert await asyncio.wait_for(second, 60) == 0
    await asyncio.wait_for(lost.wait(), 60)
    stops[0].set()
    assert await asyncio.wait_for(first, 60) == 0
    server.close()
