"""How many replicas of which revision: which are made, and which are to go.

Knows neither Slurm nor time: it counts, by the states that this very observation shows and by what `progress` has
recorded. The rule guarded here is the fifth: our own acts never take ready replicas below the minimum available, and a
healthy replica is not removed before its successor is ready.

There are three kinds of replicas: those of the current revision, those of the one to fall back on (`base`: the stable
one, and where none was ever whole the newest that serves), and those of any other revision, which are wanted by nobody.
Each way of rolling out is a pair of numbers: how many of the current and how many of the base there should be. `_step`
goes there as far as surge and minimum allow.

A replica that is being handed over (`handover`) is one too many from then on: it is left out where the replicas are
counted, so that a successor is made for it beyond every surge, and it goes once the wanted number is ready without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum, auto

from penstock.core.canary import canary_counts, failed_as_canary, is_canary
from penstock.core.decisions import Action, CreateReplica, Decision, Leave, Reason
from penstock.core.model import Deployment, Replica, ReplicaState
from penstock.core.sentences import clock, count
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
    deployment: Deployment, replicas: Sequence[Replica], handed_over: Sequence[str] = ()
) -> Counts:
    """Counts `replicas` (all of the deployment that are not removed, in their states of now) against the spec.

    `handed_over`: uids of replicas that a successor is to take over from, the one whose job ends first before others.
    """
    fleet = _Fleet.of(deployment, replicas, handed_over)
    if deployment.deleted_at is not None:
        return _delete(deployment, replicas, fleet.staying)
    if deployment.paused:
        message = f"nothing is done until `penstock resume {deployment.name}`"
        return Counts(Decision(deployment.name, "", Reason.PAUSED, message), frozenset())
    if deployment.rollout_paused and (fleet.old or fleet.stable_is_old):
        return _stand_still(fleet)
    if deployment.spec.rollout.strategy is RolloutStrategy.RECREATE:
        if fleet.old:
            message = (
                f"{count(len(fleet.old), 'replica')} of an old revision must go before new ones are made"
            )
            return _let_go(deployment, fleet.old, Reason.ROLLOUT_RETIRE, message)
        if going := sum(replica.revision != deployment.revision for replica in replicas):
            message = f"{count(going, 'replica')} of an old revision must be gone before new ones are made"
            return Counts(Decision(deployment.name, "", Reason.ROLLOUT_WAIT, message), frozenset())
    elif is_stopped(deployment, replicas):
        return _stop(fleet)
    elif is_canary(deployment):
        return _canary(fleet)
    if not fleet.old:
        return _scale(fleet)
    return _roll(fleet)


def available_floor(rollout: Rollout, want: int) -> int:
    """How many ready replicas a rollout keeps at least.

    Where both shares round to nothing no replica could ever be replaced; then one may be missing, as in Kubernetes.
    """
    unavailable = share(rollout.max_unavailable, want, up=False)
    if unavailable == 0 and share(rollout.max_surge, want, up=True) == 0:
        unavailable = 1
    return max(0, want - unavailable)


def keeps_old(deployment: Deployment, replicas: Sequence[Replica]) -> bool:
    """Whether replicas of an old revision are meant to stay beside the current one's, for now."""
    return deployment.rollout_paused or is_stopped(deployment, replicas) or is_canary(deployment)


def is_stopped(deployment: Deployment, replicas: Sequence[Replica]) -> bool:
    """Whether the current revision's rollout is over because it failed. `replicas`: all of the deployment.

    One that has nothing to fall back on goes on being tried, as its restart policy allows: the first revision, one
    whose predecessors had to go first, and one of whose predecessors none was ever whole and no replica is left.
    """
    return (
        deployment.rollout.failed_revision == deployment.revision
        and _base_revision(deployment, replicas) != deployment.revision
        and deployment.spec.rollout.strategy is not RolloutStrategy.RECREATE
    )


def _is_base(deployment: Deployment, base_revision: int, one: Replica) -> bool:
    """Whether a replica of an old revision is one to fall back on."""
    trusted = one.revision in deployment.rollout.trusted_revisions and one.has_served
    return one.revision == base_revision or trusted


