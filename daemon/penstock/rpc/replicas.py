"""ReplicaService: the copies of a model, their attempts, and the output of their jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from penstock.contract import quoted
from penstock.rpc import pages
from penstock.rpc.convert.replica import attempt_out, replica_out
from penstock.rpc.deps import Deps
from penstock.rpc.logs import stream_output
from penstock.rpc.refusals import Refused
from penstock.slurm.script import OUTPUT_NAME
from penstock.store.queries import attempts, deployments, replicas
from penstock.v1 import replica_pb2 as pb
from penstock.v1 import replica_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

ATTEMPTS_SHOWN = 20


class ReplicaServicer(replica_pb2_grpc.ReplicaServiceServicer):
    """Each method as its comment in replica.proto says."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._db = deps.db

    async def ListReplicas(
        self, request: pb.ListReplicasRequest, context: Context
    ) -> pb.ListReplicasResponse:
        start = pages.position(request, request.page_token, (str, int))
        size = pages.size(request.page_size)
        async with self._db.snapshot() as conn:
            if request.deployment:
                await deployments.get(conn, request.deployment)
            rows = await replicas.list_page(
                conn,
                deployment=request.deployment or None,
                after=(str(start[0]), int(start[1])) if start else None,
                limit=size + 1,
                include_removed=request.include_removed,
            )
            shown = rows[:size]
            loads = await attempts.loads(
                conn, [row.attempt.token for row in shown if row.attempt is not None]
            )
        token = (
            pages.token(request, _deployment_of(shown[-1].name), shown[-1].number) if len(rows) > size else ""
        )
        return pb.ListReplicasResponse(
            replicas=[
                replica_out(
                    row, _deployment_of(row.name), loads.get(row.attempt.token) if row.attempt else None
                )
                for row in shown
            ],
            next_page_token=token,
        )

    async def GetReplica(self, request: pb.GetReplicaRequest, context: Context) -> pb.GetReplicaResponse:
        async with self._db.snapshot() as conn:
            found = await replicas.get(conn, request.name)
            newest = await attempts.list_for(conn, found.uid, ATTEMPTS_SHOWN)
            script, load = "", None
            if found.attempt is not None:
                script = await attempts.script(conn, found.attempt.token)
                load = (await attempts.loads(conn, [found.attempt.token])).get(found.attempt.token)
        return pb.GetReplicaResponse(
            replica=replica_out(found, _deployment_of(found.name), load),
            attempts=[attempt_out(attempt) for attempt in newest],
            script=script,
        )

    async def DrainReplica(
        self, request: pb.DrainReplicaRequest, context: Context
    ) -> pb.DrainReplicaResponse:
        async with self._db.transaction() as conn:
            found = await replicas.get(conn, request.name)
            if found.removed_at is not None:
                raise Refused(
                    grpc.StatusCode.FAILED_PRECONDITION, f"replica {quoted(found.name)} is gone already"
                )
            await replicas.mark_leaving(conn, found.uid)
            found = await replicas.get(conn, request.name)
        self._deps.on_routing_change()
        return pb.DrainReplicaResponse(replica=replica_out(found, _deployment_of(found.name)))

    async def StreamReplicaLogs(
        self, request: pb.StreamReplicaLogsRequest, context: Context
    ) -> AsyncIterator[pb.StreamReplicaLogsResponse]:
        async with self._db.snapshot() as conn:
            attempt = (await replicas.get(conn, request.name)).attempt
        if attempt is None:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"replica {quoted(request.name)} has had no job yet, and so no output",
            )

        async def is_over() -> bool:
            async with self._db.snapshot() as conn:
                now = (await replicas.get(conn, request.name)).attempt
            # A replica that has gone on to another attempt writes nothing more to this one's output.
            return now is None or now.token != attempt.token or not now.live

        tail_lines = request.tail_lines if request.HasField("tail_lines") else None
        path = self._deps.attempts_folder / attempt.token / OUTPUT_NAME
        output = stream_output(path, tail_lines, is_over if request.follow else None)
        while True:
            try:
                content = await anext(output)
            except StopAsyncIteration:
                return
            except OSError as error:
                raise Refused(
                    grpc.StatusCode.UNAVAILABLE,
                    f"the output of replica {quoted(request.name)} cannot be read now: {error.strerror}",
                ) from error
            yield pb.StreamReplicaLogsResponse(content=content)


def _deployment_of(replica_name: str) -> str:
    """Replicas are named `<deployment>-<number>`."""
    return replica_name.rpartition("-")[0]
