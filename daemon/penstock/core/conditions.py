"""A deployment's conditions, and the one sentence that says how it is.

Facts about now, computed afresh each tick; only `since` looks back, to the conditions stored before.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from penstock.core.decisions import Decision, Reason
from penstock.core.model import Condition, ConditionStatus, Deployment, ReplicaState

Shown = tuple[ReplicaState, str]
"""The state and the sentence that a replica is to be shown with."""

_NEAREST_FIRST = (
    ReplicaState.STARTING,
    ReplicaState.QUEUED,
    ReplicaState.SUBMITTING,
    ReplicaState.WAITING,
    ReplicaState.STOPPING,
    ReplicaState.DRAINING,
)
"""Of several replicas that are not ready, the one nearest to it is what a waiting client wants to hear of."""


def summary(deployment: Deployment, shown: Sequence[Shown]) -> str:
    """Such as `0 of 1 ready: queued in Slurm as job 7, Resources, estimated start 14:03`."""
    ready = sum(state is ReplicaState.READY for state, _ in shown)
    text = f"{ready} of {deployment.spec.replicas} ready"
    if deployment.deleted_at is not None:
        return f"{text}: the deployment is being deleted"
    if ready >= deployment.spec.replicas:
        return text
    for state in _NEAREST_FIRST:
        for candidate, message in shown:
            if candidate is state and message:
                return f"{text}: {message}"
    return f"{text}: paused" if deployment.paused else text


def conditions_of(
    deployment: Deployment, own: Decision, shown: Sequence[Shown], now: datetime
) -> tuple[Condition, ...]:
    """Ready, Progressing, Paused and ClusterReachable, in this order."""
    want = deployment.spec.replicas
    ready = sum(state is ReplicaState.READY for state, _ in shown)
    reachable = own.reason is not Reason.CLUSTER_UNREACHABLE
    settled = own.reason in (Reason.STEADY, Reason.PAUSED)
    found = [
        (
            "Ready",
            _is(ready >= want and deployment.deleted_at is None),
            own.reason,
            summary(deployment, shown),
        ),
        (
            "Progressing",
            _is(not settled) if reachable else ConditionStatus.UNKNOWN,
            own.reason,
            own.message,
        ),
        ("Paused", _is(deployment.paused), Reason.PAUSED if deployment.paused else own.reason, ""),
        (
            "ClusterReachable",
            _is(reachable),
            Reason.CLUSTER_REACHABLE if reachable else own.reason,
            "" if reachable else own.message,
        ),
    ]
    before = {condition.type: condition for condition in deployment.conditions}
    return tuple(
        Condition(kind, status, reason.word, message, _since(before.get(kind), status, now))
        for kind, status, reason, message in found
    )


def _is(value: bool) -> ConditionStatus:
    return ConditionStatus.TRUE if value else ConditionStatus.FALSE


def _since(before: Condition | None, status: ConditionStatus, now: datetime) -> datetime:
    return before.since if before is not None and before.status is status else now
