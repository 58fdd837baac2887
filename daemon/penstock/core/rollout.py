"""How many replicas of which revision: which are made, and which are to go.

Knows neither Slurm nor time: it counts, by the states that this very observation shows. The rule guarded here is the
fifth: our own acts never take ready replicas below the minimum available, and a healthy replica is not removed before
its successor is ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.core.decisions import Action, CreateReplica, Decision, Leave, Reason
from penstock.core.model import Deployment, Replica, ReplicaState
from penstock.core.sentences import count
from penstock.core.spec import Rollout, RolloutStrategy, share

_WORTH = {ReplicaState.READY: 3, ReplicaState.STARTING: 2, ReplicaState.QUEUED: 1}
"""What would be lost by letting a replica go; states not named are worth nothing."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What is decided about a deployment's number of replicas."""

    decision: Decision | None
    """None: the replicas are as many as wanted, and of the current revision."""
    leaving: frozenset[str]
    """Uids of replicas that the decision lets go."""


def plan_counts(deployment: Deployment, replicas: Sequence[Replica]) -> Counts:
    """Counts `replicas` (all of the deployment that are not removed, in their states of now) against the spec."""
    staying = [replica for replica in replicas if not replica.leaving]
    if deployment.deleted_at is not None:
        return _delete(deployment, replicas, staying)
    if deployment.paused:
        return Counts(
            Decision(deployment.name, "", Reason.PAUSED, "nothing is done until it is resumed"), frozenset()
        )
    current = [replica for replica in staying if replica.revision == deployment.revision]
    old = [replica for replica in staying if replica.revision != deployment.revision]
    if deployment.spec.rollout.strategy is RolloutStrategy.RECREATE:
        if old:
            message = f"{count(len(old), 'replica')} of an old revision must go before new ones are made"
            return _let_go(deployment, old, Reason.ROLLOUT_RETIRE, message)
        if going := sum(replica.revision != deployment.revision for replica in replicas):
            message = f"{count(going, 'replica')} of an old revision must be gone before new ones are made"
            return Counts(Decision(deployment.name, "", Reason.ROLLOUT_WAIT, message), frozenset())
    if not old:
        return _scale(deployment, current)
    return _roll(deployment, current, old)


def available_floor(rollout: Rollout, want: int) -> int:
    """How many ready replicas a rollout keeps at least.

    Where both shares round to nothing no replica could ever be replaced; then one may be missing, as in Kubernetes.
    """
    unavailable = share(rollout.max_unavailable, want, up=False)
    if unavailable == 0 and share(rollout.max_surge, want, up=True) == 0:
        unavailable = 1
    return max(0, want - unavailable)


def _delete(deployment: Deployment, replicas: Sequence[Replica], staying: Sequence[Replica]) -> Counts:
    how = "cancelled" if deployment.force_delete else "drained"
    message = f"{count(len(replicas), 'replica')} to be {how} first" if replicas else "nothing of it is left"
    return _let_go(deployment, staying, Reason.DELETING, message)


def _scale(deployment: Deployment, current: Sequence[Replica]) -> Counts:
    want, have = deployment.spec.replicas, len(current)
    if have < want:
        actions = (CreateReplica(deployment.uid, deployment.revision),) * (want - have)
        message = f"{have} of {want} exist; {want - have} made"
        return Counts(Decision(deployment.name, "", Reason.SCALE_UP, message, actions), frozenset())
    if have > want:
        surplus = _least_worth(current)[: have - want]
        message = f"{count(have, 'replica')} for {want} wanted; {have - want} to go"
        return _let_go(deployment, surplus, Reason.SCALE_DOWN, message)
    return Counts(None, frozenset())


def _roll(deployment: Deployment, current: Sequence[Replica], old: Sequence[Replica]) -> Counts:
    want, rollout = deployment.spec.replicas, deployment.spec.rollout
    floor = available_floor(rollout, want)
    ready = sum(replica.state is ReplicaState.READY for replica in (*current, *old))
    idle = [replica for replica in old if replica.state is not ReplicaState.READY]
    serving = [replica for replica in old if replica.state is ReplicaState.READY]
    # Old replicas that serve nobody are no loss, whatever the others do.
    retired = [*idle, *_least_worth(serving)[: max(0, ready - floor)]]
    room = want + share(rollout.max_surge, want, up=True) - len(current) - (len(old) - len(retired))
    made = max(0, min(room, want - len(current)))
    actions: list[Action] = [Leave(replica.uid) for replica in retired]
    actions += [CreateReplica(deployment.uid, deployment.revision)] * made
    message = f"{len(current)} of {want} run revision {deployment.revision}, {len(old)} an old one"
    if actions:
        reason = Reason.ROLLOUT_RETIRE if retired else Reason.ROLLOUT_SURGE
        message += "; " + ", ".join([f"{made} made"] * bool(made) + [f"{len(retired)} to go"] * bool(retired))
    else:
        reason = Reason.ROLLOUT_WAIT
        message += f"; {ready} ready, and {floor} must stay so"
    decision = Decision(deployment.name, "", reason, message, tuple(actions))
    return Counts(decision, frozenset(replica.uid for replica in retired))


def _let_go(deployment: Deployment, replicas: Sequence[Replica], reason: Reason, message: str) -> Counts:
    actions = tuple(Leave(replica.uid) for replica in replicas)
    decision = Decision(deployment.name, "", reason, message, actions)
    return Counts(decision, frozenset(replica.uid for replica in replicas))


def _least_worth(replicas: Sequence[Replica]) -> list[Replica]:
    """Those that serve nobody first; among equals the youngest."""
    return sorted(replicas, key=lambda replica: (_WORTH.get(replica.state, 0), -replica.number))
