"""Health, reflection, and outages: what is said when something behind the API does not answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import grpc
import psycopg
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from penstock.core.jobs import Job, JobState
from penstock.core.spec import Model, Spec
from penstock.rpc import cluster_view, vitals
from penstock.store import migrate
from penstock.store.database import Database, conninfo
from penstock.store.queries import attempts, deployments, leases, members
from penstock.v1 import cluster_pb2, deployment_pb2, metadata_pb2
from penstock.v1.cluster_pb2_grpc import ClusterServiceStub
from penstock.v1.deployment_pb2_grpc import DeploymentServiceStub
from tests.control_api import ControlApi, control_api, make_attempt, now, refused
from tests.databases import Databases
from tests.patience import PATIENCE_S
from tests.stalls import Stalls

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
DEPLOYMENTS = "penstock.v1.DeploymentService"
INFERENCE = "penstock.v1.InferenceService"


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[ControlApi]:
    async with control_api(database, tmp_path) as made:
        yield made


async def health(api: ControlApi, service: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(api.channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(service=service))).status)


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await is_so():
            await asyncio.sleep(0.05)


async def test_health_speaks_of_each_part(api: ControlApi) -> None:
    async def is_known() -> bool:
        try:
            return await health(api, "slurm") == SERVING
        except grpc.aio.AioRpcError:
            # Before the first check the part has no name yet.
            return False

    await until(is_known)
    for service in (
        "",
        "postgresql",
        DEPLOYMENTS,
        "penstock.v1.RuntimeService",
        "penstock.v1.ClusterService",
    ):
        assert await health(api, service) == SERVING, service


async def test_slurm_going_away_and_coming_back(api: ControlApi, monkeypatch: object) -> None:
    api.slurm.faults.down = "slurmctld is away"
    stub = ClusterServiceStub(api.channel)
    for each, seconds in ((vitals, "CLUSTER_AGE_S"), (cluster_view, "RETRY_S")):
        monkeypatch.setattr(each, seconds, 0.0)  # type: ignore[attr-defined]

    async def slurm_is(status: metadata_pb2.ConditionStatus.ValueType) -> bool:
        system = await stub.GetSystem(cluster_pb2.GetSystemRequest())
        return any(part.type == "Slurm" and part.status == status for part in system.conditions)

    await until(lambda: slurm_is(metadata_pb2.CONDITION_STATUS_FALSE))
    api.slurm.faults.down = ""
    await until(lambda: slurm_is(metadata_pb2.CONDITION_STATUS_TRUE))


async def test_a_slurm_that_hangs_is_told_of_within_ten_seconds(
    api: ControlApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    await until(lambda: _is(api, "slurm", SERVING))
    forever = asyncio.Event()

    async def hang() -> None:
        await forever.wait()

    monkeypatch.setattr(api.slurm, "cluster", hang)
    began = time.monotonic()
    with Stalls() as stalls:
        await until(lambda: _is(api, "slurm", NOT_SERVING))
    assert time.monotonic() - began < 12 + stalls.total_s
    system = await ClusterServiceStub(api.channel).GetSystem(cluster_pb2.GetSystemRequest())
    assert "Slurm has not answered within 4 s" in {part.message for part in system.conditions}


async def test_a_front_door_that_is_shut_is_told_of(api: ControlApi) -> None:
    await api.stored(members.beat, members.GATEWAY, "g", "127.0.0.1:8600", came=True)
    await until(lambda: _is(api, INFERENCE, SERVING))
    api.front_door_trouble = "no Envoy is connected"
    system = await ClusterServiceStub(api.channel).GetSystem(cluster_pb2.GetSystemRequest())
    assert [(part.status, part.message) for part in system.conditions if part.type == "FrontDoor"] == [
        (metadata_pb2.CONDITION_STATUS_FALSE, "no Envoy is connected")
    ]
    await until(lambda: _is(api, INFERENCE, NOT_SERVING))
    assert await health(api, "front-door") == NOT_SERVING


async def test_a_cluster_that_was_never_seen(database: Database, tmp_path: Path) -> None:
    async with control_api(database, tmp_path) as api:
        api.slurm.faults.down = "slurmctld is away"
        # Nothing was asked yet: the first question comes from the checks, and fails as this one does.
        code, message, _ = await refused(
            ClusterServiceStub(api.channel).GetCluster(cluster_pb2.GetClusterRequest())
        )
    assert code is grpc.StatusCode.UNAVAILABLE
    assert message == "Slurm does not answer: slurmctld is away"


async def test_the_cluster_with_its_numbers(api: ControlApi) -> None:
    found = await ClusterServiceStub(api.channel).GetCluster(cluster_pb2.GetClusterRequest())
    assert (found.name, found.backend) == ("fake", "fake")
    assert [(item.name, item.total_gpus, item.is_default) for item in found.partitions] == [
        ("gpu", 4, True),
        ("cpu", 4, False),
        ("short", 4, False),
    ]
    assert [(item.name, item.cpus, item.gpus, dict(item.gpu_types)) for item in found.nodes] == [
        ("node1", 8, 2, {"": 2}),
        ("node2", 8, 2, {"": 2}),
    ]
    assert not found.partitions[0].HasField("max_time_s")


async def test_a_node_that_fails_replicas_is_told_with_the_cluster(api: ControlApi) -> None:
    await api.stored(deployments.create, "a", {}, Spec(Model(path="/m")), now())
    for number in range(1, 4):
        token = f"token{number}"
        await make_attempt(api, "a", token)
        failed = Job(number, "", "", JobState.FAILED, nodes="node[1]")
        await api.stored(
            attempts.end,
            token,
            message="",
            exit_code=1,
            job=failed,
            failures=1,
            next_attempt_at=None,
            now=now(),
            failed=True,
        )
    found = await ClusterServiceStub(api.channel).GetCluster(cluster_pb2.GetClusterRequest())
    first, second = found.nodes
    assert first.avoided.startswith(
        "3 attempts of a failed there within an hour; avoided by its replicas until "
    )
    assert second.avoided == ""


async def test_the_system_names_its_parts(api: ControlApi) -> None:
    await api.stored(members.beat, members.GATEWAY, "g", "127.0.0.1:8600", came=True)
    without = await ClusterServiceStub(api.channel).GetSystem(cluster_pb2.GetSystemRequest())
    assert [(part.status, part.message) for part in without.conditions if part.type == "Controller"] == [
        (
            metadata_pb2.CONDITION_STATUS_FALSE,
            "no controller holds the lease: nothing is started or replaced; replicas that are ready go on serving",
        )
    ]
    await api.stored(leases.acquire, leases.CONTROLLER, "host/1", 60)
    system = await ClusterServiceStub(api.channel).GetSystem(cluster_pb2.GetSystemRequest())
    assert (system.version, system.schema_version) == ("0.0.test", migrate.head())
    assert {part.type: part.status for part in system.conditions} == {
        "Database": metadata_pb2.CONDITION_STATUS_TRUE,
        "Slurm": metadata_pb2.CONDITION_STATUS_TRUE,
        "FrontDoor": metadata_pb2.CONDITION_STATUS_TRUE,
        "Controller": metadata_pb2.CONDITION_STATUS_TRUE,
    }
    assert system.conditions[-1].message == "host/1 holds the lease, term 1"


async def test_postgresql_going_away_and_coming_back(
    databases: Databases, database_url: str, tmp_path: Path
) -> None:
    database = Database(database_url)
    name = database_url.rpartition("/")[2].partition("?")[0]

    def run(statement: str) -> None:
        with psycopg.connect(conninfo(databases.server_url), autocommit=True) as conn:
            conn.execute(statement.encode())

    try:
        async with control_api(database, tmp_path) as api:
            stub = DeploymentServiceStub(api.channel)
            await stub.ListDeployments(deployment_pb2.ListDeploymentsRequest())
            run(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            # And waits until they have ended: one that is only told to could still answer.
            run(f"SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = '{name}'")
            code, message, _ = await refused(stub.ListDeployments(deployment_pb2.ListDeploymentsRequest()))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert (
                message == "PostgreSQL does not answer; replicas go on serving, and the call may be repeated"
            )
            await until(lambda: _is(api, DEPLOYMENTS, NOT_SERVING))
            assert await health(api, "postgresql") == NOT_SERVING
            assert await health(api, "") == SERVING
            run(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
            await stub.ListDeployments(deployment_pb2.ListDeploymentsRequest())
            await until(lambda: _is(api, DEPLOYMENTS, SERVING))
    finally:
        await database.close()


async def _is(api: ControlApi, service: str, status: int) -> bool:
    try:
        return await health(api, service) == status
    except grpc.aio.AioRpcError as error:
        # Before the first check a part has no name yet.
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return False


async def test_reflection_lists_and_describes_every_service(api: ControlApi) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast(Any, api.channel))

    async def requests() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        yield reflection_pb2.ServerReflectionRequest(file_containing_symbol=DEPLOYMENTS)

    answers = [answer async for answer in stub.ServerReflectionInfo(requests())]
    names = {service.name for service in answers[0].list_services_response.service}
    own = (
        "DeploymentService",
        "ReplicaService",
        "DecisionService",
        "ClusterService",
        "RuntimeService",
        "InferenceService",
    )
    assert names >= {f"penstock.v1.{name}" for name in own} | {"grpc.health.v1.Health"}
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(raw)
        for raw in answers[1].file_descriptor_response.file_descriptor_proto
    ]
    assert any(service.name == "DeploymentService" for file in files for service in file.service)
