"""Held requests over REST, with the real Envoy: as over gRPC, in the words of HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partialmethod
from typing import Any

import httpx
import pytest

from penstock.core.prospect import Prospect
from penstock.core.routing import Route, RoutingState
from penstock.core.spec import Admission
from penstock.gateway import hold
from penstock.v1 import inference_pb2
from tests.integration.front_door_kit import HELD_S, House, endpoint, route, until
from tests.integration.front_door_replica import Replica
from tests.integration.test_front_door_hold import QUEUED


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress comes at once, so that no test waits for it."""
    monkeypatch.setattr(hold, "FIRST_PROGRESS_S", 0.0)
    monkeypatch.setattr(hold, "PROGRESS_EVERY_S", 0.1)


def holding(deployment: str, *replicas: Replica, max_held: int = 256, max_hold_s: int = 60) -> Route:
    return replace(
        route(deployment, *replicas), admission=Admission(max_held=max_held, max_hold_s=max_hold_s)
    )


@pytest.fixture(autouse=True)
def no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that do not wait for each other."""
    limits = httpx.Limits(max_connections=None)
    monkeypatch.setattr(House, "new_client", partialmethod(House.new_client, limits=limits))


async def post(house: House, prompt: str = "x", **more: Any) -> httpx.Response:
    return await house.rest.post(
        "/v1/completions", json={"model": "m", "prompt": prompt, **more}, timeout=HELD_S
    )


async def lines(house: House, prompt: str = "3:0.001") -> AsyncGenerator[str]:
    body = {"model": "m", "prompt": prompt, "stream": True}
    async with house.rest.stream("POST", "/v1/completions", json=body, timeout=HELD_S) as response:
        assert response.status_code == 200, (await response.aread()).decode()
        assert response.headers["content-type"] == "text/event-stream"
        async for line in response.aiter_lines():
            if line:
                yield line


def error(answer: httpx.Response) -> tuple[int, str, str]:
    found = answer.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    return answer.status_code, found["code"], found["message"]


async def test_200_clients_that_come_while_the_only_replica_restarts_are_all_answered() -> None:
    async with House() as house:
        house.prospect = QUEUED
        killed, port, engine_port = await house.rest_process("killed")
        only = replace(holding("m", max_hold_s=HELD_S), endpoints=(endpoint(port, engine_port=engine_port),))
        await house.serve(only)
        await until(lambda: _answered_by(house, "killed"))

        async def ask() -> str:
            answer = await post(house, "wait:0.05")
            assert answer.status_code == 200, answer.text
            return str(answer.json()["id"])

        async def stream() -> list[str]:
            return [line async for line in lines(house) if not line.startswith(": waiting")]

        early = [asyncio.create_task(post(house, "stay:killed")) for _ in range(20)]
        await until(lambda: house.has(engine_port, 20), what="the replica has some")
        killed.kill()
        await killed.wait()
        unary = [asyncio.create_task(ask()) for _ in range(80)]
        streams = [asyncio.create_task(stream()) for _ in range(100)]

        def all_held() -> bool:
            ended = [task for task in (*early, *unary, *streams) if task.done()]
            assert not ended, [task.exception() or task.result() for task in ended][:1]
            return house.door.held.get("m") == 200

        await until(all_held, what="all are held")
        await house.door.set_state(RoutingState((holding("m", max_hold_s=HELD_S),)))

        _, port, new_engine_port = await house.rest_process("new")
        began = time.monotonic()
        again = replace(
            holding("m", max_hold_s=HELD_S), endpoints=(endpoint(port, engine_port=new_engine_port),)
        )
        await house.door.set_state(RoutingState((again,)))
        assert [answer.status_code for answer in await asyncio.gather(*early)] == [200] * 20
        assert await asyncio.gather(*unary) == ["new"] * 80
        assert await asyncio.gather(*streams) == [["data: 0", "data: 1", "data: 2", "data: [DONE]"]] * 100
        print(f"200 held requests were answered in {time.monotonic() - began:.1f} s")
        assert dict(house.door.held) == {}


async def test_a_stream_hears_how_it_stands_in_comments() -> None:
    async with House() as house:
        house.prospect = QUEUED
        await house.serve(holding("m"))
        stream = lines(house)
        first = await anext(stream)
        assert first.startswith(": waiting, position 1, job 71 PENDING (Priority), estimated start ")
        a = await house.replica("a")
        await house.door.set_state(RoutingState((holding("m", a),)))
        found = [line async for line in stream if not line.startswith(":")]
        assert found == ["data: 0", "data: 1", "data: 2", "data: [DONE]"]


async def test_what_was_asked_arrives_as_it_was_and_so_does_the_answer() -> None:
    async with House() as house:
        await house.serve(holding("m"))
        headers = {"authorization": "Bearer the-clients-own", "x-tenant": "kept"}
        body = {"model": "m", "prompt": "x" * 100_000}
        asked = asyncio.create_task(house.rest.post("/v1/rerank?a=b%20c", json=body, headers=headers))
        await until(lambda: house.door.held.get("m") == 1)
        a = await house.replica("a")
        await house.door.set_state(RoutingState((holding("m", a),)))
        answer = await asked
        assert answer.status_code == 200
        seen = answer.json()["seen"]
        sent = {key.lower(): value for key, value in seen["headers"].items()}
        assert seen["path"] == "/v1/rerank?a=b%20c"
        assert seen["bytes"] > 100_000
        assert sent["x-tenant"] == "kept"
        assert "authorization" not in sent

        # Held from when Envoy sends nothing to the replica any more, which a refusal shows.
        await house.door.set_state(RoutingState((route("m"),)))
        await until(lambda: _refused(house))
        await house.door.set_state(RoutingState((holding("m"),)))
        asked = asyncio.create_task(post(house, "fail:422"))
        await until(lambda: house.door.held.get("m") == 1)
        await house.door.set_state(RoutingState((holding("m", a),)))
        answer = await asked
        assert (answer.status_code, answer.json()["error"]["message"]) == (422, "as asked, at a")


async def test_a_held_request_may_have_all_the_headers_that_the_front_door_lets_in() -> None:
    async with House() as house:
        await house.serve(holding("m"))
        long = {"x-token": "t" * 50_000} | {f"x-{number}": "1" for number in range(85)}
        asked: dict[str, Any] = {"json": {"model": "m", "prompt": "x"}, "headers": long, "timeout": 60}
        rest = asyncio.create_task(house.rest.post("/v1/completions", **asked))
        request = inference_pb2.GenerateRequest(model="m", prompt="x")
        rpc = asyncio.create_task(_generate(house, request, tuple(long.items())))
        await until(lambda: house.door.held.get("m") == 2)
        a = await house.replica("a")
        await house.door.set_state(RoutingState((holding("m", a),)))
        answer = await rest
        assert answer.status_code == 200, answer.text
        assert answer.json()["seen"]["headers"]["x-token"] == long["x-token"]
        assert (await rpc).id == "a"


async def _generate(
    house: House, request: inference_pb2.GenerateRequest, metadata: tuple[tuple[str, str], ...]
) -> inference_pb2.GenerateResponse:
    response: inference_pb2.GenerateResponse = await house.stub.Generate(
        request, metadata=metadata, timeout=60
    )
    return response


async def test_what_cannot_be_had_in_time_is_refused_at_once() -> None:
    async with House() as house:
        await house.serve(holding("m", max_held=1))
        house.prospect = Prospect("0 of 1 ready: queued, estimated start 14:05", wait_s=90)
        answer = await post(house)
        status, code, message = error(answer)
        assert (status, code, answer.headers["retry-after"]) == (503, "no_ready_replica", "90")
        assert message.endswith("the request could be held for 60 s (spec.admission.max_hold_s)")

        house.prospect = Prospect("0 of 1 ready: starting", wait_s=20)
        await asyncio.sleep(0.6)  # What was said is kept for so long.
        patient = {"x-stainless-read-timeout": "10"}
        answer = await house.rest.post("/v1/completions", json={"model": "m", "prompt": "x"}, headers=patient)
        assert error(answer)[2].endswith("the request could be held for 10 s (the request's own deadline)")

        stream = lines(house)
        await anext(stream)
        answer = await post(house)
        assert error(answer)[:2] == (429, "too_many_wait")
        assert "retry-after" in answer.headers
        await stream.aclose()
        await until(lambda: not house.door.held, what="who has left waits no more")


async def test_an_error_after_the_first_comment_is_an_event() -> None:
    async with House() as house:
        await house.serve(holding("m"))
        stream = lines(house)
        await anext(stream)
        house.prospect = Prospect("0 of 1 ready", hopeless="it is paused")
        found = [line async for line in stream if not line.startswith(":")]
        assert len(found) == 1
        told = json.loads(found[0].removeprefix("data: "))["error"]
        assert told["code"] == "no_ready_replica"
        assert told["message"].endswith("it is paused")

        house.prospect = QUEUED
        await asyncio.sleep(0.6)
        stream, halves = lines(house, "fail:400"), lines(house, "halves:400")
        await anext(stream)
        await anext(halves)
        a = await house.replica("a")
        await house.door.set_state(RoutingState((holding("m", a),)))
        found = [line async for line in stream if not line.startswith(":")]
        assert json.loads(found[0].removeprefix("data: "))["error"]["message"] == "as asked, at a"
        found = [line async for line in halves if not line.startswith(":")]
        assert json.loads(found[0].removeprefix("data: ")) == {"error": {"message": "as asked, in two parts"}}


async def test_an_answer_that_breaks_off_breaks_off_at_the_client_and_is_not_relayed_again() -> None:
    async with House() as house:
        await house.serve(holding("m"))
        stream = lines(house, "break:3")
        await anext(stream)
        a = await house.replica("a")
        await house.door.set_state(RoutingState((holding("m", a),)))
        found = []
        with pytest.raises(httpx.RemoteProtocolError):
            async for line in stream:
                found.append(line)
        assert [line for line in found if not line.startswith(":")] == ["data: 0", "data: 1", "data: 2"]
        assert a.engine.requests == 1


async def test_a_request_that_its_engine_fails_is_tried_in_two_turns_at_most() -> None:
    async with House() as house:
        a = await house.replica("a")
        await house.serve(holding("m", a))
        await until(lambda: _answered_by(house, "a"))
        answer = await post(house, "fail:500")
        status, code, message = error(answer)
        assert (status, code) == (503, "replica_failed")
        assert "it is not tried again" in message
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
        assert dict(house.door.held) == {}


async def test_what_fails_only_after_it_was_held_is_not_to_be_sent_again_either() -> None:
    async with House() as house:
        await house.serve(holding("m"))
        asked = asyncio.create_task(post(house, "fail:500"))
        await until(lambda: house.door.held.get("m") == 1)
        stream = lines(house, "fail:500")
        await anext(stream)
        two = [await house.replica(name) for name in ("a", "b")]
        await house.door.set_state(RoutingState((holding("m", *two),)))
        answer = await asked
        assert error(answer)[:2] == (503, "replica_failed")
        assert answer.headers["x-should-retry"] == "false"
        found = [line async for line in stream if not line.startswith(":")]
        assert json.loads(found[0].removeprefix("data: "))["error"]["code"] == "replica_failed"


async def test_a_client_that_leaves_stops_what_was_relayed() -> None:
    async with House() as house:
        await house.serve(holding("m"))
        stream = lines(house, "1000:0.01")
        await anext(stream)
        a = await house.replica("a")
        await house.door.set_state(RoutingState((holding("m", a),)))
        async for line in stream:
            if line.startswith("data"):
                break
        assert a.engine.running == 1
        await stream.aclose()
        await until(lambda: a.engine.running == 0)


async def _answered_by(house: House, who: str) -> bool:
    answer = await house.rest.post("/v1/completions", json={"model": "m", "prompt": "x"}, timeout=60)
    return answer.status_code == 200 and answer.json()["id"] == who


async def _refused(house: House) -> bool:
    return (await post(house)).status_code == 503
