"""The control API as REST: Envoy turns JSON into gRPC and back, by the contract's http annotations."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from penstock.gateway.settings import MIB
from penstock.v1 import deployment_pb2 as pb
from penstock.v1 import deployment_pb2_grpc
from tests.integration.front_door_kit import House, route


class Deployments(deployment_pb2_grpc.DeploymentServiceServicer):
    """Says what it was asked."""

    async def GetDeployment(self, request: pb.GetDeploymentRequest, context: Any) -> pb.GetDeploymentResponse:
        if request.name == "none":
            await context.abort(grpc.StatusCode.NOT_FOUND, "deployment 'none' does not exist")
        return pb.GetDeploymentResponse(deployment=_deployment(request.name))

    async def ListDeployments(
        self, request: pb.ListDeploymentsRequest, context: Any
    ) -> pb.ListDeploymentsResponse:
        names = [request.filter, str(request.page_size)]
        return pb.ListDeploymentsResponse(deployments=[_deployment(name) for name in names])

    async def ApplyDeployment(
        self, request: pb.ApplyDeploymentRequest, context: Any
    ) -> pb.ApplyDeploymentResponse:
        return pb.ApplyDeploymentResponse(
            deployment=request.deployment, outcome=pb.ApplyOutcome.APPLY_OUTCOME_CREATED
        )

    async def ScaleDeployment(
        self, request: pb.ScaleDeploymentRequest, context: Any
    ) -> pb.ScaleDeploymentResponse:
        return pb.ScaleDeploymentResponse(deployment=_deployment(f"{request.name}-{request.replicas}"))

    async def WatchDeployments(
        self, request: pb.WatchDeploymentsRequest, context: Any
    ) -> AsyncIterator[pb.WatchDeploymentsResponse]:
        for name in ("a", "b"):
            yield pb.WatchDeploymentsResponse(event=pb.WATCH_EVENT_ADDED, deployment=_deployment(name))


def _deployment(name: str) -> pb.Deployment:
    found = pb.Deployment()
    found.metadata.name = name
    found.spec.drain_timeout_s = 7
    return found


@contextlib.asynccontextmanager
async def house() -> AsyncIterator[House]:
    async with House(control_services=_add) as made:
        await made.serve(route("m"))
        yield made


def _add(server: grpc.aio.Server) -> None:
    deployment_pb2_grpc.add_DeploymentServiceServicer_to_server(Deployments(), server)


async def test_the_contracts_paths_answer_json_with_the_contracts_names() -> None:
    async with house() as made:
        client = made.rest
        one = await client.get("/apis/v1/deployments/chat")
        assert (one.status_code, one.headers["content-type"]) == (200, "application/json")
        assert one.json() == {"deployment": {"metadata": {"name": "chat"}, "spec": {"drain_timeout_s": 7}}}
        listed = await client.get("/apis/v1/deployments", params={"filter": "team=a", "page_size": 3})
        assert [each["metadata"]["name"] for each in listed.json()["deployments"]] == ["team=a", "3"]
        # `model` inside a manifest is none of the front door's business.
        manifest = {"metadata": {}, "spec": {"model": {"path": "/m"}}}
        applied = await client.put("/apis/v1/deployments/chat", json=manifest)
        assert applied.json()["outcome"] == "APPLY_OUTCOME_CREATED"
        assert applied.json()["deployment"]["metadata"]["name"] == "chat"
        assert applied.json()["deployment"]["spec"]["model"] == {"path": "/m"}
        scaled = await client.post("/apis/v1/deployments/chat:scale", json={"replicas": 4})
        assert scaled.json()["deployment"]["metadata"]["name"] == "chat-4"
        assert made.door.refusals == 0


async def test_a_watch_is_a_line_for_each_message() -> None:
    async with house() as made:
        watched = await made.rest.get("/apis/v1/deployments:watch")
        events = [json.loads(line) for line in watched.text.splitlines() if line]
        assert [event["deployment"]["metadata"]["name"] for event in events] == ["a", "b"]


async def test_errors_are_google_rpcs_status_as_json() -> None:
    async with house() as made:
        client = made.rest
        missing = await client.get("/apis/v1/deployments/none")
        assert missing.status_code == 404
        assert missing.json() == {"code": 5, "message": "deployment 'none' does not exist"}
        for bad in (
            await client.get("/apis/v1/deployments/chat", params={"nope": "1"}),
            await client.post("/apis/v1/deployments/chat:scale", json={"replicas": "many"}),
            await client.post("/apis/v1/deployments/chat:scale", content=b"{"),
        ):
            assert bad.status_code == 400, bad.text
            assert bad.headers["content-type"] == "application/json"
            assert bad.json()["code"] == 3
            assert bad.json().keys() == {"code", "message"}
        for nothing in (await client.get("/apis/v1/nothing"), await client.post("/apis/v1/nothing", json={})):
            assert (nothing.status_code, nothing.json()["code"]) == (404, 12)
            assert "GET /apis/v1/openapi.json" in nothing.json()["message"]


async def test_a_servers_own_refusal_passes_as_it_is() -> None:
    """Its status is all that it sends, in the place where Envoy's own answers have theirs."""
    async with house() as made:
        stub = deployment_pb2_grpc.DeploymentServiceStub(made.channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetDeployment(pb.GetDeploymentRequest(name="none"), timeout=20)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "deployment 'none' does not exist"


NO_REPLICASS = "there is no such field; did you mean replicas?"


async def test_a_body_with_a_field_that_is_not_known_is_refused_and_reaches_nobody() -> None:
    async with house() as made:
        client = made.rest
        manifest = {"spec": {"model": {"path": "/m"}, "replicass": 3}}
        refused = await client.put("/apis/v1/deployments/chat", json=manifest)
        assert (refused.status_code, refused.headers["content-type"]) == (400, "application/json")
        violation = {"field": "spec.replicass", "description": NO_REPLICASS, "reason": "BAD_VALUE"}
        assert refused.json() == {
            "code": 3,
            "message": f"spec.replicass: {NO_REPLICASS}",
            "details": [
                {"@type": "type.googleapis.com/google.rpc.BadRequest", "field_violations": [violation]}
            ],
        }
        scale = "/apis/v1/deployments/chat:scale"
        for body, said in (
            ('{"replicas": 1, "replicas": 2}', "replicas: is given twice"),
            (
                '{"replicas": 1, "name": "other"}',
                'name: must be "chat", as in the request\'s path, not "other"',
            ),
            ("{replicas: 1, replicass: 2}", "the body is not JSON: "),
            ("{'replicas': 1}", "the body is not JSON: "),
        ):
            refused = await client.post(scale, content=body)
            assert (refused.status_code, refused.json()["code"]) == (400, 3)
            assert refused.json()["message"].startswith(said)
        rolled_back = await client.post("/apis/v1/deployments/chat:rollback", json={"revison": 3})
        assert rolled_back.json()["message"] == "revison: there is no such field; did you mean revision?"
        # Both spellings are the contract's, and a body that is not there has no field.
        taken = await client.post(scale, json={"replicas": 2, "resourceVersion": "7", "name": "chat"})
        assert taken.json()["deployment"]["metadata"]["name"] == "chat-2"
        taken = await client.put("/apis/v1/deployments/chat", json={"spec": {"drainTimeoutS": 7}})
        assert taken.json()["deployment"]["spec"] == {"drain_timeout_s": 7}
        assert (await client.post(scale)).status_code == 200
        assert made.door.refusals == 0


async def test_a_body_where_none_is_taken_is_refused_and_an_empty_one_is_none() -> None:
    async def chunks(text: bytes) -> AsyncIterator[bytes]:
        yield text

    async with house() as made:
        path = "/apis/v1/deployments/chat"
        for method, fine in (("GET", 200), ("DELETE", 501)):  # This test's control API deletes nothing.
            for body in (b'{"force": true}', chunks(b"x")):  # With a length, and without.
                refused = await made.rest.request(method, path, content=body)
                assert (refused.status_code, refused.headers["content-type"]) == (400, "application/json")
                said = f"{method} takes no body here; what can be asked for goes into the query"
                assert refused.json() == {"code": 3, "message": said}
            for empty in (None, b"", chunks(b"")):
                assert (await made.rest.request(method, path, content=empty)).status_code == fine
        assert made.door.refusals == 0


async def test_a_body_may_be_as_long_as_a_manifest() -> None:
    async with house() as made:
        fits = {"metadata": {"labels": {"a": "x" * (MIB - 100)}}}
        assert (await made.rest.put("/apis/v1/deployments/chat", json=fits)).status_code == 200
        large = {"metadata": {"labels": {"a": "x" * MIB}}}
        refused = await made.rest.put("/apis/v1/deployments/chat", json=large)
        assert refused.status_code == 413
        assert refused.json() == {"code": 8, "message": "the request's body is longer than 1 MiB"}


async def test_while_the_gateway_is_away_what_it_would_be_asked_about_waits_a_second_and_is_unavailable() -> (
    None
):
    async with house() as made:
        await made.door.stop()
        away = await made.rest.post("/apis/v1/deployments/chat:scale", json={"replicas": 4})
        assert (away.status_code, away.headers["retry-after"]) == (503, "5")
        assert away.json() == {
            "code": 14,
            "message": "nothing that could answer this can be reached now; try again in a few seconds",
        }
        # The control API is there, in this test, and needs nobody's word for what has no body.
        assert (await made.rest.get("/apis/v1/deployments/chat")).status_code == 200


async def test_each_api_gives_its_openapi_document() -> None:
    async with house() as made:
        for path, operation in (
            ("/apis/v1/openapi.json", "/apis/v1/deployments/{name}:scale"),
            ("/v1/openapi.json", "/v1/chat/completions"),
        ):
            answer = await made.rest.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
            assert operation in answer.json()["paths"]
            assert (await made.rest.post(path, json={})).status_code == 404