def _base_revision(deployment: Deployment, replicas: Sequence[Replica]) -> int:
    """Which revision is fallen back on, and replaces an old replica that is missing; the current one: there is none.

    It is the stable one. Where none was ever whole it is the newest of which a replica serves or did, else the newest
    there is: what has proven itself on one replica is worth more than what has failed.
    """
    if deployment.rollout.stable_revision not in (0, deployment.revision):
        return deployment.rollout.stable_revision
    old = [one for one in replicas if one.revision != deployment.revision and not one.leaving]
    served = [one for one in old if one.has_served]
    return max((one.revision for one in served or old), default=deployment.revision)


class _Side(Enum):
    """Which requests a replica gets, where a canary has some of its own."""

    CURRENT = auto()
    BASE = auto()
    STALE = auto()
    """None, as long as there is another."""


@dataclass(frozen=True, slots=True)
class _Fleet:
    """A deployment's replicas by what they are to a rollout; those that are leaving are only counted."""

    deployment: Deployment
    base_revision: int
    ending: list[Replica] = field(default_factory=list)
    """Handed over, of whichever revision; the one whose job ends first before others."""
    current: list[Replica] = field(default_factory=list)
    base: list[Replica] = field(default_factory=list)
    """Of `base_revision`, where that is another than the current one; and those of trusted ones that served: whoever
    was past its canary is not thrown away for the next one's."""
    stale: list[Replica] = field(default_factory=list)
    """Of any other revision."""
    unborn: int = 0
    """Leaving, of a revision that is not wanted, never ready and not ended yet. They take the room of those that come
    after them, so that a spec that is edited again and again has no more jobs than surge allows."""

    @classmethod
    def of(cls, deployment: Deployment, replicas: Sequence[Replica], handed_over: Sequence[str]) -> _Fleet:
        ending: list[Replica] = []
        current: list[Replica] = []
        base: list[Replica] = []
        stale: list[Replica] = []
        base_revision = _base_revision(deployment, replicas)
        unborn, failed = 0, deployment.rollout.failed_revision == deployment.revision
        for one in replicas:
            if one.leaving:
                unborn += (one.revision != deployment.revision or failed) and _is_unborn(one)
            elif one.uid in handed_over:
                ending.append(one)
            elif one.revision == deployment.revision:
                current.append(one)
            else:
                (base if _is_base(deployment, base_revision, one) else stale).append(one)
        ending.sort(key=lambda one: handed_over.index(one.uid))
        return cls(deployment, base_revision, ending, current, base, stale, unborn)

    @property
    def outdated(self) -> list[Replica]:
        """Handed over, and of another revision than the current one."""
        return [one for one in self.ending if one.revision != self.deployment.revision]

    @property
    def old(self) -> list[Replica]:
        return sorted([*self.base, *self.stale, *self.outdated], key=lambda one: one.number)

    @property
    def fresh(self) -> list[Replica]:
        """Those that stay and are not handed over."""
        return sorted([*self.current, *self.base, *self.stale], key=lambda one: one.number)

    @property
    def staying(self) -> list[Replica]:
        return sorted([*self.fresh, *self.ending], key=lambda one: one.number)

    @property
    def want(self) -> int:
        return self.deployment.spec.replicas

    @property
    def most(self) -> int:
        """Replicas that there may be at a time."""
        return self.want + share(self.deployment.spec.rollout.max_surge, self.want, up=True)

    @property
    def floor(self) -> int:
        return available_floor(self.deployment.spec.rollout, self.want)

    @property
    def ready(self) -> int:
        return sum(one.state is ReplicaState.READY for one in self.staying)

    @property
    def is_mixed(self) -> bool:
        """Whether there is more than one revision of it."""
        return len({one.revision for one in self.fresh}) > 1

    def room(self, counted: Sequence[Replica], going: Sequence[Replica] = ()) -> int:
        """How many may be made beside those that are `counted`, when `going` of them go."""
        uids = {one.uid for one in going}
        left = sum(one.uid not in uids or _is_unborn(one) for one in counted)
        return max(0, self.most - self.unborn - left)

    def relieved(self, but: Sequence[Replica] = (), beside: tuple[int, int] | None = None) -> list[Replica]:
        """Those handed over that may go, when `but` go anyway: as many as are ready beyond the wanted number.

        `beside`: of the current revision and of those to fall back on so many are each to stay ready, as in a canary,
        where either bears requests that the other does not get. None: whichever is ready takes over.

        The one whose job ends first goes first: the others can wait for their successors, and it cannot. One that
        serves nobody is ending by itself, and what it still finishes is left to it.
        """
        gone = {one.uid for one in but}
        ready = [one for one in self.staying if one.state is ReplicaState.READY and one.uid not in gone]
        spare = Counter(self._side(one) for one in ready)
        if beside is not None:
            spare[_Side.CURRENT] -= beside[0]
            spare[_Side.BASE] -= beside[1]
        found: list[Replica] = []
        for one in self.ending:
            side = self._side(one)
            if one in ready and spare[side] > 0 and len(ready) - len(found) > self.want:
                spare[side] -= 1
                found.append(one)
        return found

    def _side(self, one: Replica) -> _Side:
        if one.revision == self.deployment.revision:
            return _Side.CURRENT
        return _Side.BASE if _is_base(self.deployment, self.base_revision, one) else _Side.STALE

    @property
    def stable_is_old(self) -> bool:
        return self.deployment.rollout.stable_revision not in (0, self.deployment.revision)


