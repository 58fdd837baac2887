"""What clients can put into `model`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from penstock.core.model import Deployment
from penstock.rpc.convert.spec import task_out
from penstock.v1 import inference_pb2 as pb


def models_out(deployment: Deployment, ready: int, having: Mapping[str, int]) -> Iterator[pb.ServedModel]:
    """All names of a deployment: its own before its served name, and its adapters' after both.

    `ready`: its ready replicas; `having`: how many of them have each adapter, 0 for one that is not in it.
    """
    task = task_out(deployment.spec.engine.task)
    adapters = {adapter.name for adapter in deployment.spec.model.adapters}
    for name in deployment.model_names:
        is_adapter = name in adapters
        yield pb.ServedModel(
            name=name,
            deployment=deployment.name,
            ready_replicas=having.get(name, 0) if is_adapter else ready,
            task=task,
            parent=deployment.served_name if is_adapter else "",
        )
