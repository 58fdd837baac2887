"""The gateway's handler alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from penstock.core.prospect import Prospect
from penstock.core.routing import RoutingState
from penstock.gateway import served as served_module
from penstock.gateway.explain import ExplainHandler
from penstock.gateway.hold import Hold
from penstock.gateway.relay import GrpcRelay
from penstock.gateway.served import Explain, Served
from penstock.gateway.settings import FrontDoorSettings
from penstock.v1 import inference_pb2, inference_pb2_grpc
from tests.integration.front_door_kit import route
from tests.patience import PATIENCE_S


@asynccontextmanager
async def served(explain: Explain, folder: Path) -> AsyncIterator[inference_pb2_grpc.InferenceServiceStub]:
    known = Served(explain)
    known.set_state(RoutingState((route("m"), route("busy", 1))))
    relay = GrpcRelay(FrontDoorSettings(state_folder=folder, control="", gateway="", gateway_rest="", xds=""))
    handler = ExplainHandler(known, Hold(known, relay.answers), relay)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix:{folder}/s")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{folder}/s") as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)
    await server.stop(None)


async def complaint(stub: inference_pb2_grpc.InferenceServiceStub, *, deployment: str = "m") -> str:
    request = inference_pb2.GenerateRequest(model=deployment, prompt="x")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(request, metadata=(("x-penstock-deployment", deployment),))
    return f"{caught.value.code().name}: {caught.value.details()}"


async def test_it_says_which_deployment_has_none_and_why(tmp_path: Path) -> None:
    async def explain(deployment: str, adapter: str) -> Prospect:
        return Prospect(f"0 of 1 ready ({deployment})")

    async with served(explain, tmp_path) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListModels(inference_pb2.ListModelsRequest())
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED, "the control API has it"
        assert await complaint(stub) == "UNAVAILABLE: deployment 'm' has no ready replica: 0 of 1 ready (m)"
        assert (await complaint(stub, deployment="busy")).startswith(
            "UNAVAILABLE: no replica of deployment 'busy' answers the front door at this moment: 0 of 1"
        )
        # Deleted a moment ago: Envoy still had the route.
        assert (await complaint(stub, deployment="gone")).startswith("NOT_FOUND: model 'gone' does not exist")


async def test_many_requests_cost_one_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_module, "REASON_KEPT_S", PATIENCE_S)  # However long they take.
    asked = []

    async def explain(deployment: str, adapter: str) -> Prospect:
        asked.append(deployment)
        return Prospect("why")

    async with served(explain, tmp_path) as stub:
        await asyncio.gather(*(complaint(stub) for _ in range(50)))
        assert asked == ["m"]


async def test_a_reason_that_cannot_be_had_is_still_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(served_module, "EXPLAIN_TIMEOUT_S", 0.05)

    async def fails(deployment: str, adapter: str) -> Prospect:
        raise ConnectionError("the database is gone")

    async with served(fails, tmp_path) as stub:
        assert (
            await complaint(stub)
            == "UNAVAILABLE: deployment 'm' has no ready replica: the reason cannot be read now"
        )
        assert "the database is gone" in caplog.text

    async def hangs(deployment: str, adapter: str) -> Prospect:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async with served(hangs, tmp_path) as stub:
        assert (await complaint(stub)).endswith("the reason could not be read within 0.05 s")
