"""How soon the front door follows: replicas that come, go and die, and what it adds to the first token."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import fields, replace
from functools import partial

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status

from penstock.core.canary import request_weights
from penstock.core.model import RolloutRecord
from penstock.core.routing import RoutingState
from penstock.core.spec import Canary, Rollout, RolloutStrategy
from penstock.gateway.settings import FrontDoorSettings
from penstock.v1 import inference_pb2, inference_pb2_grpc
from tests.integration.front_door_kit import (
    BIG,
    House,
    end,
    endpoint,
    route,
    soonest,
    texts,
    until,
)
from tests.patience import PATIENCE_S

Record = Callable[[str, object], None]

(PRODUCTS_HEALTH_TIMEOUT_S,) = (
    one.default for one in fields(FrontDoorSettings) if one.name == "health_timeout_s"
)
"""The tests' own front doors are more patient."""


def _report(record: Record, what: str, milliseconds: list[float]) -> float:
    """p10, p50 and p99, kept in the test report and shown with -s. Returns the second, in seconds."""
    p10, p50 = statistics.quantiles(milliseconds, n=10)[0], statistics.median(milliseconds)
    p99 = statistics.quantiles(milliseconds, n=100)[98]
    said = f"p10 {p10:.1f} ms, p50 {p50:.1f} ms, p99 {p99:.1f} ms"
    record(what, said)
    print(f"{what}: {said}, {len(milliseconds)} times")
    return p50 / 1000


async def test_replicas_that_come_and_go_are_followed_at_once(record_property: Record) -> None:
    async with House() as house:
        a, b = await house.replica("a"), await house.replica("b")
        await house.serve(route("m"))

        async def followed() -> float:
            came: list[float] = []
            went: list[float] = []
            for number in range(50):
                replica = (a, b)[number % 2]
                start = time.monotonic()
                await house.door.set_state(RoutingState((route("m", replica.port),)))
                await until(partial(_is, house, replica.name))
                came.append((time.monotonic() - start) * 1000)
                start = time.monotonic()
                await house.door.set_state(RoutingState((route("m"),)))
                await until(lambda: _is(house, "UNAVAILABLE"))
                went.append((time.monotonic() - start) * 1000)
            return max(
                _report(record_property, "ready to routable", came),
                _report(record_property, "withdrawn to unused", went),
            )

        await soonest(0.050, followed)
        assert house.door.refusals == 0


async def test_a_new_deployment_is_served_and_a_deleted_one_unknown() -> None:
    async with House() as house:
        a = await house.replica("a")
        await house.serve(route("m", a.port))
        await house.door.set_state(RoutingState((route("m", a.port), route("n", a.port))))
        await until(lambda: _is(house, "a", "n"))
        running = house.stream("n", 60, 0.01)
        await anext(aiter(running))

        await house.door.set_state(RoutingState((route("m", a.port),)))
        await until(lambda: _is(house, "NOT_FOUND", "n"))
        assert len(texts([chunk async for chunk in running])) == 59
        assert await house.answered_by("m") == "a"


async def test_a_withdrawn_replica_gets_nothing_new_and_ends_what_it_has() -> None:
    async with House() as house:
        a, b = await house.replica("a"), await house.replica("b")
        await house.serve(route("m", a.port))
        await until(lambda: _is(house, "a"))
        stream = house.stream("m", 100, 0.01)
        await anext(aiter(stream))

        await house.door.set_state(RoutingState((route("m", b.port),)))
        assert await house.door.applied(PATIENCE_S)
        count = a.requests
        await until(lambda: _is(house, "b"))
        for _ in range(50):
            assert await house.answered_by("m") == "b"
        assert a.requests == count
        assert texts([chunk async for chunk in stream]) == [str(number) for number in range(1, 100)]


