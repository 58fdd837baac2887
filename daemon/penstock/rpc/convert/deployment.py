"""Deployments, their conditions and their revisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from penstock.core import model as core
from penstock.core.canary import is_canary
from penstock.core.spec import Spec
from penstock.rpc.convert.spec import spec_out
from penstock.rpc.convert.time import time_out
from penstock.store.records import RevisionCount
from penstock.v1 import deployment_pb2, metadata_pb2, revision_pb2

_STATUSES = {
    core.ConditionStatus.TRUE: metadata_pb2.CONDITION_STATUS_TRUE,
    core.ConditionStatus.FALSE: metadata_pb2.CONDITION_STATUS_FALSE,
    core.ConditionStatus.UNKNOWN: metadata_pb2.CONDITION_STATUS_UNKNOWN,
}

_EVENTS = {
    core.RevisionEventType.PROMOTED: revision_pb2.REVISION_EVENT_TYPE_PROMOTED,
    core.RevisionEventType.COMPLETED: revision_pb2.REVISION_EVENT_TYPE_COMPLETED,
    core.RevisionEventType.FAILED: revision_pb2.REVISION_EVENT_TYPE_FAILED,
    core.RevisionEventType.UNDONE: revision_pb2.REVISION_EVENT_TYPE_UNDONE,
    core.RevisionEventType.ROLLOUTS_PAUSED: revision_pb2.REVISION_EVENT_TYPE_ROLLOUTS_PAUSED,
    core.RevisionEventType.ROLLOUTS_RESUMED: revision_pb2.REVISION_EVENT_TYPE_ROLLOUTS_RESUMED,
    core.RevisionEventType.PAUSED: revision_pb2.REVISION_EVENT_TYPE_PAUSED,
    core.RevisionEventType.RESUMED: revision_pb2.REVISION_EVENT_TYPE_RESUMED,
}


def condition_out(condition: core.Condition) -> metadata_pb2.Condition:
    """One observed fact."""
    return metadata_pb2.Condition(
        type=condition.type,
        status=_STATUSES[condition.status],
        reason=condition.reason,
        message=condition.message,
        since=time_out(condition.since),
    )


def deployment_out(
    deployment: core.Deployment, counts: Iterable[RevisionCount] = (), held_requests: int = 0
) -> deployment_pb2.Deployment:
    """The deployment as a client sees it; `counts` are those of its replicas."""
    by_revision = {count.revision: count for count in counts}
    conditions = [condition_out(condition) for condition in deployment.conditions]
    if deployment.paused and not any(condition.type == "Paused" for condition in conditions):
        # What someone asked for shows at once, before the controller has come round to it.
        conditions.append(
            metadata_pb2.Condition(
                type="Paused",
                status=metadata_pb2.CONDITION_STATUS_TRUE,
                reason="Paused",
                message="paused on request; nothing is started, stopped or replaced",
            )
        )
    current = by_revision.get(deployment.revision)
    return deployment_pb2.Deployment(
        metadata=metadata_pb2.Metadata(
            name=deployment.name,
            uid=deployment.uid,
            labels=deployment.labels,
            generation=deployment.generation,
            resource_version=str(deployment.resource_version),
            created_at=time_out(deployment.created_at),
            deleted_at=time_out(deployment.deleted_at),
        ),
        spec=spec_out(deployment.spec),
        status=deployment_pb2.DeploymentStatus(
            observed_generation=deployment.observed_generation,
            conditions=conditions,
            desired_replicas=0 if deployment.deleted_at else deployment.spec.replicas,
            replicas=sum(count.replicas for count in by_revision.values()),
            ready_replicas=sum(count.ready for count in by_revision.values()),
            updated_replicas=current.ready if current else 0,
            current_revision=deployment.revision,
            rollout=_rollout_out(deployment),
            held_requests=held_requests,
        ),
    )


def _rollout_out(deployment: core.Deployment) -> deployment_pb2.RolloutStatus:
    record = deployment.rollout
    return deployment_pb2.RolloutStatus(
        stable_revision=record.stable_revision,
        failed_revision=record.failed_revision,
        failed_message=record.failed_message,
        paused=deployment.rollout_paused,
        canary=is_canary(deployment),
        canary_since=time_out(record.canary_since),
    )


def new_deployment(name: str, labels: Mapping[str, str], spec: Spec, now: datetime) -> core.Deployment:
    """A deployment as it would be right after its first apply."""
    return core.Deployment(
        uid="",
        name=name,
        spec=spec,
        generation=1,
        resource_version=0,
        revision=1,
        created_at=now,
        labels=labels,
    )


def revisions_out(
    deployment: core.Deployment,
    revisions: Sequence[core.Revision],
    events: Mapping[int, Sequence[core.RevisionEvent]],
    counts: Iterable[RevisionCount],
) -> list[revision_pb2.Revision]:
    """The deployment's revisions, in the order given, each with its events."""
    by_revision = {count.revision: count for count in counts}
    made = []
    for revision in revisions:
        count = by_revision.get(revision.number)
        made.append(
            revision_pb2.Revision(
                deployment=deployment.name,
                number=revision.number,
                spec=spec_out(revision.spec),
                created_at=time_out(revision.created_at),
                replicas=count.replicas if count else 0,
                ready_replicas=count.ready if count else 0,
                current=revision.number == deployment.revision,
                author=revision.author,
                cause=revision.cause,
                proven=revision.proven,
                events=[_event_out(event) for event in events.get(revision.number, ())],
            )
        )
    return made


def _event_out(event: core.RevisionEvent) -> revision_pb2.RevisionEvent:
    return revision_pb2.RevisionEvent(
        type=_EVENTS[event.type], at=time_out(event.at), author=event.author, cause=event.cause
    )
