"""DecisionService: what the controller did or did not do, and why. Reads the log; adds nothing to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from penstock.rpc import pages, standing
from penstock.rpc.convert.decision import decision_out
from penstock.rpc.convert.explain import explanation_out
from penstock.rpc.deps import Deps
from penstock.rpc.nudges import Nudges
from penstock.rpc.refusals import not_found
from penstock.store.queries import decisions, replicas
from penstock.v1 import decision_pb2 as pb
from penstock.v1 import decision_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

BATCH = 500
"""Decisions that a watch reads at a time."""
EXPLAINED = 20


class DecisionServicer(decision_pb2_grpc.DecisionServiceServicer):
    """Each method as its comment in decision.proto says."""

    def __init__(self, deps: Deps, nudges: Nudges) -> None:
        self._db = deps.db
        self._nudges = nudges

    async def ListDecisions(
        self, request: pb.ListDecisionsRequest, context: Context
    ) -> pb.ListDecisionsResponse:
        start = pages.position(request, request.page_token, (int,))
        size = pages.size(request.page_size)
        async with self._db.snapshot() as conn:
            found = await decisions.list_page(
                conn,
                deployment=request.deployment,
                replica=request.replica,
                before_id=int(start[0]) if start else None,
                limit=size + 1,
            )
        token = pages.token(request, found[size - 1].id) if len(found) > size else ""
        return pb.ListDecisionsResponse(
            decisions=[decision_out(row) for row in found[:size]], next_page_token=token
        )

    async def WatchDecisions(
        self, request: pb.WatchDecisionsRequest, context: Context
    ) -> AsyncIterator[pb.WatchDecisionsResponse]:
        with self._nudges.watch() as watcher:
            last = request.after
            if not request.HasField("after"):
                async with self._db.snapshot() as conn:
                    last = await decisions.last_id(conn)
            told = False
            while True:
                async with self._db.snapshot() as conn:
                    found = await decisions.after(
                        conn, last, deployment=request.deployment, replica=request.replica, limit=BATCH
                    )
                if not told:
                    # The client knows from here on that it misses nothing, also where there is nothing to say yet.
                    await context.send_initial_metadata(())
                    told = True
                for row in found:
                    yield pb.WatchDecisionsResponse(decision=decision_out(row))
                    last = row.id
                if len(found) < BATCH:
                    await watcher.wait()

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        async with self._db.snapshot() as conn:
            deployment, shown = await standing.whole(conn, request.deployment)
            sentence = standing.sentence(deployment, shown)
            if request.replica:
                one = await replicas.get(conn, request.replica)
                if one.deployment_uid != deployment.uid:
                    raise not_found("replica", request.replica)
                shown = (one,)
            log = await decisions.list_page(
                conn, deployment=deployment.name, replica=request.replica, limit=EXPLAINED
            )
        return explanation_out(sentence, deployment, shown, log)
