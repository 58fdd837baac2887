"""How many replicas of which revision: which are made, and which are to go.

Knows neither Slurm nor time: it counts, by the states that this very observation shows. The rule guarded here is the
fifth: our own acts never take ready replicas below the minimum available, and a healthy replica is not removed before
its successor is ready.

A replica that is being handed over (`handover`) is one too many from then on: it is left out where the replicas are
counted, so that a successor is made for it beyond every surge, and it goes once the wanted number is ready without it.
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


def plan_counts(
    deployment: Deployment, replicas: Sequence[Replica], handed_over: frozenset[str] = frozenset()
) -> Counts:
    """Counts `replicas` (all of the deployment that are not removed, in their states of now) against the spec.

    `handed_over`: uids of replicas that a successor is to take over from.
    """
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
        return _scale(deployment, current, handed_over)
    return _roll(deployment, current, old, handed_over)


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


def _scale(deployment: Deployment, current: Sequence[Replica], handed_over: frozenset[str]) -> Counts:
    want, fresh = deployment.spec.replicas, _fresh(current, handed_over)
    relieved = _relieved(current, handed_over, want)
    surplus = _least_worth(fresh)[: max(0, len(fresh) - want)]
    made = max(0, want - len(fresh))
    if len(fresh) < len(current) and not surplus:
        return _hand_over(deployment, current, fresh, relieved, made)
    if made:
        actions = (CreateReplica(deployment.uid, deployment.revision),) * made
        message = f"{len(fresh)} of {want} exist; {made} made"
        return Counts(Decision(deployment.name, "", Reason.SCALE_UP, message, actions), frozenset())
    if surplus:
        going = [*relieved, *surplus]
        message = f"{count(len(current), 'replica')} for {want} wanted; {len(going)} to go"
        return _let_go(deployment, going, Reason.SCALE_DOWN, message)
    return Counts(None, frozenset())


def _hand_over(
    deployment: Deployment,
    current: Sequence[Replica],
    fresh: Sequence[Replica],
    relieved: Sequence[Replica],
    made: int,
) -> Counts:
    want = deployment.spec.replicas
    ready = sum(replica.state is ReplicaState.READY for replica in fresh)
    actions: list[Action] = [Leave(replica.uid) for replica in relieved]
    actions += [CreateReplica(deployment.uid, deployment.revision)] * made
    message = f"{len(current) - len(fresh)} of {count(len(current), 'replica')} handed over"
    if made:
        message += f"; {count(made, 'successor')} made"
    if relieved:
        message += f"; {len(relieved)} to go"
    if not actions:
        message += f"; {ready} of {want} ready without them"
    reason = Reason.HANDOVER if actions else Reason.HANDOVER_WAIT
    decision = Decision(deployment.name, "", reason, message, tuple(actions))
    return Counts(decision, frozenset(replica.uid for replica in relieved))


def _fresh(replicas: Sequence[Replica], handed_over: frozenset[str]) -> list[Replica]:
    return [replica for replica in replicas if replica.uid not in handed_over]


def _relieved(replicas: Sequence[Replica], handed_over: frozenset[str], want: int) -> list[Replica]:
    """Those handed over that may go: as many ready ones are wanted as there are without them.

    One that serves nobody is ending by itself, and what it still finishes is left to it.
    """
    ready = [replica for replica in replicas if replica.state is ReplicaState.READY]
    serving = [replica for replica in ready if replica.uid in handed_over]
    return sorted(serving, key=lambda replica: replica.number)[: max(0, len(ready) - want)]


def _roll(
    deployment: Deployment,
    current: Sequence[Replica],
    old: Sequence[Replica],
    handed_over: frozenset[str],
) -> Counts:
    want, rollout = deployment.spec.replicas, deployment.spec.rollout
    fresh, floor = _fresh(current, handed_over), available_floor(rollout, want)
    ready = sum(replica.state is ReplicaState.READY for replica in (*current, *old))
    idle = [replica for replica in old if replica.state is not ReplicaState.READY]
    serving = [replica for replica in old if replica.state is ReplicaState.READY]
    ending_first = sorted(_least_worth(serving), key=lambda replica: replica.uid not in handed_over)
    # Old replicas that serve nobody are no loss, whatever the others do.
    retired = [*idle, *ending_first[: max(0, ready - floor)]]
    going = {replica.uid for replica in retired}
    staying = [replica for replica in (*current, *old) if replica.uid not in going]
    retired += _relieved(staying, handed_over, want)
    going |= {replica.uid for replica in retired}
    kept = [replica for replica in _fresh(old, handed_over) if replica.uid not in going]
    room = want + share(rollout.max_surge, want, up=True) - len(fresh) - len(kept)
    made = max(0, min(room, want - len(fresh)))
    actions: list[Action] = [Leave(replica.uid) for replica in retired]
    actions += [CreateReplica(deployment.uid, deployment.revision)] * made
    message = f"{len(fresh)} of {want} run revision {deployment.revision}, {len(old)} an old one"
    if ending := len(current) - len(fresh):
        message += f", {ending} handed over"
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