@dataclass(frozen=True, slots=True)
class _Step:
    """What one pass does towards the numbers aimed at."""

    fleet: _Fleet
    retired: list[Replica]
    made: int
    made_base: int = 0

    @property
    def actions(self) -> tuple[Action, ...]:
        uid, revision = self.fleet.deployment.uid, self.fleet.deployment.revision
        actions: list[Action] = [Leave(replica.uid) for replica in self.retired]
        actions += [CreateReplica(uid, self.fleet.base_revision)] * self.made_base
        actions += [CreateReplica(uid, revision)] * self.made
        return tuple(actions)

    @property
    def told(self) -> str:
        """The end of a sentence; empty where nothing is done."""
        made, gone = self.made + self.made_base, len(self.retired)
        return ", ".join([f"{made} made"] * bool(made) + [f"{gone} to go"] * bool(gone))

    def counts(self, reason: Reason, message: str) -> Counts:
        if self.told:
            message += f"; {self.told}"
        decision = Decision(self.fleet.deployment.name, "", reason, message, self.actions)
        return Counts(decision, frozenset(replica.uid for replica in self.retired))


def _step(fleet: _Fleet, new: int, base: int = 0, *, beside: bool = False) -> _Step:
    """Towards `new` replicas of the current revision and `base` of the one to fall back on; those of others go.

    `beside`: neither of the two stands in for the other.
    """
    surplus = [
        *(
            one
            for one in fleet.outdated
            if not (base and _is_base(fleet.deployment, fleet.base_revision, one))
        ),
        *least_worth(fleet.stale),
        *least_worth(fleet.base)[: max(0, len(fleet.base) - base)],
        *least_worth(fleet.current)[: max(0, len(fleet.current) - new)],
    ]
    retired = _spared(surplus, fleet.ready - fleet.floor)
    retired += fleet.relieved(but=retired, beside=(new, base) if beside else None)
    room = fleet.room(fleet.fresh, going=retired)
    made_base = min(room, max(0, base - len(fleet.base)))
    made = min(room - made_base, max(0, new - len(fleet.current)))
    return _Step(fleet, retired, made, made_base)


def _spared(surplus: Sequence[Replica], serving: int) -> list[Replica]:
    """Those of the surplus that may go now, at most so many that serve; who serves nobody is no loss, whatever the
    others do."""
    idle = [replica for replica in surplus if replica.state is not ReplicaState.READY]
    ready = [replica for replica in surplus if replica.state is ReplicaState.READY]
    return [*idle, *ready[: max(0, serving)]]


def _delete(deployment: Deployment, replicas: Sequence[Replica], staying: Sequence[Replica]) -> Counts:
    how = "cancelled" if deployment.force_delete else "drained"
    message = f"{count(len(replicas), 'replica')} to be {how} first" if replicas else "nothing of it is left"
    return _let_go(deployment, staying, Reason.DELETING, message)


def _scale(fleet: _Fleet) -> Counts:
    deployment, want, have = fleet.deployment, fleet.want, len(fleet.current)
    surplus = least_worth(fleet.current)[: max(0, have - want)]
    made = min(max(0, want - have), fleet.room(fleet.current))
    if fleet.ending and not surplus:
        return _hand_over(fleet, made)
    if made:
        return _Step(fleet, [], made).counts(Reason.SCALE_UP, f"{have} of {want} exist")
    if have < want:
        message = (
            f"{have} of {want} exist; {count(fleet.unborn, 'replica')} of an old revision must be gone first"
        )
        return Counts(Decision(deployment.name, "", Reason.ROLLOUT_WAIT, message), frozenset())
    if surplus:
        going = [*fleet.relieved(), *surplus]
        message = f"{count(len(fleet.staying), 'replica')} for {want} wanted; {len(going)} to go"
        return _let_go(deployment, going, Reason.SCALE_DOWN, message)
    return Counts(None, frozenset())


