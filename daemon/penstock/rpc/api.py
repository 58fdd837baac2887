"""The control API, put together: every servicer of ours on one grpc.aio server, with health and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from penstock.rpc.cluster import ClusterServicer
from penstock.rpc.cluster_view import ClusterView
from penstock.rpc.decisions import DecisionServicer
from penstock.rpc.deployments import DeploymentServicer
from penstock.rpc.deps import Deps
from penstock.rpc.guard import Guarded
from penstock.rpc.models import ModelLister
from penstock.rpc.nudges import Nudges
from penstock.rpc.replicas import ReplicaServicer
from penstock.rpc.runtime import RuntimeServicer
from penstock.rpc.vitals import Vital, Vitals
from penstock.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    decision_pb2,
    decision_pb2_grpc,
    deployment_pb2,
    deployment_pb2_grpc,
    inference_pb2,
    replica_pb2,
    replica_pb2_grpc,
    runtime_pb2,
    runtime_pb2_grpc,
)

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
NEED_DATABASE = tuple(
    service.full_name
    for file in (deployment_pb2, replica_pb2, decision_pb2, runtime_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
"""Services that can do nothing while PostgreSQL does not answer."""
CLUSTER = cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"].full_name

_PARTS = {"Database": "postgresql", "Slurm": "slurm", "FrontDoor": "front-door"}
"""A part -> the name that health knows it by."""


class ControlApi:
    """What runs beside the servicers: the listener behind the watches, and the checks behind health."""

    def __init__(self, nudges: Nudges, vitals: Vitals, servicer: health.aio.HealthServicer) -> None:
        self._nudges = nudges
        self._vitals = vitals
        self._health = servicer

    async def run(self, on_commit: Callable[[], None]) -> None:
        """Runs until cancelled. Without it calls still work, watches poll, and health does not know of outages.

        `on_commit` is called at each commit that anybody may want to know of, whoever made it; it must not block.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._nudges.run(on_commit))
            group.create_task(self._vitals.run(self._tell))

    async def _tell(self, parts: tuple[Vital, ...]) -> None:
        """Health: each part by its name, a service by what it needs, and "" for the server itself, which is
        there.
        """
        for vital in parts:
            status = (
                health_pb2.HealthCheckResponse.SERVING
                if vital.is_well
                else health_pb2.HealthCheckResponse.NOT_SERVING
            )
            if vital.part in _PARTS:
                await self._health.set(_PARTS[vital.part], status)
            if vital.part == "Database":
                for service in NEED_DATABASE:
                    await self._health.set(service, status)
            if vital.part == "FrontDoor":
                # Replicas go on serving while PostgreSQL is away and nothing is known of the gateways.
                shut = health_pb2.HealthCheckResponse.NOT_SERVING
                is_shut = vital.is_well is False
                await self._health.set(INFERENCE, shut if is_shut else health_pb2.HealthCheckResponse.SERVING)
        for service in ("", CLUSTER):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)


def add_servicers(server: grpc.aio.Server, deps: Deps) -> ControlApi:
    """Adds everything to a server that has not started yet. Run what comes back for as long as the server runs.

    Of InferenceService only ListModels is added; its other methods are for whoever else adds a handler of them.
    """
    view = ClusterView(deps.slurm, deps.clock)
    nudges = Nudges(deps.db)
    vitals = Vitals(deps.db, view, deps.front_door_trouble, deps.clock)
    guarded = cast(grpc.aio.Server, Guarded(server))
    deployment_pb2_grpc.add_DeploymentServiceServicer_to_server(
        DeploymentServicer(deps, view, nudges), guarded
    )
    replica_pb2_grpc.add_ReplicaServiceServicer_to_server(ReplicaServicer(deps), guarded)
    decision_pb2_grpc.add_DecisionServiceServicer_to_server(DecisionServicer(deps, nudges), guarded)
    cluster_pb2_grpc.add_ClusterServiceServicer_to_server(ClusterServicer(deps, view, vitals), guarded)
    runtime_pb2_grpc.add_RuntimeServiceServicer_to_server(RuntimeServicer(deps), guarded)
    lister = grpc.unary_unary_rpc_method_handler(
        cast(Any, ModelLister(deps).list_models),
        request_deserializer=inference_pb2.ListModelsRequest.FromString,
        response_serializer=inference_pb2.ListModelsResponse.SerializeToString,
    )
    cast(Any, guarded).add_registered_method_handlers(INFERENCE, {"ListModels": lister})

    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, guarded)
    names = (*NEED_DATABASE, CLUSTER, INFERENCE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    cast(Any, reflection_pb2_grpc).add_ServerReflectionServicer_to_server(
        reflection.aio.ReflectionServicer(names), guarded
    )
    return ControlApi(nudges, vitals, servicer)
