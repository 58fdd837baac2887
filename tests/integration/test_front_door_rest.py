"""REST through the real Envoy to engines of a few lines: who gets which request, and what is said when nobody can."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import replace
from typing import Any

import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2

from penstock.core.spec import Admission
from penstock.gateway.settings import MIB
from tests.integration.front_door_kit import House, endpoint, route, soonest, until
from tests.integration.front_door_kit import seen as replica_saw
from tests.integration.front_door_replica import Replica
from tests.patience import PATIENCE_S

COMPLETIONS = "/v1/completions"
CREDENTIALS = dict.fromkeys(
    ("authorization", "proxy-authorization", "api-key", "x-api-key", "cookie"), "the-clients-own"
)


async def post(
    house: House, model: str, prompt: str = "x", path: str = COMPLETIONS, **more: Any
) -> httpx.Response:
    return await house.rest.post(path, json={"model": model, "prompt": prompt, **more})


async def up(house: House, *models: str) -> None:
    """Waits until engines answer."""
    for model in models:

        async def answers(model: str = model) -> bool:
            return (await post(house, model)).status_code == 200

        await until(answers, what=f"an answer from {model}")


def error(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, code and message; every error has OpenAI's shape."""
    found = answer.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    return answer.status_code, found["code"], found["message"]


async def test_the_model_in_the_body_chooses_the_deployment() -> None:
    async with House() as house:
        a, b = await house.replica("a", "secret-a"), await house.replica("b", "secret-b")
        small = route("small", a, names=["org/Small-1B"], secret="secret-a")
        await house.serve(small, route("large", b, secret="secret-b"))
        await up(house, "small", "large")

        for name, who in (("small", "a"), ("org/Small-1B", "a"), ("large", "b")):
            for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/rerank", "/tokenize"):
                assert (await post(house, name, path=path)).json()["id"] == who
        # Engines have these at the root.
        assert (await post(house, "small", path="/v1/detokenize?x=1")).json()["seen"][
            "path"
        ] == "/detokenize?x=1"
        assert (await post(house, "small", path="/v1/score?x=1")).json()["seen"]["path"] == "/v1/score?x=1"
        streamed = await post(house, "large", "3:0.001", stream=True)
        assert streamed.headers["content-type"] == "text/event-stream"
        assert streamed.text.split() == ["data:", "0", "data:", "1", "data:", "2", "data:", "[DONE]"]
        assert house.door.refusals == 0