def _hand_over(fleet: _Fleet, made: int) -> Counts:
    relieved = fleet.relieved()
    ready = sum(replica.state is ReplicaState.READY for replica in fleet.current)
    message = f"{len(fleet.ending)} of {count(len(fleet.staying), 'replica')} handed over"
    if made:
        message += f"; {count(made, 'successor')} made"
    if relieved:
        message += f"; {len(relieved)} to go"
    if not made and not relieved:
        message += f"; {ready} of {fleet.want} ready without them"
    step = _Step(fleet, relieved, made)
    reason = Reason.HANDOVER if step.actions else Reason.HANDOVER_WAIT
    decision = Decision(fleet.deployment.name, "", reason, message, step.actions)
    return Counts(decision, frozenset(replica.uid for replica in relieved))


def _roll(fleet: _Fleet) -> Counts:
    deployment, want = fleet.deployment, fleet.want
    step = _step(fleet, want)
    message = f"{len(fleet.current)} of {want} are of revision {deployment.revision}, {len(fleet.old)} of an old one"
    if ending := len(fleet.ending) - len(fleet.outdated):
        message += f", {ending} handed over"
    if step.told:
        return step.counts(Reason.ROLLOUT_RETIRE if step.retired else Reason.ROLLOUT_SURGE, message)
    message += f"; {fleet.ready} ready, and {fleet.floor} must stay so"
    if (
        fleet.unborn and len(fleet.current) < want and len(fleet.fresh) < fleet.most
    ):  # They alone take the room.
        message += f"; {count(fleet.unborn, 'replica')} of an old revision must be gone first"
    return step.counts(Reason.ROLLOUT_WAIT, message)


def _canary(fleet: _Fleet) -> Counts:
    deployment, canary = fleet.deployment, fleet.deployment.spec.rollout.canary
    new, base = canary_counts(deployment.spec.rollout, fleet.want)
    step = _step(fleet, new, base, beside=True)
    # Those handed over bear requests until their successors do: a canary that is handed over is whole all the while.
    mine = (one for one in fleet.staying if one.revision == deployment.revision)
    ready = min(new, sum(one.state is ReplicaState.READY for one in mine))
    message = (
        f"the canary of revision {deployment.revision}: {ready} of {new} ready, beside {_by_revision(fleet)}"
        f"{_handed_over(fleet)}"
    )
    since, bake_s = deployment.rollout.canary_since, canary.bake_s if canary is not None else None
    if bake_s is None and ready < new:
        message += "; to be promoted by hand"
    elif bake_s is None:
        message += f"; waits for `penstock rollout promote {deployment.name}`"
    elif since is None:
        message += f"; to be promoted {bake_s} s after all of it is ready"
    else:
        message += f"; to be promoted at {clock(since + timedelta(seconds=bake_s), since)}"
    return step.counts(Reason.ROLLOUT_CANARY, message)


def _by_revision(fleet: _Fleet) -> str:
    """Those to fall back on, such as `1 of revision 1 and 3 of revision 2`."""
    ending = [one for one in fleet.outdated if _is_base(fleet.deployment, fleet.base_revision, one)]
    numbers = Counter(one.revision for one in [*fleet.base, *ending])
    listed = sorted(numbers) or [fleet.base_revision]
    return " and ".join(f"{numbers[revision]} of revision {revision}" for revision in listed)


def _handed_over(fleet: _Fleet) -> str:
    """The middle of a sentence; empty where none is."""
    if not fleet.ending:
        return ""
    return f"; {len(fleet.ending)} of {count(len(fleet.staying), 'replica')} handed over"


