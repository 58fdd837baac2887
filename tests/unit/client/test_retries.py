"""What a caller sees of a server that fails, with and without asyncio alike: no token twice, and an end that says all.

Each test plays both clients by the same calls; `asked` is one of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

import grpc
import pytest

from deploy.cluster.ports import free_ports
from penstock.client import (
    Answer,
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    PenstockError,
    Retry,
    Unavailable,
)
from penstock.client.errors import Cancelled, Denied, NotSupported, ServerError
from penstock.client.retry import may_repeat
from penstock.v1 import inference_pb2 as pb
from tests.unit.client.playing import Scene, piece, stage, waiting, whole

QUICK = Retry(attempts=3, first_s=0.01, longest_s=1)
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class Asked(Protocol):
    """One client: the pieces of a streamed chat, or the text of a whole one."""

    async def __call__(
        self, address: str, *, stream: bool, retry: Retry = QUICK, timeout: float | None = 10, **options: Any
    ) -> list[str]: ...


async def with_asyncio(
    address: str, *, stream: bool, retry: Retry = QUICK, timeout: float | None = 10, **options: Any
) -> list[str]:
    async with AsyncClient(address, retry=retry, timeout=timeout) as client:
        if not stream:
            return [(await client.chat("m", "hello", **options)).text]
        return [answer.text async for answer in client.stream_chat("m", "hello", **options)]


async def without_asyncio(
    address: str, *, stream: bool, retry: Retry = QUICK, timeout: float | None = 10, **options: Any
) -> list[str]:
    def ask() -> list[str]:
        with Client(address, retry=retry, timeout=timeout) as client:
            if not stream:
                return [client.chat("m", "hello", **options).text]
            return [answer.text for answer in client.stream_chat("m", "hello", **options)]

    return await asyncio.to_thread(ask)


@pytest.fixture(params=[with_asyncio, without_asyncio])
def asked(request: pytest.FixtureRequest) -> Asked:
    found: Asked = request.param
    return found


async def test_a_stream_is_asked_for_again_before_its_first_piece(asked: Asked) -> None:
    failure = Scene(code=UNAVAILABLE, reason="NO_READY_REPLICA", retry_after_s=0.05)
    async with stage(failure, Scene([piece("a"), piece("b")])) as played:
        assert await asked(played.address, stream=True) == ["a", "b"]
        assert len(played.requests) == 2


async def test_after_the_first_piece_never(asked: Asked) -> None:
    """Not even where the server invites it: what came would come twice."""
    broken = Scene([piece("a"), piece("b")], UNAVAILABLE, "NO_READY_REPLICA", retry_after_s=0.01, made=2)
    async with stage(broken) as played:
        with pytest.raises(Unavailable) as raised:
            await asked(played.address, stream=True)
        assert len(played.requests) == 1
    error = raised.value
    assert error.received == "ab"
    assert error.usage == pb.Usage(prompt_tokens=3, completion_tokens=2)
    assert (error.attempts, error.reason, str(error)) == (1, "NO_READY_REPLICA", "as the test says")


async def test_progress_is_no_token(asked: Asked) -> None:
    heard: list[int] = []
    failure = Scene([waiting(2), waiting(1)], UNAVAILABLE, "NO_READY_REPLICA", retry_after_s=0.01)
    async with stage(failure, Scene([waiting(1), piece("a")])) as played:
        pieces = await asked(
            played.address, stream=True, on_wait=lambda progress: heard.append(progress.position)
        )
    assert pieces == ["a"]
    assert heard == [2, 1, 1]


async def test_tokens_that_nobody_saw_are_not_made_again(asked: Asked) -> None:
    """The server made two, and lost them."""
    lost = Scene(code=UNAVAILABLE, reason="REPLICA_CLOSED", made=2)
    async with stage(lost) as played:
        with pytest.raises(Unavailable):
            await asked(played.address, stream=True)
        assert len(played.requests) == 1


@pytest.mark.parametrize("reason", ["NO_READY_REPLICA", "UNREACHABLE"])
async def test_a_whole_answer_is_asked_for_again_where_no_replica_had_it(asked: Asked, reason: str) -> None:
    failure = Scene(code=UNAVAILABLE, reason=reason, retry_after_s=0.01)
    async with stage(failure, Scene([whole("a")])) as played:
        assert await asked(played.address, stream=False) == ["a"]
        assert len(played.requests) == 2


@pytest.mark.parametrize("reason", ["REPLICA_CLOSED", "REPLICA_ENDED", "ENGINE_GONE", "TRIES_FAILED", ""])
async def test_a_whole_answer_that_may_have_been_made_is_not(asked: Asked, reason: str) -> None:
    async with stage(Scene(code=UNAVAILABLE, reason=reason)) as played:
        with pytest.raises(Unavailable):
            await asked(played.address, stream=False)
        assert len(played.requests) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_the_servers_time_is_kept(asked: Asked, stream: bool) -> None:
    full = Scene(code=EXHAUSTED, reason="MAX_IN_FLIGHT", retry_after_s=0.4, limit="max_in_flight")
    async with stage(full, Scene([piece("a") if stream else whole("a")])) as played:
        begun = time.monotonic()
        assert await asked(played.address, stream=stream) == ["a"]
        assert time.monotonic() - begun >= 0.4
        assert len(played.requests) == 2


async def test_a_limit_that_waiting_does_not_help_is_told_at_once(asked: Asked) -> None:
    async with stage(Scene(code=EXHAUSTED, reason="TOO_LARGE", limit="max_request_bytes")) as played:
        with pytest.raises(Overloaded) as raised:
            await asked(played.address, stream=True)
        assert len(played.requests) == 1
    assert (raised.value.limit, raised.value.retry_after_s) == ("max_request_bytes", None)


@pytest.mark.parametrize("asked_s", [50, 70])
async def test_what_cannot_be_had_in_time_is_told_at_once(asked: Asked, asked_s: float) -> None:
    """50 s are more than the timeout, and 70 s more than the longest wait."""
    failure = Scene(code=UNAVAILABLE, reason="NO_READY_REPLICA", retry_after_s=asked_s)
    timeout = 40.0 if asked_s == 50 else None
    retry = Retry(longest_s=60)
    async with stage(failure) as played:
        with pytest.raises(Unavailable) as raised:
            await asked(played.address, stream=True, timeout=timeout, retry=retry)
        assert len(played.requests) == 1
    assert raised.value.retry_after_s == asked_s


async def test_attempts_are_bounded(asked: Asked) -> None:
    async with stage(Scene(code=UNAVAILABLE)) as played:
        with pytest.raises(Unavailable) as raised:
            await asked(played.address, stream=True)
        assert len(played.requests) == raised.value.attempts == 3


@pytest.mark.parametrize("stream", [True, False])
async def test_where_nobody_listens_it_is_tried_again(asked: Asked, stream: bool) -> None:
    (port,) = free_ports(1)
    with pytest.raises(Unavailable) as raised:
        await asked(f"127.0.0.1:{port}", stream=stream)
    assert raised.value.unreached
    assert raised.value.attempts == 3


async def test_the_timeout_ends_a_stream_and_keeps_what_came(asked: Asked) -> None:
    async with stage(Scene([piece("a")], lasts_s=60)) as played:
        with pytest.raises(DeadlineExceeded) as raised:
            await asked(played.address, stream=True, timeout=3)  # Time for the first piece.
        await asyncio.wait_for(played.left.wait(), 60)
        assert len(played.requests) == 1
    assert raised.value.received == "a"


async def test_leaving_a_stream_ends_the_servers_work() -> None:
    async with stage(Scene([piece("a")], lasts_s=60)) as played:
        async with AsyncClient(played.address) as client:
            answers = client.stream_chat("m", "hello")
            assert (await anext(answers)).text == "a"
            await answers.aclose()
            await asyncio.wait_for(played.left.wait(), 60)
        played.left.clear()

        def leave() -> Answer[pb.StreamChatResponse]:
            with Client(played.address) as client:
                answers = client.stream_chat("m", "hello")
                first = next(answers)
                answers.close()
                return first

        assert (await asyncio.to_thread(leave)).text == "a"
        await asyncio.wait_for(played.left.wait(), 60)


KINDS: dict[grpc.StatusCode, type[PenstockError]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNIMPLEMENTED: NotSupported,
    grpc.StatusCode.UNAUTHENTICATED: Denied,
    grpc.StatusCode.PERMISSION_DENIED: Denied,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.DATA_LOSS: ServerError,
    grpc.StatusCode.CANCELLED: Cancelled,
}


@pytest.mark.parametrize("code", KINDS, ids=lambda code: code.name)
async def test_each_status_is_an_exception_of_its_own_and_final(asked: Asked, code: grpc.StatusCode) -> None:
    async with stage(Scene(code=code, reason="WHY", retry_after_s=0.01)) as played:
        with pytest.raises(PenstockError) as raised:
            await asked(played.address, stream=True)
        assert len(played.requests) == 1
    assert type(raised.value) is KINDS[code]
    assert (raised.value.code, raised.value.reason) == (code, "WHY")


async def test_fields_at_fault_are_named(asked: Asked) -> None:
    bad = Scene(code=grpc.StatusCode.INVALID_ARGUMENT, reason="BAD_VALUE", fields=["sampling.n", "model"])
    async with stage(bad) as played:
        with pytest.raises(InvalidRequest) as raised:
            await asked(played.address, stream=False)
    assert [each.field for each in raised.value.fields] == ["sampling.n", "model"]


async def test_a_request_that_may_kill_engines_is_not_given_more_of_them(asked: Asked) -> None:
    async with stage(Scene(code=UNAVAILABLE, reason="REPLICA_ENDED", retry_after_s=0.01)) as played:
        with pytest.raises(Unavailable):
            await asked(played.address, stream=True)
        assert len(played.requests) == 1


def test_an_embedding_lost_on_its_way_may_be_made_again() -> None:
    assert may_repeat(Unavailable("Socket closed", UNAVAILABLE), generates=False)
    assert not may_repeat(Unavailable("Socket closed", UNAVAILABLE), generates=True)


@pytest.mark.parametrize("make", [lambda: Retry(attempts=0), lambda: Retry(first_s=2, longest_s=1)])
def test_a_retry_that_cannot_be_is_refused(make: Callable[[], Retry]) -> None:
    with pytest.raises(ValueError):
        make()
