"""InferenceService.ListModels: what clients can put into `model`. The service's other methods are the replicas'
own.
"""

from __future__ import annotations

from typing import Any

import grpc

from penstock.rpc import pages
from penstock.rpc.convert.model import models_out
from penstock.rpc.deps import Deps
from penstock.store.queries import deployments, replicas, runtime
from penstock.v1 import inference_pb2 as pb

Context = grpc.aio.ServicerContext[Any, Any]

MAX_MODELS = 10_000


class ModelLister:
    """Lists every name of every deployment that is not being deleted."""

    def __init__(self, deps: Deps) -> None:
        self._db = deps.db

    async def list_models(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """By deployment, its own name before its served name, and its adapters after both."""
        response = pb.ListModelsResponse()
        async with self._db.snapshot() as conn:
            after_name = ""
            while len(response.models) < MAX_MODELS:
                page = await deployments.list_page(conn, after_name=after_name, limit=pages.MAX_SIZE)
                counts = await replicas.count(conn, [one.uid for one in page])
                adapted = [one.uid for one in page if one.spec.model.adapters]
                having = await runtime.adapter_counts(conn, adapted) if adapted else {}
                for one in page:
                    if one.deleted_at is None:
                        ready = sum(count.ready for count in counts[one.uid])
                        response.models.extend(models_out(one, ready, having.get(one.uid, {})))
                if len(page) < pages.MAX_SIZE:
                    break
                after_name = page[-1].name
        return response
