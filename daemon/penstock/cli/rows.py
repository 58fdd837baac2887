"""Objects as rows of tables: what a person wants to see first, in the fewest columns."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.cli.output import age
from penstock.v1 import deployment_pb2, inference_pb2, metadata_pb2, replica_pb2, revision_pb2, spec_pb2

DEPLOYMENTS = ("NAME", "READY", "UP-TO-DATE", "STATE", "AGE")
DEPLOYMENTS_WIDE = (*DEPLOYMENTS, "REVISION", "PARTITION", "MODEL", "HELD", "MESSAGE")
REPLICAS = ("NAME", "STATE", "REVISION", "JOB", "NODES", "ATTEMPTS", "AGE")
REPLICAS_WIDE = (*REPLICAS, "ENDPOINT", "RUNNING", "WAITING", "KV-CACHE", "ADAPTERS", "MESSAGE")
REVISIONS = ("REVISION", "REPLICAS", "READY", "CURRENT", "AGE")
REVISIONS_WIDE = (*REVISIONS, "MODEL", "GPUS", "AUTHOR", "CAUSE")
HISTORY = ("REVISION", "REPLICAS", "WHAT", "AGE", "AUTHOR", "CAUSE")
MODELS = ("MODEL", "DEPLOYMENT", "READY", "TASK", "ADAPTER OF")
ADAPTERS = ("NAME", "LOADED", "PATH", "MESSAGE")


def condition(deployment: deployment_pb2.Deployment, kind: str) -> metadata_pb2.Condition | None:
    """The condition of this type, if it was ever said."""
    return next((found for found in deployment.status.conditions if found.type == kind), None)


def is_true(deployment: deployment_pb2.Deployment, kind: str) -> bool:
    """Whether the deployment's condition of this type holds."""
    found = condition(deployment, kind)
    return found is not None and found.status == metadata_pb2.CONDITION_STATUS_TRUE


def state(deployment: deployment_pb2.Deployment) -> str:
    """One word for how the deployment is: the strongest of its conditions, or the reason why it is not ready."""
    if deployment.metadata.HasField("deleted_at"):
        return "Deleting"
    if is_true(deployment, "Paused"):
        return "Paused"
    ready = condition(deployment, "Ready")
    if ready is None:
        return "New"
    if ready.status == metadata_pb2.CONDITION_STATUS_TRUE:
        return "Ready"
    return ready.reason or "NotReady"


def model(spec: spec_pb2.DeploymentSpec) -> str:
    """Which model it serves."""
    return spec.model.path or spec.model.hub


def deployment_row(item: deployment_pb2.Deployment, *, wide: bool) -> tuple[str, ...]:
    """A row of DEPLOYMENTS, or of DEPLOYMENTS_WIDE."""
    status = item.status
    row = (
        item.metadata.name,
        f"{status.ready_replicas}/{status.desired_replicas}",
        str(status.updated_replicas),
        state(item),
        age(item.metadata.created_at),
    )
    if not wide:
        return row
    ready = condition(item, "Ready")
    partition = item.spec.placements[0].partition if item.spec.placements else ""
    return (
        *row,
        str(status.current_revision),
        partition or "-",
        model(item.spec),
        str(status.held_requests),
        ready.message if ready else "",
    )


def state_word(item: replica_pb2.Replica) -> str:
    """A replica's state as a word."""
    name = replica_pb2.ReplicaState.Name(item.state)
    return name.removeprefix("REPLICA_STATE_").capitalize()


def endpoint(item: replica_pb2.Replica) -> str:
    """Where it is asked. Where an attempt was that has ended nobody listens, or somebody else does."""
    return "-" if item.attempt.HasField("ended_at") else item.attempt.endpoint or "-"


def replica_row(item: replica_pb2.Replica, *, wide: bool) -> tuple[str, ...]:
    """A row of REPLICAS, or of REPLICAS_WIDE."""
    attempt = item.attempt
    row = (
        item.name,
        state_word(item),
        str(item.revision),
        str(attempt.job_id) if attempt.job_id else "-",
        attempt.nodes or "-",
        str(item.attempts),
        age(item.created_at),
    )
    if not wide:
        return row
    load = item.load
    return (
        *row,
        endpoint(item),
        str(load.running_requests),
        str(load.waiting_requests),
        f"{load.kv_cache_usage:.0%}",
        f"{sum(one.loaded for one in item.adapters)}/{len(item.adapters)}" if item.adapters else "-",
        item.message,
    )


def revision_row(item: revision_pb2.Revision, *, wide: bool) -> tuple[str, ...]:
    """A row of REVISIONS, or of REVISIONS_WIDE."""
    row = (
        str(item.number),
        str(item.replicas),
        str(item.ready_replicas),
        "yes" if item.current else "",
        age(item.created_at),
    )
    if not wide:
        return row
    return (*row, model(item.spec), str(item.spec.resources.gpus), item.author or "-", item.cause or "-")


def history_rows(item: revision_pb2.Revision) -> list[tuple[str, ...]]:
    """Rows of HISTORY: what happened to the revision, the newest first, and last that it was made."""
    number = f"{item.number} (current)" if item.current else str(item.number)
    replicas = f"{item.ready_replicas}/{item.replicas}" if item.replicas else "-"
    lines = [("made", item.created_at, item.author, item.cause)]
    lines += [(event_word(event), event.at, event.author, event.cause) for event in item.events]
    return [
        (number, replicas, what, age(at), author or "-", cause or "-")
        for what, at, author, cause in reversed(lines)
    ]


def event_word(event: revision_pb2.RevisionEvent) -> str:
    """What happened, in a word or two."""
    name = revision_pb2.RevisionEventType.Name(event.type)
    return name.removeprefix("REVISION_EVENT_TYPE_").lower().replace("_", " ")


def model_row(item: inference_pb2.ServedModel) -> tuple[str, ...]:
    """A row of MODELS."""
    task = spec_pb2.EngineTask.Name(item.task).removeprefix("ENGINE_TASK_").lower()
    return item.name, item.deployment, str(item.ready_replicas), task, item.parent or "-"


def adapter_rows(spec: spec_pb2.DeploymentSpec, copies: Sequence[replica_pb2.Replica]) -> list[Sequence[str]]:
    """Rows of ADAPTERS: how many of the ready replicas have each, and what the first says that cannot load it."""
    ready = [item for item in copies if item.state == replica_pb2.REPLICA_STATE_READY]
    found: list[Sequence[str]] = []
    for adapter in spec.model.adapters:
        said = [
            (item.name, one)
            for item in ready
            for one in item.adapters
            if (one.name, one.path) == (adapter.name, adapter.path)
        ]
        loaded = sum(one.loaded for _, one in said)
        trouble = next((f"{name}: {one.message}" for name, one in said if one.message), "")
        found.append((adapter.name, f"{loaded}/{len(ready)}", adapter.path, trouble))
    return found
