"""The front door with the real Envoy: who gets which request, and what is said when nobody can."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from penstock.core.routing import Route, RoutingState
from penstock.core.spec import Admission
from penstock.gateway import served
from penstock.gateway.routes import INFERENCE
from penstock.gateway.settings import MIB
from penstock.v1 import inference_pb2
from tests.integration.front_door_kit import (
    HOLD_NOBODY,
    SECRET,
    House,
    endpoint,
    free_port,
    route,
    seen,
    soonest,
    texts,
    until,
)
from tests.patience import PATIENCE_S


async def test_the_model_in_the_message_chooses_the_deployment() -> None:
    async with House() as house:
        a, b = await house.replica("a", "secret-a"), await house.replica("b", "secret-b")
        await house.serve(
            route("small", a.port, names=["org/Small-1B"], secret="secret-a"),
            route("large", b.port, secret="secret-b"),
        )

        assert (await house.generate("small")).id == "a"
        assert (await house.generate("org/Small-1B")).id == "a"
        assert (await house.generate("large")).id == "b"
        chunks = [chunk async for chunk in house.stream("large", 5, 0.01)]
        assert texts(chunks) == ["0", "1", "2", "3", "4"]
        assert {chunk.id for chunk in chunks} == {"b"}
        assert house.door.refusals == 0


async def test_headers_of_the_front_door_cannot_be_sent_by_clients() -> None:
    async with House() as house:
        a, b = await house.replica("a"), await house.replica("b", "other")
        await house.serve(route("m", a.port), route("other", b.port, secret="other"))

        forged = (
            ("x-penstock-deployment-secret", "forged"),
            ("x-penstock-deployment", "other"),
            ("x-penstock-deployment-anything", "1"),
            ("x-model", "other"),
            ("x-envoy-max-retries", "9"),
            ("x-tenant", "kept"),
        )
        call = house.stub.Generate(
            inference_pb2.GenerateRequest(model="m", prompt="x"), metadata=forged, timeout=10
        )
        response = await call
        metadata = seen(response)["metadata"]

        assert response.id == "a"
        assert metadata["x-penstock-deployment-secret"] == SECRET
        assert metadata["x-penstock-deployment"] == "m"
        assert metadata["x-tenant"] == "kept"
        assert not {"x-penstock-deployment-anything", "x-model", "x-envoy-max-retries"} & metadata.keys()
        returned = [*(await call.initial_metadata()), *(await call.trailing_metadata())]
        assert SECRET not in [value for _, value in returned]
        # Without a model in the message, the header a client sends names none either.
        assert await house.status("", metadata=forged) == grpc.StatusCode.INVALID_ARGUMENT


async def test_no_ready_replica_is_unavailable_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "REASON_KEPT_S", PATIENCE_S)  # However long lies between the two requests.
    async with House() as house:
        await house.serve(route("m"))

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await house.generate("m")

        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == (
            "deployment 'm' has no ready replica: 0 of 1 ready: queued in Slurm, Resources, estimated start 14:03"
        )
        status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
        assert status is not None
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(info)
        assert status.details[1].Unpack(retry)
        assert (info.reason, dict(info.metadata), retry.retry_delay.seconds) == (
            "NO_READY_REPLICA",
            {"deployment": "m"},
            5,
        )

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in house.stream("m", 1, 0):
                pass
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert house.explained == ["m"], "asked once for both, and not again by a retry of Envoy's"


async def test_an_unknown_model_is_not_found_with_those_that_exist() -> None:
    async with House() as house:
        await house.serve(*(route(f"m{number:02}") for number in range(25)))

        async def complaint(model: str) -> str:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await house.generate(model)
            assert caught.value.code() == (
                grpc.StatusCode.NOT_FOUND if model else grpc.StatusCode.INVALID_ARGUMENT
            )
            return str(caught.value.details())

        shown = ", ".join(f"m{number:02}" for number in range(20))
        assert await complaint("m99") == f"model 'm99' does not exist; models that exist: {shown}, and 5 more"
        assert (await complaint("")).startswith("the field `model` is empty; models that exist: m00,")
        for odd in ("m00\n", " m00", "M00", "m00\x00", "x" * 5000, "modèle"):
            assert "does not exist" in await complaint(odd)


async def test_control_calls_reach_the_control_api_and_nothing_else_is_there() -> None:
    async with House() as house:
        await house.serve(route("m"))

        listed = await house.stub.ListModels(inference_pb2.ListModelsRequest())
        assert listed.models[0].name == "from-control"
        health: Any = health_pb2_grpc.HealthStub(house.channel)
        healthy = await health.Check(health_pb2.HealthCheckRequest())
        assert healthy.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _raw(house.channel, "/some.Other/Method")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert caught.value.details() == "no such service, method or path at this port"


async def test_the_runtime_listener_carries_only_the_runtime_service() -> None:
    port = free_port()
    async with House(runtime_listen=f"127.0.0.1:{port}") as house:
        await house.serve(route("m"))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await asyncio.wait_for(channel.channel_ready(), PATIENCE_S)

            async def complaint(method: str) -> str:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await _raw(channel, method)
                return str(caught.value.details())

            # The control server of this test does not have the service: its own words show that it was asked.
            assert await complaint("/penstock.v1.RuntimeService/Report") == "Method not found!"
            for method in (
                "DeploymentService/ListDeployments",
                "InferenceService/ListModels",
                "InferenceService/Generate",
            ):
                assert (
                    await complaint(f"/penstock.v1.{method}")
                    == "no such service, method or path at this port"
                )


async def test_large_messages_pass_and_too_large_ones_are_refused_in_a_sentence() -> None:
    async with House() as house:
        a = await house.replica("a")
        await house.serve(route("m", a.port), route("n"))

        assert await house.status("n", "x" * (15 * MIB)) == grpc.StatusCode.UNAVAILABLE
        assert seen(await house.generate("m", "x" * (15 * MIB)))["bytes"] == 15 * MIB
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await house.generate("m", "x" * (17 * MIB))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "the request's body is longer than 16 MiB (max_request_bytes)"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await house.generate("m", "x" * 5000, compression=grpc.Compression.Gzip)
        assert "must not be compressed" in str(caught.value.details())
        assert await house.status("m") == grpc.StatusCode.OK


async def test_too_many_requests_at_once_are_refused_in_a_sentence() -> None:
    async with House() as house:
        a = await house.replica("a")
        await house.serve(replace(route("m", a.port), admission=Admission(max_in_flight=2, max_held=0)))
        streams = [house.stream("m", 1000, 1) for _ in range(2)]
        for stream in streams:
            await anext(aiter(stream))

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await house.generate("m")
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == (
            "too many requests are in flight for this deployment (limit: max_in_flight); try again later"
        )
        status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
        assert status is not None
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(info)
        assert status.details[1].Unpack(retry)
        assert (info.metadata["limit"], retry.retry_delay.seconds) == ("max_in_flight", 1)


async def test_deadline_and_cancellation_reach_the_replica() -> None:
    async with House() as house:
        a = await house.replica("a")
        await house.serve(route("m", a.port))

        # What the way there takes is taken off; gRPC rounds up.
        deadline_s = seen(await house.generate("m", timeout=100))["deadline_s"]
        assert 50 < deadline_s < 101
        assert seen(await house.generate("m", timeout=None))["deadline_s"] is None

        async def cancelled() -> float:
            call = house.stream("m", 100_000, 0.005)
            await anext(aiter(call))
            cancelled_at = time.monotonic()
            call.cancel()
            await until(lambda: (a.cancelled_at or 0.0) >= cancelled_at)
            return (a.cancelled_at or 0.0) - cancelled_at

        await soonest(0.1, cancelled)


async def over_grpc_web(house: House, length: int | None = None, **headers: str) -> httpx.Response:
    """What the model m answers to Generate. `length`: what the message is said to have, in bytes."""
    message = inference_pb2.GenerateRequest(model="m", prompt="x").SerializeToString()
    length = len(message) if length is None else length
    async with httpx.AsyncClient(base_url=f"http://{house.settings.listen}") as client:
        return await client.post(
            "/penstock.v1.InferenceService/Generate",
            headers={"content-type": "application/grpc-web+proto", **headers},
            content=b"\0" + length.to_bytes(4, "big") + message,
        )


async def test_grpc_web_is_understood() -> None:
    async with House() as house:
        a = await house.replica("a")
        await house.serve(route("m", a.port))
        answer = await over_grpc_web(house)
        assert answer.status_code == 200
        assert b"grpc-status:0" in answer.content


@pytest.mark.parametrize(
    ("length", "code", "says"),
    [
        (50, grpc.StatusCode.INVALID_ARGUMENT, "the request cannot be read"),
        (17 * MIB, grpc.StatusCode.RESOURCE_EXHAUSTED, "longer than 16 MiB"),
    ],
    ids=["cut off", "too long"],
)
async def test_over_grpc_web_a_refusal_has_the_status_that_it_has_over_grpc(
    length: int, code: grpc.StatusCode, says: str
) -> None:
    async with House() as house:
        await house.serve(route("m"))
        answer = await over_grpc_web(house, length)
        assert answer.headers["grpc-status"] == str(code.value[0])
        assert says in unquote(answer.headers["grpc-message"])
        assert not [name for name in answer.headers if name.startswith("x-penstock")]


async def test_a_configuration_that_envoy_refuses_is_counted_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Two listeners at one address: each is well formed, and Envoy refuses the second.
    address = f"127.0.0.1:{free_port()}"
    async with House(listen=address, runtime_listen=address) as house:
        await house.door.set_state(RoutingState(()))
        await until(lambda: house.door.refusals > 0)

        assert "refused the Listener sent to it" in caplog.text
        assert not await house.door.applied(0.2)


async def test_replicas_may_be_named_by_host_name_and_a_bad_one_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with House() as house:
        a = await house.replica("a")
        state = RoutingState(
            (
                Route("bad", ("bad",), SECRET, (endpoint(1, "no-such-host.invalid"),), HOLD_NOBODY),
                Route("m", ("m",), SECRET, (endpoint(a.port, "localhost"),)),
            )
        )
        await house.door.set_state(state)
        await house.open()
        await until(lambda: _answers(house, "m", "a"))

        assert await house.status("bad") == grpc.StatusCode.UNAVAILABLE
        assert "its address cannot be found" in caplog.text
        assert house.door.refusals == 0


async def _answers(house: House, model: str, who: str) -> bool:
    return await house.answered_by(model) == who


async def _raw(channel: grpc.aio.Channel, method: str) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    await call(b"")


PAGE = "https://chat.example.org"
ASKS = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "x-grpc-web",
}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/penstock.v1.InferenceService/Chat",
        "/penstock.v1.InferenceService/ListModels",
    ],
)
async def test_pages_of_named_origins_may_use_models(path: str) -> None:
    async with House(cors_origins=(PAGE,)) as house:
        a = await house.replica("a")
        await house.serve(route("m", a.port))
        async with httpx.AsyncClient(base_url=f"http://{house.settings.listen}") as client:
            before = await client.options(path, headers=ASKS)
            assert before.status_code == 200
            assert before.headers["access-control-allow-origin"] == PAGE
            assert "POST" in before.headers["access-control-allow-methods"]
            other = await client.options(path, headers=ASKS | {"origin": "https://other.example.org"})
            assert "access-control-allow-origin" not in other.headers
            answer = await client.post(path, headers={"origin": PAGE}, json={"model": "none"})
            assert answer.headers["access-control-allow-origin"] == PAGE, "the page may read what went wrong"
            assert "retry-after" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("method", ["Chat", "ListModels"])
async def test_json_sent_to_a_grpc_call_is_told_where_json_is_taken(method: str) -> None:
    async with House() as house:
        await house.serve()
        async with httpx.AsyncClient(base_url=f"http://{house.settings.listen}") as client:
            answer = await client.post(f"/penstock.v1.InferenceService/{method}", json={"model": "none"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (415, "unsupported_media_type")
        assert "the OpenAI API under /v1" in error["message"]


async def test_an_answer_of_a_replica_may_be_read_by_the_page() -> None:
    async with House(cors_origins=("*",)) as house:
        a = await house.replica("a")
        await house.serve(route("m", a.port))
        answer = await over_grpc_web(house, origin=PAGE)
        assert b"grpc-status:0" in answer.content
        assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("origins", [(), ("*",)])
@pytest.mark.parametrize(
    "path",
    [
        "/apis/v1/deployments/a:scale",
        "/penstock.v1.DeploymentService/ApplyDeployment",
        "/grpc.health.v1.Health/Check",
    ],
)
async def test_no_page_of_another_origin_may_use_the_control_api(origins: tuple[str, ...], path: str) -> None:
    async with House(cors_origins=origins) as house:
        await house.serve()
        async with httpx.AsyncClient(base_url=f"http://{house.settings.listen}") as client:
            before = await client.options(path, headers=ASKS)
            unasked = await client.post(
                path, headers={"origin": PAGE, "content-type": "text/plain"}, content="{}"
            )
            hidden = await client.post(path, headers={"origin": "null"})
            own = await client.post(path, headers={"origin": f"http://{house.settings.listen}"})
        assert "access-control-allow-origin" not in before.headers
        for answer in (unasked, hidden):
            assert answer.status_code == 403
            assert "the control API is not for web pages of other origins" in answer.text
            said = answer.json()
            assert said["code"] == 7 if path.startswith("/apis/") else said["error"]["code"] == "foreign_page"
        assert own.status_code != 403


async def test_only_the_names_that_are_listed_lead_here() -> None:
    async with House(hosts=("penstock.example.org",)) as house:
        await house.serve()
        port = house.settings.listen.rpartition(":")[2]
        own = ("penstock.example.org", f"Penstock.Example.org:{port}", "localhost:1", "10.0.0.7", "[::1]:9")
        others = (
            "rebound.example.org",
            f"127.0.0.1.example.org:{port}",
            "penstock.example.org.evil.example",
        )
        for path in ("/apis/v1/deployments", "/v1/models", f"{INFERENCE}ListModels", "/nothing"):
            for host in own:
                assert (await house.rest.get(path, headers={"host": host})).status_code != 421
            for host in others:
                refused = await house.rest.get(path, headers={"host": host, "origin": f"http://{host}"})
                assert refused.status_code == 421
                said, control = refused.json(), path.startswith("/apis/")
                sentence = said["message"] if control else said["error"]["message"]
                assert sentence.startswith(f"this front door is not called {host}; ")
                assert (said["code"] if control else said["error"]["code"]) == (
                    7 if control else "wrong_host"
                )
        named = [("grpc.default_authority", others[0])]
        async with grpc.aio.insecure_channel(house.settings.listen, options=named) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await _raw(channel, f"{INFERENCE}ListModels")
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
        assert f"is not called {others[0]}" in str(caught.value.details())


async def test_without_origins_no_page_of_another_may_use_models() -> None:
    async with House() as house:
        await house.serve()
        async with httpx.AsyncClient(base_url=f"http://{house.settings.listen}") as client:
            before = await client.options("/v1/chat/completions", headers=ASKS)
        assert "access-control-allow-origin" not in before.headers