@pytest.mark.parametrize(("ready", "percent"), [(1, 10), (2, 20), (3, 30)])
async def test_a_canary_gets_its_share_by_and_by(ready: int, percent: int) -> None:
    """Of ten wanted replicas three are the canary's, for 30% of the requests; each brings a third of that."""
    policy = Rollout(strategy=RolloutStrategy.CANARY, canary=Canary(30))
    weights = request_weights(policy, 10, RolloutRecord(stable_revision=1), 2, 0, {1: 1, 2: ready})
    async with House() as house:
        stable = await house.replica("stable")
        canary = [await house.replica(f"canary{number}") for number in range(ready)]
        ends = [endpoint(stable.port)] + [endpoint(one.port, revision=2) for one in canary]
        await house.serve(replace(route("m"), endpoints=tuple(ends), weights=tuple(sorted(weights.items()))))
        for one in (stable, *canary):
            await until(lambda one=one: _is(house, one.name))  # type: ignore[misc]
        answered = Counter([await house.answered_by("m") for _ in range(400)])
        assert sum(answered[one.name] for one in canary) / 400 == pytest.approx(percent / 100, abs=0.05)


async def test_a_killed_replica_is_out_of_use_at_once_while_another_is_there() -> None:
    async with House() as house:
        killed, port = await house.replica_process("killed")
        other = await house.replica("other")
        await house.serve(route("m", port, other.port))
        await until(lambda: _is(house, "killed"))
        await until(lambda: _is(house, "other"))

        killed.kill()
        await killed.wait()
        start = time.monotonic()
        while time.monotonic() - start < 2.5:
            assert await house.answered_by("m") == "other"


async def test_a_request_without_an_answer_yet_is_sent_again_when_its_replica_dies() -> None:
    async with House() as house:
        killed, port = await house.replica_process("killed")
        other = await house.replica("other")
        await house.serve(route("m", port))
        await until(lambda: _is(house, "killed"))
        waiting = asyncio.create_task(house.generate("m", "stay:killed"))
        await until(lambda: house.has(port, 1), what="the replica has it")
        await house.serve(route("m", port, other.port))

        killed.kill()
        assert (await waiting).id == "other"


async def test_a_stream_that_has_begun_is_never_sent_again() -> None:
    async with House() as house:
        killed, port = await house.replica_process("killed")
        other = await house.replica("other")
        await house.serve(route("m", port))
        await until(lambda: _is(house, "killed"))
        stream = aiter(house.stream("m", 1000, 0.01))
        await anext(stream)
        await house.serve(route("m", port, other.port))

        killed.kill()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _until_it_ends(stream)
        # Envoy resets a stream that breaks after its first bytes, which gRPC libraries report as INTERNAL.
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert other.requests == 0


async def test_the_only_replica_killed_is_explained_within_two_seconds_and_back_when_it_is() -> None:
    async with House() as house:
        killed, port = await house.replica_process("killed")
        await house.serve(route("m", port))
        await until(lambda: _is(house, "killed"))
        killed.kill()
        await killed.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await house.generate("m")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "no replica of deployment 'm' answers the front door at this moment" in str(
            caught.value.details()
        )


async def test_a_replica_that_says_it_is_not_serving_gets_nothing_within_two_seconds() -> None:
    async with House() as house:
        a, b = await house.replica("a"), await house.replica("b")
        await house.serve(route("m", a.port, b.port))
        await until(lambda: _is(house, "a"))
        await until(lambda: _is(house, "b"))
        stream = house.stream("m", 300, 0.01)
        await anext(aiter(stream))

        async def unused() -> bool:
            count = a.requests
            for _ in range(20):
                await house.answered_by("m")
            return a.requests == count

        async def out_of_use() -> float:
            await a.health.set("", health_pb2.HealthCheckResponse.SERVING)
            await until(lambda: _is(house, "a"))
            await a.say_not_serving()
            return await until(unused)

        await soonest(2, out_of_use, wanted=2)
        # What it has it goes on with, whichever of the two it is.
        assert len([chunk async for chunk in stream]) == 299