async def test_headers_of_the_front_door_cannot_be_sent_by_clients() -> None:
    async with House() as house:
        a, b = await house.replica("a"), await house.replica("b", "other")
        await house.serve(route("m", a), route("other", b, secret="other"))
        await up(house, "m", "other")
        forged = {
            "x-penstock-engine-key": "forged",
            "x-penstock-deployment": "other",
            "x-penstock-deployment-rest": "/v1/load_lora_adapter",
            "x-model": "other",
            "x-envoy-max-retries": "9",
            **CREDENTIALS,
            "x-tenant": "kept",
        }
        answer = await house.rest.post(COMPLETIONS, json={"model": "m", "prompt": "x"}, headers=forged)
        seen = {name.lower(): value for name, value in answer.json()["seen"]["headers"].items()}
        assert answer.json()["id"] == "a"
        assert seen["x-penstock-engine-key"] != "forged"
        assert (seen["x-penstock-deployment"], seen["x-tenant"]) == ("m", "kept")
        absent = {"x-model", "x-envoy-max-retries", "x-penstock-deployment-rest"}
        assert not (absent | CREDENTIALS.keys()) & seen.keys()
        assert seen["x-penstock-engine-key"] not in str(answer.headers)
        sent = [*CREDENTIALS.items(), ("x-tenant", "kept")]
        over_grpc = replica_saw(await house.generate("m", metadata=sent))["metadata"]
        assert over_grpc["x-tenant"] == "kept"
        assert not CREDENTIALS.keys() & over_grpc.keys()
        # Nor do they name a model, or a path, where the request itself has none.
        assert error(await house.rest.post(COMPLETIONS, json={}, headers=forged))[:2] == (
            400,
            "missing_model",
        )
        forged_path = await house.rest.post("/v1/load_lora_adapter", json={"model": "m"}, headers=forged)
        assert error(forged_path)[:2] == (404, "no_such_path")
        assert b.engine.requests == 1


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        (
            b'{"model": "nope"}',
            404,
            "model_not_found",
            "model 'nope' does not exist; models that exist: m, org/M",
        ),
        (b'{"model": "m\\u0000"}', 404, "model_not_found", "does not exist"),
        (b'{"model": "a\\nb"}', 404, "model_not_found", "does not exist"),
        ('{"model": "modèle"}'.encode(), 404, "model_not_found", "model 'modèle' does not exist"),
        (b'{"model": "%s"}' % (b"x" * 5000), 404, "model_not_found", "does not exist"),
        (b'{"prompt": "x"}', 400, "missing_model", "the field `model` is missing"),
        (b'{"model": ""}', 400, "invalid_model", 'the field `model` is ""'),
        (b'{"model": null}', 400, "invalid_model", "the field `model` is null"),
        (b'{"model": "7"}', 404, "model_not_found", "model '7' does not exist"),
        (
            b'{"model": 7}',
            400,
            "invalid_model",
            "the field `model` is 7; the name of a model is accepted, as a string",
        ),
        (b'{"model": true}', 400, "invalid_model", "the field `model` is true"),
        (b'{"model": ["m"]}', 400, "invalid_model", """the field `model` is ["m"]"""),
        (b'{"model": "m", ', 400, "invalid_json", "the body is not JSON: Expecting property name"),
        (b"", 400, "invalid_json", "the body is not JSON"),
        (b'["m"]', 400, "invalid_json", "the body is not a JSON object"),
        (b'{"model": "m", "prompt": "\xff"}', 400, "invalid_json", "the body is not UTF-8"),
        (b'{"model": "nope", "prompt": ' + b"[" * 100_000, 400, "invalid_json", ""),
        (b'{"model": "m", "temperature": NaN}', 400, "invalid_json", "NaN is no number of JSON's"),
        (b'{"model": "m", "seed": 1e999}', 400, "invalid_json", "the number 1e999 is larger than a double"),
        (
            b'{"model": "m", "x": {"a": 1, "b": 1, "b": 1}}',
            400,
            "invalid_json",
            "the name 'b' is given twice",
        ),
        (b'{"model": "m", "prompt": "\\ud800"}', 400, "invalid_json", "half of a pair of surrogates"),
        ('{"model": "m"}'.encode("utf-8-sig"), 400, "invalid_json", "the body is not JSON"),
        ('{"model": "m"}'.encode("utf-16"), 400, "invalid_json", "the body is not UTF-8"),
    ],
)
async def test_a_body_that_is_wrong_reaches_no_replica(
    bad_house: tuple[House, Replica], body: bytes, status: int, code: str, says: str
) -> None:
    house, a = bad_house
    before = a.engine.requests
    answer = await house.rest.post(COMPLETIONS, content=body, headers={"content-type": "application/json"})
    found = error(answer)
    assert found[:2] == (status, code)
    assert says in found[2]
    assert a.engine.requests == before


async def test_a_large_body_that_is_wrong_holds_up_nobody(bad_house: tuple[House, Replica]) -> None:
    house, _ = bad_house
    body = b'{"model": "nope", "x": [' + b"[]," * (5 * MIB)
    headers = {"content-type": "application/json"}

    async def held_up() -> float:
        wrong = asyncio.create_task(house.rest.post(COMPLETIONS, content=body, headers=headers))
        longest_s = 0.0
        while not wrong.done():
            # The gateway is in this process, so what holds it up shows here.
            began = time.monotonic()
            await asyncio.sleep(0.01)
            longest_s = max(longest_s, time.monotonic() - began)
        assert error(await wrong)[:2] == (400, "invalid_json")
        return longest_s

    await soonest(1.0, held_up)


@pytest.fixture
async def bad_house() -> Any:
    async with House() as house:
        a = await house.replica("a")
        await house.serve(route("m", a, names=["org/M"]))
        await up(house, "m")
        yield house, a


