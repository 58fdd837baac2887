"""What the control API makes of adapters: whose names they are, what agents are told, and what is routed and shown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from penstock.rpc.runtime import SECRET_KEY
from penstock.store.database import Database
from penstock.store.queries import runtime
from penstock.v1 import deployment_pb2, inference_pb2, replica_pb2, spec_pb2
from penstock.v1 import runtime_pb2 as pb
from penstock.v1.deployment_pb2_grpc import DeploymentServiceStub
from penstock.v1.inference_pb2_grpc import InferenceServiceStub
from penstock.v1.replica_pb2_grpc import ReplicaServiceStub
from penstock.v1.runtime_pb2_grpc import RuntimeServiceStub
from tests.control_api import SECRET, ControlApi, control_api, make_attempt, refused

PROOF = ((SECRET_KEY, SECRET),)
Adapter = tuple[str, str]


class Desk:
    """A client of the control API, and the agent of one attempt."""

    def __init__(self, api: ControlApi) -> None:
        self.api = api
        self.deployments = DeploymentServiceStub(api.channel)
        self.agent = RuntimeServiceStub(api.channel)

    async def apply(
        self, *adapters: Adapter, name: str = "a", path: str = "/m", served_name: str = "", room: bool = False
    ) -> deployment_pb2.Deployment:
        request = deployment_pb2.ApplyDeploymentRequest()
        request.deployment.metadata.name = name
        model = request.deployment.spec.model
        model.path, model.served_name = path, served_name
        for adapter, folder in adapters:
            model.adapters.add(name=adapter, path=folder)
        if room:
            model.adapter_room.SetInParent()
        return (await self.deployments.ApplyDeployment(request)).deployment

    async def replica(self) -> None:
        await make_attempt(self.api, "a")
        request = pb.RegisterRequest(attempt="token1", job_id=7, host="127.0.0.1", port=4000)
        await self.agent.Register(request, metadata=PROOF)

    async def report(self, *loaded: Adapter, failed: tuple[Adapter, ...] = ()) -> list[Adapter]:
        """What the agent says, and the adapters that it is told to have."""
        request = pb.ReportRequest(attempt="token1", phase=pb.AGENT_PHASE_READY)
        for name, path in loaded:
            request.adapters.add(name=name, path=path, loaded=True)
        for name, path in failed:
            request.adapters.add(name=name, path=path, message="no such folder")
        answer = await self.agent.Report(request, metadata=PROOF)
        assert answer.HasField("adapters")
        return [(one.name, one.path) for one in answer.adapters.adapters]

    async def routed(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The adapters that clients may ask for, and those of each endpoint."""
        (route,) = (await self.api.stored(runtime.routing_state)).routes
        return route.adapters, [endpoint.adapters for endpoint in route.endpoints]

    async def models(self) -> dict[str, tuple[int, str]]:
        service = InferenceServiceStub(self.api.channel)
        found = (await service.ListModels(inference_pb2.ListModelsRequest())).models
        return {one.name: (one.ready_replicas, one.parent) for one in found}


@pytest_asyncio.fixture
async def desk(database: Database, tmp_path: Path) -> AsyncIterator[Desk]:
    async with control_api(database, tmp_path) as api:
        yield Desk(api)


X, Y = ("x", "/lora/x"), ("org/y", "/lora/y")


async def test_what_is_wanted_is_told_and_what_is_loaded_is_routed(desk: Desk) -> None:
    await desk.apply(X, Y, served_name="big")
    await desk.replica()
    assert await desk.report() == [X, Y]
    assert await desk.routed() == (("x", "org/y"), [()])
    desk.api.routing_changes.clear()
    await desk.report(X, failed=(Y,))
    assert len(desk.api.routing_changes) == 1
    await desk.report(X, failed=(Y,))
    assert len(desk.api.routing_changes) == 1, "the same again is no news"
    assert await desk.routed() == (("x", "org/y"), [("x",)])
    assert await desk.models() == {"a": (1, ""), "big": (1, ""), "x": (1, "big"), "org/y": (0, "big")}
    shown = await ReplicaServiceStub(desk.api.channel).GetReplica(replica_pb2.GetReplicaRequest(name="a-1"))
    assert [(one.name, one.path, one.loaded, one.message) for one in shown.replica.adapters] == [
        (*X, True, ""),
        (*Y, False, "no such folder"),
    ]


