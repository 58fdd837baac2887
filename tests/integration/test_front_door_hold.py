"""Held requests, with the real Envoy: they wait, hear how they stand, and are answered or told why not."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from penstock.client import AsyncClient, Unavailable
from penstock.core.jobs import Job, JobState
from penstock.core.prospect import Prospect
from penstock.core.routing import Route, RoutingState
from penstock.core.spec import Admission
from penstock.gateway import hold
from penstock.v1 import inference_pb2
from tests.integration.front_door_kit import HELD_S, House, route, seen, until
from tests.patience import PATIENCE_S
from tests.stalls import Stalls

START = datetime(2026, 3, 2, 14, 5, tzinfo=UTC)
QUEUED = Prospect(
    "0 of 1 ready: queued in Slurm as job 71, Priority",
    job=Job(71, "n", "c", JobState.PENDING, reason="Priority", started_at=START),
)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress comes at once, so that no test waits for it."""
    monkeypatch.setattr(hold, "FIRST_PROGRESS_S", 0.0)
    monkeypatch.setattr(hold, "PROGRESS_EVERY_S", 0.1)


def holding(deployment: str, *ports: int, max_held: int = 256, max_hold_s: int = 60) -> Route:
    return replace(route(deployment, *ports), admission=Admission(max_held=max_held, max_hold_s=max_hold_s))


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def details(error: grpc.aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo, int]:
    """What it says for programs: the ErrorInfo, and after how many seconds to try again."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    return info, retry.retry_delay.seconds


async def first(stream: AsyncIterator[Any]) -> Any:
    return await asyncio.wait_for(anext(stream), PATIENCE_S)


async def test_200_clients_that_come_while_the_only_replica_restarts_are_all_answered() -> None:
    async with House() as house:
        house.prospect = QUEUED
        killed, port = await house.replica_process("killed")
        await house.serve(holding("m", port, max_hold_s=HELD_S))
        await until(lambda: _answered_by(house, "killed"))

        async def ask(number: int) -> str:
            return (await house.generate("m", f"wait:{number % 10 * 0.01}", timeout=HELD_S)).id

        async def stream(number: int) -> str:
            chunks = [chunk async for chunk in house.stream("m", 3, 0.01) if not chunk.HasField("waiting")]
            assert [chunk.choices[0].text for chunk in chunks] == ["0", "1", "2"]
            return chunks[0].id

        # Some are with the replica when it dies, some come before anybody has noticed, and the others later.
        early = [asyncio.create_task(house.generate("m", "stay:killed", timeout=HELD_S)) for _ in range(20)]
        await until(lambda: house.has(port, 20), what="the replica has some")
        killed.kill()
        await killed.wait()
        tasks = [asyncio.create_task(ask(number)) for number in range(40)]
        await asyncio.wait(tasks, timeout=0.1)
        tasks += [asyncio.create_task(ask(number)) for number in range(40)]
        tasks += [asyncio.create_task(stream(number)) for number in range(100)]
        await until(lambda: house.door.held.get("m") == 200, what="all are held")
        await house.door.set_state(RoutingState((holding("m", max_hold_s=HELD_S),)))
        assert not [task for task in [*early, *tasks] if task.done()]

        _, new_port = await house.replica_process("new")
        began = time.monotonic()
        await house.door.set_state(RoutingState((holding("m", new_port, max_hold_s=HELD_S),)))
        answers = [answer.id for answer in await asyncio.gather(*early)] + await asyncio.gather(*tasks)
        print(f"200 held requests were answered in {time.monotonic() - began:.1f} s")
        assert answers == ["new"] * 200
        assert dict(house.door.held) == {}


async def test_all_that_the_only_replica_had_are_answered_where_few_may_be_in_flight() -> None:
    """Each of them is sent again, and none is told that too many are in flight."""

    def few(*ports: int) -> Route:
        return replace(
            route("m", *ports), admission=Admission(max_in_flight=64, max_held=64, max_hold_s=HELD_S)
        )

    async with House() as house:
        house.prospect = QUEUED
        killed, port = await house.replica_process("killed")
        await house.serve(few(port))
        await until(lambda: _answered_by(house, "killed"))
        early = [asyncio.create_task(house.generate("m", "stay:killed", timeout=HELD_S)) for _ in range(40)]
        await until(lambda: house.has(port, 40), what="the replica has all")
        killed.kill()
        await killed.wait()
        late = [asyncio.create_task(house.generate("m", "wait:0.01", timeout=HELD_S)) for _ in range(20)]

        def all_held() -> bool:
            ended = [task for task in (*early, *late) if task.done()]
            assert not ended, [task.exception() or task.result() for task in ended][:1]
            return house.door.held.get("m") == 60

        await until(all_held, what="all are held")
        _, new_port = await house.replica_process("new")
        await house.door.set_state(RoutingState((few(new_port),)))
        assert [answer.id for answer in await asyncio.gather(*early, *late)] == ["new"] * 60


async def test_a_stream_hears_how_it_stands_and_others_just_wait() -> None:
    async with House() as house:
        house.prospect = QUEUED
        await house.serve(holding("m"))
        unary = asyncio.create_task(house.generate("m", timeout=PATIENCE_S))
        await until(lambda: house.door.held.get("m") == 1)
        stream = aiter(house.stream("m", 2, 0.01))
        waiting = (await first(stream)).waiting
        assert (waiting.position, waiting.message) == (2, QUEUED.sentence)
        assert (waiting.job_id, waiting.job_state, waiting.pending_reason) == (71, "PENDING", "Priority")
        assert waiting.estimated_start.ToDatetime(UTC) == START

        house.prospect = Prospect("0 of 1 ready: job 71 starts", job=Job(71, "n", "c", JobState.RUNNING))
        # What is not new is told again where this process was held up.
        async with asyncio.timeout(PATIENCE_S):
            while waiting.job_state != "RUNNING":
                waiting = (await first(stream)).waiting
        assert waiting.pending_reason == ""
        assert not waiting.HasField("estimated_start")

        a = await house.replica("a")
        await house.door.set_state(RoutingState((holding("m", a.port),)))
        chunks = [chunk async for chunk in stream if not chunk.HasField("waiting")]
        assert [chunk.id for chunk in chunks] == ["a", "a"]
        answer = await unary
        assert answer.id == "a"
        sent = seen(answer)["metadata"]
        assert sent["x-penstock-deployment-secret"] == a.secret
        assert seen(answer)["deadline_s"] < PATIENCE_S, "the client's deadline, less what it waited"


async def test_what_cannot_be_had_in_time_is_refused_at_once() -> None:
    async with House() as house:
        await house.serve(holding("m", max_hold_s=60))
        house.prospect = Prospect("0 of 1 ready: queued, estimated start 14:05", wait_s=90)
        error = await refusal(house.generate("m", timeout=50))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        # Less what the way took.
        assert re.fullmatch(
            "deployment 'm' has no ready replica: 0 of 1 ready: queued, estimated start 14:05; that is 90 s from now,"
            r" and the request could be held for [2-5]\d s \(the request's own deadline\)",
            str(error.details()),
        )
        info, retry_after_s = details(error)
        assert (info.reason, retry_after_s) == ("NO_READY_REPLICA", 90)
        error = await refusal(house.generate("m", timeout=1000))
        assert "could be held for 60 s (spec.admission.max_hold_s)" in str(error.details())

        house.prospect = Prospect("0 of 1 ready: paused", hopeless="it is paused")
        await asyncio.sleep(0.6)  # What was said is kept for so long.
        error = await refusal(house.generate("m"))
        assert str(error.details()).endswith("0 of 1 ready: paused; no request is held for it: it is paused")


async def test_the_line_is_bounded_and_who_leaves_makes_room() -> None:
    async with House() as house:
        await house.serve(holding("m", max_held=2))
        calls = [house.stream("m", 1, 0) for _ in range(2)]
        for call in calls:
            await first(aiter(call))
        error = await refusal(house.generate("m"))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "2 requests wait for deployment 'm' already (spec.admission.max_held)" in str(error.details())
        info, _ = details(error)
        assert (info.reason, info.metadata["limit"]) == ("TOO_MANY_WAIT", "spec.admission.max_held")

        calls[0].cancel()
        await until(lambda: house.door.held["m"] == 1)
        await first(aiter(house.stream("m", 1, 0)))


async def test_hope_that_is_lost_while_waiting_ends_it_and_so_does_time() -> None:
    async with House() as house:
        await house.serve(holding("m", max_hold_s=1), holding("n"))
        with Stalls() as stalls:
            began = time.monotonic()
            error = await refusal(house.generate("m"))
            assert 0.9 < time.monotonic() - began < 5 + stalls.total_s
        assert str(error.details()).endswith("; the request was held for 1 s (spec.admission.max_hold_s)")

        stream = aiter(house.stream("n", 1, 0))
        await first(stream)
        house.prospect = Prospect("0 of 1 ready", hopeless="it is scaled to 0 replicas")
        error = await refusal(_drained(stream))
        assert str(error.details()).endswith(
            "no request is held for it any longer: it is scaled to 0 replicas"
        )


async def test_a_client_that_leaves_stops_what_was_relayed() -> None:
    async with House() as house:
        await house.serve(holding("m"))
        call = house.stream("m", 1000, 0.01)
        stream = aiter(call)
        await first(stream)
        a = await house.replica("a")
        await house.door.set_state(RoutingState((holding("m", a.port),)))
        async for chunk in stream:
            if not chunk.HasField("waiting"):
                break
        call.cancel()
        await until(lambda: a.cancelled_at is not None)


async def test_a_relayed_stream_that_has_begun_is_not_relayed_again_and_ends_in_one_status() -> None:
    async with House() as house:
        await house.serve(holding("m"))
        stream = aiter(house.stream("m", 1000, 0.01))
        await first(stream)
        killed, port = await house.replica_process("killed")
        other = await house.replica("other")
        await house.door.set_state(RoutingState((holding("m", port),)))
        async for chunk in stream:
            if not chunk.HasField("waiting"):
                break
        await house.door.set_state(RoutingState((holding("m", port, other.port),)))
        killed.kill()
        error = await refusal(_drained(stream))
        assert error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
        assert other.requests == 0


async def test_errors_of_the_replica_are_the_clients() -> None:
    async with House() as house:
        await house.serve(holding("m"))
        asked = asyncio.create_task(refusal(house.generate("m", "fail:INVALID_ARGUMENT")))
        await until(lambda: house.door.held.get("m") == 1)
        a = await house.replica("a")
        await house.door.set_state(RoutingState((holding("m", a.port),)))
        error = await asked
        assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "as asked, at a")
        assert a.requests == 1


async def test_a_request_that_ends_replicas_ends_two_at_most() -> None:
    async with House() as house:
        one, port = await house.replica_process("one")
        await house.serve(holding("m", port))
        await until(lambda: _answered_by(house, "one"))
        client = AsyncClient(house.settings.listen, timeout=60)
        asked = asyncio.create_task(client.generate("m", "die"))
        await one.wait()
        await until(lambda: house.door.held.get("m") == 1)
        two, port = await house.replica_process("two")
        await house.door.set_state(RoutingState((holding("m", port),)))
        await two.wait()
        with pytest.raises(
            Unavailable, match="2 replicas of deployment 'm' ended, or could not be"
        ) as caught:
            await asked
        told = caught.value
        assert (told.reason, told.retry_after_s, told.attempts) == ("REPLICA_ENDED", None, 1)
        assert dict(house.door.held) == {}
        await client.close()


async def test_who_waits_after_a_replica_ended_over_it_is_not_invited_to_come_again() -> None:
    async with House() as house:
        one, port = await house.replica_process("one")
        await house.serve(holding("m", port, max_hold_s=5))
        await until(lambda: _answered_by(house, "one"))
        asked = asyncio.create_task(refusal(house.generate("m", "die", timeout=60)))
        await one.wait()
        error = await asked
        assert "the request was held for 5 s" in str(error.details())
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        assert status is not None
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert (info.reason, len(status.details)) == ("REPLICA_ENDED", 1)


async def test_a_replica_that_is_lost_again_is_waited_for_again() -> None:
    async with House() as house:
        await house.serve(holding("m"))
        asked = asyncio.create_task(house.generate("m", timeout=60))
        await until(lambda: house.door.held.get("m") == 1)
        # Known to the database, and gone: nothing answers the front door.
        gone, port = await house.replica_process("gone")
        gone.kill()
        await gone.wait()
        await house.door.set_state(RoutingState((holding("m", port),)))
        await asyncio.wait([asked], timeout=1)
        assert house.door.held == {"m": 1}
        a = await house.replica("a")
        await house.door.set_state(RoutingState((holding("m", a.port),)))
        assert (await asked).id == "a"


async def _answered_by(house: House, who: str) -> bool:
    return await house.answered_by("m") == who


async def _drained(stream: AsyncIterator[Any]) -> list[inference_pb2.StreamGenerateResponse]:
    return [chunk async for chunk in stream]