async def test_requests_that_are_no_requests(bad_house: tuple[House, Replica]) -> None:
    house, a = bad_house
    before = a.engine.requests
    client = house.rest
    plain = await client.post(COMPLETIONS, content=b'{"model": "m"}', headers={"content-type": "text/plain"})
    assert error(plain)[:2] == (415, "unsupported_media_type")
    assert error(await client.get(COMPLETIONS))[:2] == (405, "method_not_allowed")
    for path in (
        "/v1/load_lora_adapter",
        "/v1/files",
        "/invocations",
        "/metrics",
        "/sleep",
        "/",
        "/v1/../sleep",
    ):
        assert error(await client.post(path, json={"model": "m"}))[:2] == (404, "no_such_path"), path
    large = await post(house, "m", "x" * (17 * MIB))
    assert error(large) == (
        413,
        "max_request_bytes",
        "the request's body is longer than 16 MiB (max_request_bytes)",
    )
    for headers in ({f"x-{number}": "1" for number in range(10_000)}, {"x": "y" * 100_000}):
        answer = await client.post(COMPLETIONS, json={"model": "m"}, headers=headers)
        assert error(answer)[:2] == (431, "max_headers")
    assert a.engine.requests == before

    async def large_passes() -> bool:
        large = await post(house, "m", "x" * (15 * MIB))
        # While the replica, which lives in this process, reads what came before, it may miss a health check.
        return large.status_code == 200 and large.json()["seen"]["bytes"] > 15 * MIB

    await until(large_passes, what="15 MiB pass")


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"what is this?\r\n\r\n", 400), (b"GET /v1/models HTTP/1.0\r\nhost: a\r\n\r\n", 426)],
    ids=["no HTTP", "HTTP/1.0"],
)
async def test_bytes_that_are_no_request_are_the_clients_fault(sent: bytes, status: int) -> None:
    async with House() as house:
        await house.serve()
        host, _, port = house.settings.listen.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        head, body = (await asyncio.wait_for(reader.read(), PATIENCE_S)).split(b"\r\n\r\n", 1)
        writer.close()
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert json.loads(body)["error"]["type"] == "invalid_request_error"


async def test_models_are_listed_with_every_name() -> None:
    async with House() as house:
        await house.serve(route("m", names=["org/M-1B"]), route("n"))
        listed = (await house.rest.get("/v1/models")).json()
        assert listed["object"] == "list"
        assert [model["id"] for model in listed["data"]] == ["m", "n", "org/M-1B"]
        one = await house.rest.get("/v1/models/org/M-1B")
        assert one.json() == {
            "id": "org/M-1B",
            "object": "model",
            "created": 1700000000,
            "owned_by": "penstock",
        }
        assert error(await house.rest.get("/v1/models/nope"))[:2] == (404, "model_not_found")


async def test_no_ready_replica_is_unavailable_with_the_reason() -> None:
    async with House() as house:
        await house.serve(route("m"))
        answer = await post(house, "m")
        assert error(answer) == (
            503,
            "no_ready_replica",
            "deployment 'm' has no ready replica: 0 of 1 ready: queued in Slurm, Resources, estimated start 14:03",
        )
        assert answer.headers["retry-after"] == "5"
        assert house.explained == ["m"]


async def test_a_key_opens_the_engine_of_one_attempt_only() -> None:
    async with House() as house:
        a = await house.replica("a")
        # Another attempt's engine has the port now, and its agent is not asked: the key is refused all the same.
        other = endpoint(a.port, engine_port=a.engine_port)
        state = route("m")
        await house.serve(
            type(state)(
                "m",
                ("m",),
                state.secret,
                (type(other)("old", "r", other.host, other.port, other.engine_port),),
            )
        )

        async def refused() -> bool:
            return (await post(house, "m")).status_code == 401

        await until(refused)
        assert a.engine.requests == 0


async def test_4xx_is_told_and_never_counts_against_a_replica() -> None:
    async with House() as house:
        a = await house.replica("a")
        await house.serve(route("m", a))
        await up(house, "m")
        before = a.engine.requests
        answers = [await post(house, "m", f"fail:{400 + number % 30}") for number in range(60)]
        assert [answer.status_code for answer in answers] == [400 + number % 30 for number in range(60)]
        assert a.engine.requests == before + 60, "none is tried again"
        assert (await post(house, "m")).status_code == 200