async def test_a_replica_that_hangs_is_out_of_use_within_two_seconds_and_back_when_it_answers(
    record_property: Record,
) -> None:
    async with House(health_timeout_s=PRODUCTS_HEALTH_TIMEOUT_S) as house:
        hung, port = await house.replica_process("hung")
        other = await house.replica("other")
        await house.serve(route("m", port, other.port))

        async def out_of_use() -> float:
            await until(lambda: _is(house, "hung"))
            hung.send_signal(signal.SIGSTOP)
            start = last = time.monotonic()
            # Requests that it got in its last moment end a second later.
            while time.monotonic() - start < 4:
                sent = time.monotonic()
                if await house.status("m", timeout=1) != grpc.StatusCode.OK:
                    last = sent
            hung.send_signal(signal.SIGCONT)
            return last - start

        took_s = await soonest(2, out_of_use, wanted=2)
        record_property("hung to out of use", f"{took_s * 1000:.0f} ms")
        print(f"hung to out of use: {took_s * 1000:.0f} ms")
        await until(lambda: _is(house, "hung"))


async def test_another_program_on_a_reused_port_gets_nothing() -> None:
    async with House() as house:
        stranger = await house.replica("stranger", "another-secret")
        a = await house.replica("a")
        await house.serve(route("m", a.port, stranger.port))
        await until(lambda: _is(house, "a"))
        for _ in range(50):
            assert await house.answered_by("m") == "a"


async def test_error_statuses_eject_nobody() -> None:
    async with House() as house:
        a, b = await house.replica("a"), await house.replica("b")
        await house.serve(route("m", a.port, b.port))
        for status in ("INVALID_ARGUMENT", "UNIMPLEMENTED", "INTERNAL", "RESOURCE_EXHAUSTED"):
            for _ in range(20):
                assert (await house.status("m", f"fail:{status}")).name == status

        before = (a.requests, b.requests)
        for _ in range(40):
            assert await house.status("m") == grpc.StatusCode.OK
        assert a.requests > before[0]
        assert b.requests > before[1]


async def test_streams_survive_the_gateway_and_its_restart(record_property: Record) -> None:
    async with House(gateway=False) as house:
        a, b = await house.replica("a"), await house.replica("b")
        gateway = await house.gateway_process(route("m", a.port), route("n"))
        await house.open()
        await until(lambda: _is(house, "a"))
        chunks: list[inference_pb2.StreamGenerateResponse] = []
        stream = house.stream("m", 100_000, 0.01)

        async def read() -> None:
            async for chunk in stream:
                chunks.append(chunk)

        async def goes_on() -> None:
            begun = len(chunks)
            await until(lambda: len(chunks) > begun + 20)

        reading = asyncio.create_task(read())
        await goes_on()
        finite = house.stub.StreamGenerate(
            inference_pb2.StreamGenerateRequest(model="m", prompt="held:5"), timeout=PATIENCE_S * 5
        )
        finite_chunks = [await anext(aiter(finite))]

        gateway.kill()
        await gateway.wait()
        for _ in range(20):
            assert await house.answered_by("m") == "a"
        # A replica of "n" may have had it before the gateway could not be reached, for all that Envoy knows by then.
        assert await _why_not(house, "n") == "TRIES_FAILED"
        assert await _why_not(house, "no-such-model") == "UNREACHABLE"
        await goes_on()

        now = a

        async def restarted() -> float:
            nonlocal gateway, now
            await end(gateway)
            now = b if now is a else a
            gateway = await house.gateway_process(route("m", now.port), route("n"))
            return await until(lambda: _is(house, now.name))

        took_s = await soonest(1.5, restarted)
        record_property("gateway ready again to new state in use", f"{took_s * 1000:.0f} ms")
        print(f"gateway ready again to new state in use: {took_s * 1000:.0f} ms")
        assert await house.status("n") == grpc.StatusCode.UNAVAILABLE
        await goes_on()
        a.let_go.set()
        finite_chunks += [chunk async for chunk in finite]
        assert texts(finite_chunks) == ["0", "1", "2", "3", "4"]
        assert {chunk.id for chunk in finite_chunks} == {"a"}
        assert await finite.code() is grpc.StatusCode.OK
        stream.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        assert texts(chunks) == [str(number) for number in range(len(chunks))]
        assert {chunk.id for chunk in chunks} == {"a"}


