"""ClusterService: the cluster as Slurm describes it, and Penstock's own parts."""

from __future__ import annotations

from typing import Any

import grpc

from penstock.rpc.avoided import avoided_nodes
from penstock.rpc.cluster_view import ClusterView
from penstock.rpc.convert.cluster import cluster_out
from penstock.rpc.convert.vital import vital_out
from penstock.rpc.deps import Deps
from penstock.rpc.refusals import Refused
from penstock.rpc.vitals import Vitals
from penstock.store.migrate import head
from penstock.v1 import cluster_pb2 as pb
from penstock.v1 import cluster_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

AGE_S = 2.0
"""People look to see what is free now."""


class ClusterServicer(cluster_pb2_grpc.ClusterServiceServicer):
    """Each method as its comment in cluster.proto says."""

    def __init__(self, deps: Deps, view: ClusterView, vitals: Vitals) -> None:
        self._deps = deps
        self._view = view
        self._vitals = vitals
        self._schema_version = head()

    async def GetCluster(self, request: pb.GetClusterRequest, context: Context) -> pb.GetClusterResponse:
        seen = await self._view.read(AGE_S)
        if seen is None:
            raise Refused(grpc.StatusCode.UNAVAILABLE, f"Slurm does not answer: {self._view.error}")
        return cluster_out(
            seen.cluster, self._view.backend, seen.at, await avoided_nodes(self._deps.db, self._deps.clock())
        )

    async def GetSystem(self, request: pb.GetSystemRequest, context: Context) -> pb.GetSystemResponse:
        await self._vitals.check()
        return pb.GetSystemResponse(
            version=self._deps.version,
            schema_version=self._schema_version,
            conditions=[vital_out(vital) for vital in self._vitals.parts()],
        )