async def test_5xx_is_tried_elsewhere_and_ejects_for_a_while() -> None:
    async with House() as house:
        a, b = await house.replica("a"), await house.replica("b")
        await house.serve(route("m", a, b))
        await up(house, "m")
        await until(lambda: _both(house, "m"))
        a.engine.fail_with = 500
        for _ in range(60):
            answer = await post(house, "m")
            assert answer.status_code == 200, (answer.status_code, answer.text, dict(answer.headers))
            assert answer.json()["id"] == "b"

        async def ejected() -> bool:
            before = a.engine.requests
            for _ in range(20):
                await post(house, "m")
            return a.engine.requests == before

        await until(ejected, what="it gets nothing")
        a.engine.fail_with = 0
        await until(lambda: _both(house, "m"), what="it is back")


async def test_a_second_try_goes_to_another_replica_however_idle_the_first_is() -> None:
    async with House() as house:
        a, b = await house.replica("a"), await house.replica("b")
        await house.serve(route("m", a))
        await up(house, "m")
        await house.serve(route("m", b))
        await until(lambda: _all(house, "b"))
        # What fails at once is always the one with the fewest requests.
        busy = [asyncio.create_task(post(house, "m", "wait:60")) for _ in range(3)]
        await until(lambda: b.engine.running == 3)
        await house.serve(route("m", a, b))
        for _ in range(40):
            a.engine.fail_with = 500
            answer = await post(house, "m")
            assert answer.status_code == 200, (answer.status_code, answer.text)
            assert answer.json()["id"] == "b"
            # So that it is not left out: that takes several failures in a row.
            a.engine.fail_with = 0
            await until(lambda: _some(house, "a"))
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)


async def test_the_last_replica_is_never_ejected() -> None:
    async with House() as house:
        a = await house.replica("a")
        await house.serve(route("m", a))
        await up(house, "m")
        a.engine.fail_with = 500
        for _ in range(20):
            status, code, message = error(await post(house, "m"))
            assert (status, code) == (503, "replica_failed")
            assert message.startswith("2 tries at replicas of deployment 'm' ended before the first byte")
        a.engine.fail_with = 0
        assert (await post(house, "m")).json()["id"] == "a"


async def test_a_replica_that_is_killed_costs_no_request() -> None:
    async with House() as house:
        process, port, engine_port = await house.rest_process("a")
        b = await house.replica("b")
        await house.serve(
            type(route("m"))(
                "m",
                ("m",),
                "the-secret-of-m",
                (endpoint(port, engine_port=engine_port), endpoint(b.port, engine_port=b.engine_port)),
            )
        )
        await up(house, "m")
        await until(lambda: _both(house, "m"))
        process.kill()
        for _ in range(100):
            answer = await post(house, "m")
            assert answer.status_code == 200, (answer.status_code, answer.text, dict(answer.headers))
            assert answer.json()["id"] == "b"


async def test_after_the_first_byte_nothing_is_tried_again() -> None:
    async with House() as house:
        a, b = await house.replica("a"), await house.replica("b")
        await house.serve(route("m", a, b))
        await up(house, "m")
        before = a.engine.requests + b.engine.requests
        received = b""
        with pytest.raises(httpx.RemoteProtocolError):
            async with house.rest.stream(
                "POST", COMPLETIONS, json={"model": "m", "prompt": "break:3", "stream": True}
            ) as answer:
                async for piece in answer.aiter_raw():
                    received += piece
        assert received.split() == [b"data:", b"0", b"data:", b"1", b"data:", b"2"]
        assert a.engine.requests + b.engine.requests == before + 1


async def test_nothing_new_goes_to_a_replica_that_drains_and_its_streams_go_on() -> None:
    async with House() as house:
        a, b = await house.replica("a"), await house.replica("b")
        await house.serve(route("m", a))
        await up(house, "m")
        body = {"model": "m", "prompt": "100:0.01", "stream": True}
        async with house.rest.stream("POST", COMPLETIONS, json=body) as answer:
            lines = answer.aiter_lines()
            assert await anext(lines) == "data: 0"
            await house.serve(route("m", b))
            await until(lambda: _all(house, "b"))
            before = a.engine.requests
            for _ in range(30):
                answer = await post(house, "m")
            assert answer.status_code == 200, (answer.status_code, answer.text, dict(answer.headers))
            assert answer.json()["id"] == "b"
            assert a.engine.requests == before
            rest = [line async for line in lines if line]
        assert rest == [*(f"data: {number}" for number in range(1, 100)), "data: [DONE]"]