async def test_a_restarted_gateway_says_nothing_until_it_has_a_state() -> None:
    async with House() as house:
        a = await house.replica("a")
        await house.serve(route("m", a.port))
        await until(lambda: _is(house, "a"))
        await house.door.stop()
        fresh = type(house.door)(house.settings, house.explain)
        await fresh.start()
        await until(lambda: fresh.envoys == 1)
        assert not await fresh.applied(0.3)
        assert await house.answered_by("m") == "a"

        await fresh.set_state(RoutingState((route("m", a.port),)))
        assert await fresh.applied(PATIENCE_S)
        assert await house.answered_by("m") == "a"
        assert fresh.refusals == 0
        await fresh.stop()


async def test_the_first_token_comes_hardly_later_than_without_a_front_door(record_property: Record) -> None:
    async with House() as house:
        a = await house.replica("a")
        await house.serve(route("m", a.port))
        await until(lambda: _is(house, "a"))

        async def first_token(
            stub: inference_pb2_grpc.InferenceServiceStub, metadata: tuple[tuple[str, str], ...] = ()
        ) -> float:
            start = time.monotonic()
            request = inference_pb2.StreamGenerateRequest(model="m", prompt="1:0")
            call = stub.StreamGenerate(request, metadata=metadata)
            async for _ in call:
                return (time.monotonic() - start) * 1000
            raise AssertionError("no token")

        async with grpc.aio.insecure_channel(f"127.0.0.1:{a.port}", options=BIG) as channel:
            direct_stub = inference_pb2_grpc.InferenceServiceStub(channel)
            secret = (("x-penstock-deployment-secret", a.secret),)

            async def added() -> float:
                direct: list[float] = []
                through: list[float] = []
                for _ in range(200):
                    direct.append(await first_token(direct_stub, secret))
                    through.append(await first_token(house.stub))
                without_s = _report(record_property, "first token, direct", direct)
                return _report(record_property, "first token, through the front door", through) - without_s

            await soonest(0.010, added)


async def test_a_second_front_door_on_the_same_port_fails_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with House() as first, House(listen=first.settings.listen) as second:
        a = await first.replica("a")
        await first.serve(route("m", a.port))
        await second.door.set_state(RoutingState((route("n"),)))
        await until(lambda: second.door.refusals > 0)
        assert "cannot bind" in caplog.text
        assert "cannot bind" in await second.door.taken_addresses()
        assert "Envoy refuses its configuration: " in second.door.trouble
        assert (await first.door.taken_addresses(), first.door.trouble) == ("", "")
        for _ in range(20):
            async with first.new_channel() as channel:
                stub = inference_pb2_grpc.InferenceServiceStub(channel)
                assert (await stub.Generate(inference_pb2.GenerateRequest(model="m", prompt="x"))).id == "a"


async def _is(house: House, who: str, model: str = "m") -> bool:
    return await house.answered_by(model) == who


async def _until_it_ends(stream: AsyncIterator[inference_pb2.StreamGenerateResponse]) -> None:
    async for _ in stream:
        pass


async def _why_not(house: House, model: str) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.generate(model)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    status, info = rpc_status.from_call(caught.value), error_details_pb2.ErrorInfo()  # type: ignore[arg-type]
    assert status is not None
    assert status.details[0].Unpack(info)
    return info.reason