async def test_a_moved_or_removed_one_is_out_of_routing_with_the_commit(desk: Desk) -> None:
    first = await desk.apply(X, Y)
    await desk.replica()
    await desk.report(X, Y)
    moved = ("x", "/lora/x2")
    second = await desk.apply(moved, Y)
    assert second.status.current_revision == first.status.current_revision == 1
    assert second.metadata.generation == first.metadata.generation + 1
    assert await desk.routed() == (("x", "org/y"), [("org/y",)])
    assert await desk.report(X, Y) == [moved, Y]
    assert await desk.routed() == (("x", "org/y"), [("org/y",)])
    await desk.report(moved, Y)
    assert await desk.routed() == (("x", "org/y"), [("x", "org/y")])
    await desk.apply(moved)
    assert await desk.routed() == (("x",), [("x",)])
    assert await desk.models() == {"a": (1, ""), "x": (1, "a")}


async def test_the_first_one_makes_a_revision_unless_there_is_room(desk: Desk) -> None:
    assert (await desk.apply()).status.current_revision == 1
    assert (await desk.apply(X)).status.current_revision == 2
    assert (await desk.apply(name="b", room=True)).status.current_revision == 1
    assert (await desk.apply(Y, name="b", room=True)).status.current_revision == 1


async def test_room_stays_until_the_next_revision(desk: Desk) -> None:
    await desk.apply(X)
    bare = await desk.apply()
    assert bare.status.current_revision == 1
    assert bare.spec.model.HasField("adapter_room")
    again = await desk.apply()
    assert again.metadata.resource_version == bare.metadata.resource_version
    assert (await desk.apply(Y)).status.current_revision == 1, "its engines have the room"
    await desk.apply()
    other = await desk.apply(path="/n")
    assert other.status.current_revision == 2
    assert not other.spec.model.HasField("adapter_room")


async def test_an_older_revisions_replica_keeps_its_own_adapters(desk: Desk) -> None:
    await desk.apply(X)
    await desk.replica()
    await desk.apply(X, Y)
    assert await desk.report() == [X, Y]
    await desk.apply(("x", "/other/x"), path="/other")
    assert await desk.report(X, Y) == [X, Y], "those are of the model that it has"
    # Its x is an x: until the new revision is there, it is the one that clients get.
    assert await desk.routed() == (("x",), [("x", "org/y")])
    back = deployment_pb2.RollbackDeploymentRequest(name="a")
    rolled = (await desk.deployments.RollbackDeployment(back)).deployment
    assert [(one.name, one.path) for one in rolled.spec.model.adapters] == [X, Y]


@pytest.mark.parametrize(
    ("name", "adapters", "served_name", "field"),
    [
        ("b", [X], "", "spec.model.adapters[0].name"),
        ("b", [("a", "/l")], "", "spec.model.adapters[0].name"),
        ("b", [("z", "/l"), ("big", "/l")], "", "spec.model.adapters[1].name"),
        ("b", [], "x", "spec.model.served_name"),
        ("x", [], "", "metadata.name"),
    ],
)
async def test_a_name_that_is_taken_is_refused_with_its_field(
    desk: Desk, name: str, adapters: list[Adapter], served_name: str, field: str
) -> None:
    await desk.apply(X, served_name="big")
    code, message, fields = await refused(desk.apply(*adapters, name=name, served_name=served_name))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    assert [*fields] == [field], message
    assert "'a'" in message


async def test_a_name_is_free_again_when_it_is_given_up(desk: Desk) -> None:
    await desk.apply(X)
    await desk.apply(Y)
    made = await desk.apply(X, name="b")
    assert made.spec.model.adapters[0] == spec_pb2.Adapter(name="x", path="/lora/x")
