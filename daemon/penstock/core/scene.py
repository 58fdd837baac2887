"""What a decision about one replica rests on, and what comes of it: all that `replicas` and its like take and give.

Knows no situation; each of those has a module of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from penstock.core import handover
from penstock.core.altered import Altered
from penstock.core.budget import HeldBack
from penstock.core.decisions import Action, Decision, Reason
from penstock.core.estimates import Estimates
from penstock.core.jobs import Job
from penstock.core.model import Attempt, Deployment, Heard, Replica, ReplicaState
from penstock.core.spec import OutsideChanges, Spec
from penstock.core.suspects import Suspect
from penstock.core.walltime import NO_BOUNDS, Bounds, with_own_drain

LEFT_CANCELLED = (
    "it stays so until the deployment is restarted or gets another revision, or the replica is drained:"
    " spec.outside_changes is respect"
)
"""Of a job that somebody cancelled: what ends it."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What was found out about one replica, and what follows."""

    decision: Decision
    state: ReplicaState
    message: str
    handed_over: bool = False
    """A successor is to take over from it."""
    new_run: Attempt | None = None
    """Its attempt without what is stored of an earlier run, where this look is the first that saw the job requeued."""
    waits_anew: bool = False
    """It was queued before and is again, and had nodes in between: its wait counts from now."""
    ends_at: datetime | None = None
    """Of one handed over: when its job ends; None: nothing is known to end it."""


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a decision about one replica rests on."""

    now: datetime
    deployment: Deployment
    replica: Replica
    job: Job | None
    """The attempt's job in the listing."""
    message_timeout_s: int
    heard: Heard | None
    """When the agents' reports were heard; None: nobody hears them now."""
    past: Job | None = None
    """What accounting says of the attempt's job, where it has vanished and accounting was asked."""
    held_back: HeldBack | None = None
    """The deployment's budget of failures does not allow this replica another attempt now."""
    avoiding: tuple[Suspect, ...] = ()
    """Nodes that a submission stays away from."""
    crowded: tuple[str, ...] = ()
    """Further ones that run replicas of the deployment already."""
    company: tuple[str, ...] = ()
    """Nodes that a submission asks for, because they run replicas of the deployment."""
    id_taken: bool = False
    """The job's id is another attempt's too. Slurm gives ids again after it has lost its state."""
    estimates: Estimates | None = None
    """What a successor would take; None: nothing is handed over now."""
    threats: tuple[handover.Threat, ...] = ()
    """What will take the job's nodes from it, besides its time limit."""
    bounds: Bounds = NO_BOUNDS
    """What the time limit of a submission must keep."""
    altered: Altered | None = None
    """`job` does not bear our mark any more."""
    answers_since: datetime | None = None
    """As in `Listing`."""

    @property
    def spec(self) -> Spec:
        """The deployment's, with the replica's own drain timeout."""
        return with_own_drain(self.deployment.spec, self.replica)

    @property
    def respects(self) -> bool:
        """Whether what somebody else does to the job stays as it is."""
        return self.deployment.spec.outside_changes is OutsideChanges.RESPECT

    def lately(self, at: datetime, within_s: float) -> bool:
        """Whether a report of `at` is less than so old. One from a time yet to come was written before the database's
        clock went back, or by a host that is a little ahead: it keeps nothing waiting for longer than one from as long
        ago would."""
        return abs(self.now - at) < timedelta(seconds=within_s)

    def decide(self, reason: Reason, state: ReplicaState, message: str, *actions: Action) -> Outlook:
        """The outlook whose decision and replica say the same sentence."""
        decision = Decision(self.deployment.name, self.replica.name, reason, message, actions)
        return Outlook(decision, state, message)