def _stop(fleet: _Fleet) -> Counts:
    """What is ready stays, of either revision; the rest of the new one goes, and the old one makes up for it."""
    deployment = fleet.deployment
    ready = sum(replica.state is ReplicaState.READY for replica in fleet.current)
    kept = 0 if failed_as_canary(deployment) else min(ready, fleet.want)
    step = _step(fleet, kept, fleet.want - kept)
    name = deployment.name
    message = (
        f"{failed(deployment)}; the rollout is stopped: apply another spec, go back by"
        f" `penstock rollout undo {name}`, or try again by `penstock restart {name}`"
    )
    return step.counts(Reason.ROLLOUT_FAILED, message)


def failed(deployment: Deployment) -> str:
    """The sentence about a revision that failed."""
    record = deployment.rollout
    return f"revision {record.failed_revision} failed: {record.failed_message}"


def _stand_still(fleet: _Fleet) -> Counts:
    """Nothing is rolled; only the number is kept: a successor is of the revision of the one that it takes over from,
    and what else is missing of the revision that was there before.

    Beside a canary that stands still a stale replica bears no requests: it counts for neither side, and is the first
    that goes where there are too many, as when a successor was made.
    """
    deployment, want, beside = fleet.deployment, fleet.want, _kept_beside(fleet)
    if beside is None:
        most = fleet.most if fleet.is_mixed else want
        have = len(fleet.fresh)
        retired = least_worth(fleet.fresh)[: max(0, have - most)]
        retired += fleet.relieved(but=retired)
        made = min(max(0, want - have), fleet.room(fleet.fresh))
        new = min(made, len(fleet.ending) - len(fleet.outdated))
        made_old = made - new
    else:
        retired = _too_many_beside(fleet, beside)
        retired += fleet.relieved(but=retired, beside=beside)
        room = fleet.room([*fleet.current, *fleet.base], going=retired)
        made_old = min(max(0, beside[1] - len(fleet.base)), room)
        new = min(max(0, beside[0] - len(fleet.current)), room - made_old)
    message = (
        f"the rollout of revision {deployment.revision} stands still until `penstock rollout resume {deployment.name}`;"
        f" {sum(one.revision == deployment.revision for one in fleet.staying)} of {want} are of it"
        f"{_handed_over(fleet)}"
    )
    return _Step(fleet, retired, new, made_old).counts(Reason.ROLLOUT_PAUSED, message)


def _too_many_beside(fleet: _Fleet, beside: tuple[int, int]) -> list[Replica]:
    """Those that go beside a canary that stands still: stale ones first, and of a side that has more than its number as
    many as are in the way of what the other one lacks."""
    surplus = [
        *least_worth(fleet.current)[: max(0, len(fleet.current) - beside[0])],
        *least_worth(fleet.base)[: max(0, len(fleet.base) - beside[1])],
    ]
    lacking = max(0, beside[0] - len(fleet.current)) + max(0, beside[1] - len(fleet.base))
    most = fleet.most if lacking or fleet.is_mixed else fleet.want
    too_many = len(fleet.current) + len(fleet.base) + lacking - most
    stale = least_worth(fleet.stale)[: max(0, len(fleet.fresh) - most)]
    return _spared([*stale, *least_worth(surplus)[: max(0, too_many)]], fleet.ready - fleet.floor)


def _kept_beside(fleet: _Fleet) -> tuple[int, int] | None:
    """How many of the current revision and of old ones a canary that stands still keeps; None: there is none.

    What was not begun is not begun now, so that there may be fewer of the current one than a canary is.
    """
    deployment, want = fleet.deployment, fleet.want
    if want == 0 or not (is_canary(deployment) or failed_as_canary(deployment)):
        return None
    new, old = canary_counts(deployment.spec.rollout, want)
    new = min(new, sum(one.revision == deployment.revision for one in fleet.staying))
    return new, max(old, want - new)


def _let_go(deployment: Deployment, replicas: Sequence[Replica], reason: Reason, message: str) -> Counts:
    actions = tuple(Leave(replica.uid) for replica in replicas)
    decision = Decision(deployment.name, "", reason, message, actions)
    return Counts(decision, frozenset(replica.uid for replica in replicas))


def _is_unborn(replica: Replica) -> bool:
    """Whether it was never ready, and its job may still be there."""
    attempt = replica.live_attempt
    return attempt is not None and attempt.ready_at is None


def least_worth(replicas: Sequence[Replica]) -> list[Replica]:
    """Those that serve nobody first; among equals burst replicas, and of them the youngest."""
    return sorted(
        replicas, key=lambda replica: (_WORTH.get(replica.state, 0), not replica.burst, -replica.number)
    )
