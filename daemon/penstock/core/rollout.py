"""How many replicas of which revision: which are made, and which are to go.

Knows neither Slurm nor time: it counts. The rule guarded here is the fifth: our own acts never take ready replicas below the
minimum available, and a healthy replica is not removed before its successor is ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.core.decisions import Action, CreateReplica, Decision, Leave, Reason
from penstock.core.model import Deployment, Replica, ReplicaState
from penstock.core.spec import RolloutStrategy, share

_WORTH = {ReplicaState.READY: 3, ReplicaState.STARTING: 2, ReplicaState.QUEUED: 1}
"""What would be lost by letting a replica go; states not named are worth nothing."""


@dataclass(frozen=True, slots=True)
class Counts:
    decision: Decision | None
    """None: the replicas are as many as wanted, and of the current revision."""
    leaving: frozenset[str]
    """Uids of replicas that the decision lets go."""


def plan_counts(deployment: Deployment, replicas: Sequence[Replica]) -> Counts:
    staying = [replica for replica in replicas if not replica.leaving]
    if deployment.deleted_at is not None:
        return _delete(deployment, replicas, staying)
    if deployment.paused:
        return Counts(Decision(deployment.name, "", Reason.PAUSED, Reason.PAUSED.meaning), frozenset())
    current = [replica for replica in staying if replica.revision == deployment.revision]
    old = [replica for replica in staying if replica.revision != deployment.revision]
    if deployment.spec.rollout.strategy is RolloutStrategy.RECREATE:
        if old:
            return _let_go(
                deployment,
                old,
                Reason.ROLLOUT_RETIRE,
                f"{len(old)} of an old revision go before a new one comes",
            )
        if going := sum(replica.revision != deployment.revision for replica in replicas):
            message = f"{going} of an old revision must be gone before a new one comes"
            return Counts(Decision(deployment.name, "", Reason.ROLLOUT_WAIT, message), frozenset())
    if not old:
        return _scale(deployment, current)
    return _roll(deployment, current, old)


def _delete(deployment: Deployment, replicas: Sequence[Replica], staying: Sequence[Replica]) -> Counts:
    how = "cancelled" if deployment.force_delete else "drained"
    message = f"{len(replicas)} replicas are {how}"
    actions = tuple(Leave(replica.uid) for replica in staying)
    decision = Decision(deployment.name, "", Reason.DELETING, message, actions)
    return Counts(decision, frozenset(replica.uid for replica in staying))


def _scale(deployment: Deployment, current: Sequence[Replica]) -> Counts:
    want, have = deployment.spec.replicas, len(current)
    if have < want:
        return _create(
            deployment, want - have, Reason.SCALE_UP, f"{have} of {want} replicas exist; {want - have} made"
        )
    if have > want:
        surplus = _least_worth(current)[: have - want]
        return _let_go(
            deployment, surplus, Reason.SCALE_DOWN, f"{have} replicas for {want} wanted; {have - want} go"
        )
    return Counts(None, frozenset())


def _roll(deployment: Deployment, current: Sequence[Replica], old: Sequence[Replica]) -> Counts:
    want, rollout = deployment.spec.replicas, deployment.spec.rollout
    surge = share(rollout.max_surge, want, up=True)
    min_available = max(0, want - share(rollout.max_unavailable, want, up=False))
    ready = sum(replica.state is ReplicaState.READY for replica in (*current, *old))
    idle = [replica for replica in old if replica.state is not ReplicaState.READY]
    # Old replicas that serve nobody are no loss, whatever the others do.
    spare = max(0, ready - min_available)
    retired = [
        *idle,
        *_least_worth([replica for replica in old if replica.state is ReplicaState.READY])[:spare],
    ]
    room = want + surge - len(current) - (len(old) - len(retired))
    made = max(0, min(room, want - len(current)))
    done = f"{len(current)} of {want} are of revision {deployment.revision}, {len(old)} of old ones"
    actions: list[Action] = [Leave(replica.uid) for replica in retired]
    actions += [CreateReplica(deployment.uid, deployment.revision)] * made
    if retired or made:
        reason = Reason.ROLLOUT_RETIRE if retired else Reason.ROLLOUT_SURGE
        message = f"{done}; {made} made, {len(retired)} retired"
    else:
        reason = Reason.ROLLOUT_WAIT
        message = f"{done}; {ready} ready, {min_available} must stay"
    decision = Decision(deployment.name, "", reason, message, tuple(actions))
    return Counts(decision, frozenset(replica.uid for replica in retired))


def _create(deployment: Deployment, count: int, reason: Reason, message: str) -> Counts:
    actions = (CreateReplica(deployment.uid, deployment.revision),) * count
    return Counts(Decision(deployment.name, "", reason, message, actions), frozenset())


def _let_go(deployment: Deployment, replicas: Sequence[Replica], reason: Reason, message: str) -> Counts:
    decision = Decision(
        deployment.name, "", reason, message, tuple(Leave(replica.uid) for replica in replicas)
    )
    return Counts(decision, frozenset(replica.uid for replica in replicas))


def _least_worth(replicas: Sequence[Replica]) -> list[Replica]:
    """Those that serve nobody first; among equals the youngest."""
    return sorted(replicas, key=lambda replica: (_WORTH.get(replica.state, 0), -replica.number))