async def test_an_agent_that_is_not_serving_keeps_rest_from_its_engine() -> None:
    async with House() as house:
        a, b = await house.replica("a"), await house.replica("b")
        await house.serve(route("m", a, b))
        await up(house, "m")

        async def left_out() -> float:
            await a.health.set("", health_pb2.HealthCheckResponse.SERVING)
            await until(lambda: _both(house, "m"))
            await a.say_not_serving()
            return await until(lambda: _all(house, "b"), what="a is left out")

        await soonest(2, left_out, wanted=2)


async def test_a_client_who_leaves_is_known_to_the_engine() -> None:
    async with House() as house:
        a = await house.replica("a")
        await house.serve(route("m", a))
        await up(house, "m")
        body = {"model": "m", "prompt": "10000:0.01", "stream": True}

        async def left() -> float:
            async with house.rest.stream("POST", COMPLETIONS, json=body) as answer:
                lines = answer.aiter_lines()
                await anext(lines)
                assert a.engine.running == 1
            return await until(lambda: a.engine.running == 0)

        await soonest(0.5, left)


async def test_too_many_requests_at_once_are_told_the_limit_and_when_to_come_again() -> None:
    async with House() as house:
        a, b = await house.replica("a"), await house.replica("b")
        few = replace(route("m", a), admission=Admission(max_in_flight=2, max_held=0))
        await house.serve(few, route("n", b))
        await up(house, "m", "n")
        streams = []
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                body = {"model": "m", "prompt": "1000:0.1", "stream": True}
                answer = await stack.enter_async_context(house.rest.stream("POST", COMPLETIONS, json=body))
                streams.append(answer.aiter_lines())
                await anext(streams[-1])
            refused = await post(house, "m")
            assert error(refused) == (
                429,
                "max_in_flight",
                "too many requests are in flight for this deployment (limit: max_in_flight = 2); try again later",
            )
            assert refused.headers["retry-after"] == "1"
            assert (await post(house, "n")).status_code == 200, "another deployment has its own"


async def test_a_slow_reader_costs_bounded_memory() -> None:
    async with House() as house:
        a = await house.replica("a")
        await house.serve(route("m", a))
        await up(house, "m")
        envoy = psutil.Process(house.envoy.pid)
        before = envoy.memory_info().rss
        sent = json.dumps({"model": "m", "prompt": f"flood:{512 * MIB}", "stream": True}).encode()
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(sent)}\r\n\r\n"
        host, _, port = house.settings.listen.rpartition(":")
        writers = []
        for _ in range(8):
            reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
            writer.write(head.encode() + sent)
            writers.append((reader, writer))
        for reader, _ in writers:
            await reader.readexactly(12)
        # Every buffer on the way is full once Envoy has stopped growing.
        sizes = [0]
        deadline = time.monotonic() + PATIENCE_S
        while len(sizes) < 5 or len(set(sizes[-5:])) > 1:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
            sizes.append(envoy.memory_info().rss // MIB)
        grown = envoy.memory_info().rss - before
        assert grown < 8 * 8 * MIB, f"{grown / MIB:.0f} MiB for 8 streams of 512 MiB that nobody reads"
        assert (await post(house, "m")).status_code == 200, "others are not held up"
        for _, writer in writers:
            writer.close()
        await until(lambda: a.engine.running == 0)


async def test_a_client_who_stalls_while_it_sends_is_told_so() -> None:
    async with House(request_timeout_s=1) as house:
        a = await house.replica("a")
        await house.serve(route("m", a))
        await up(house, "m")
        host, _, port = house.settings.listen.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            'Content-Length: 100\r\n\r\n{"model":'.encode()
        )
        answer = await asyncio.wait_for(reader.readuntil(b"}}"), PATIENCE_S)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "request_timeout_s"
        writer.close()


async def _both(house: House, model: str) -> bool:
    return {(await post(house, model)).json().get("id") for _ in range(8)} == {"a", "b"}


async def _some(house: House, who: str) -> bool:
    return bool((await post(house, "m")).json().get("id") == who)


async def _all(house: House, who: str, model: str = "m") -> bool:
    return {(await post(house, model)).json().get("id") for _ in range(8)} == {who}
