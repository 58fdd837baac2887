"""What a client may hope for whose deployment has no ready replica: whether one will come, and when at the earliest.

Pure, like a decision, and none: nothing is started for it. The rule guarded here: what is not known is no reason to
turn a client away; only what is known to come too late, or not at all, is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from penstock.core import adapters
from penstock.core.conditions import LOOP_FAILURES, summary
from penstock.core.estimates import Start, estimate
from penstock.core.jobs import Job
from penstock.core.model import Attempt, Deployment, Replica
from penstock.core.slurm_words import Wait, waits_for
from penstock.core.spec import OutsideChanges


@dataclass(frozen=True, slots=True)
class Prospect:
    """As of one instant."""

    sentence: str
    """How the deployment is: `0 of 1 ready: queued in Slurm as job 7, Resources, estimated start 14:03`."""
    hopeless: str = ""
    """Why no replica will come unless somebody does something; empty: one may."""
    wait_s: float = 0.0
    """No replica can be ready sooner than in so many seconds; 0: one may be at any time, as far as is known."""
    job: Job | None = None
    """The job that is nearest to being ready, as last seen."""
    ready_at: datetime | None = None
    """When the first replica will probably be ready, by its job's start, or Slurm's estimate of it, and the cold starts
    that were measured. It turns nobody away. None: nothing says."""


def prospect(
    deployment: Deployment, replicas: Sequence[Replica], now: datetime, starts: Sequence[Start] = ()
) -> Prospect:
    """Of a deployment with all its replicas that are not removed, and how its last attempts came to serve."""
    sentence = summary(deployment, [(replica.state, replica.message) for replica in replicas])
    staying = [replica for replica in replicas if not replica.leaving]
    hopeless = _hopeless(deployment, staying)
    if hopeless:
        return Prospect(sentence, hopeless)
    expected = [_not_before(replica, now) for replica in staying if _comes(deployment, replica)]
    if not deployment.paused and len(staying) < deployment.spec.replicas:
        expected.append(None)  # One that is not made yet; nothing is known of it.
    known = [moment for moment in expected if moment is not None]
    jobs = [attempt.job for replica in staying if (attempt := _upward(replica)) is not None and attempt.job]
    return Prospect(
        sentence,
        wait_s=(min(known) - now).total_seconds() if known and len(known) == len(expected) else 0.0,
        # Running ones first, then the one that Slurm expects to start first.
        job=min(jobs, key=lambda job: (job.waiting, _start(job) is None, _start(job) or now), default=None),
        ready_at=_ready_at(deployment, staying, now, starts),
    )


def _ready_at(
    deployment: Deployment, staying: Sequence[Replica], now: datetime, starts: Sequence[Start]
) -> datetime | None:
    measured = estimate(deployment.spec, starts, ())
    if not measured.measured:
        return None
    cold_start = timedelta(seconds=measured.cold_start_s)
    upward = [attempt for replica in staying if (attempt := _upward(replica)) is not None]
    begun = [attempt.running_since or (_start(attempt.job) if attempt.job else None) for attempt in upward]
    return min((at + cold_start for at in begun if at is not None and at + cold_start > now), default=None)


def adapter_prospect(
    deployment: Deployment,
    replicas: Sequence[Replica],
    adapter: str,
    now: datetime,
    starts: Sequence[Start] = (),
) -> Prospect:
    """The same for a model that is an adapter. A replica that is still to come loads it before it is ready."""
    ready = [replica for replica in replicas if adapters.judged(deployment, replica)]
    if not ready:
        return prospect(deployment, replicas, now, starts)
    lacking = [
        lack for replica in ready for lack in adapters.lacks(deployment, replica) if lack.adapter == adapter
    ]
    if not lacking:  # It was loaded this moment.
        return Prospect(f"{len(ready)} of {deployment.spec.replicas} ready")
    failed = [lack for lack in lacking if lack.message]
    told = adapters.told(failed[:1] or lacking[:1])
    sentence = (
        f"{len(ready) - len(lacking)} of {len(ready)} ready replicas have it; {lacking[0].replica}: {told}"
    )
    return Prospect(sentence, "no replica can load it" if len(failed) == len(ready) else "")


def _hopeless(deployment: Deployment, staying: Sequence[Replica]) -> str:
    if deployment.deleted_at is not None:
        return "it is being deleted"
    if deployment.spec.replicas == 0:
        return "it is scaled to 0 replicas"
    if any(_comes(deployment, replica) for replica in staying):
        return ""
    if deployment.paused:
        return "it is paused, and none of its jobs is on the way to being ready"
    if len(staying) < deployment.spec.replicas:
        return ""
    if any(_blocked(deployment, replica) for replica in staying):
        return "what its jobs wait for in Slurm's queue is somebody who acts"
    failures = max(replica.failures for replica in staying)
    return f"its replicas crash-loop, one of them {failures} times in a row"


def _comes(deployment: Deployment, replica: Replica) -> bool:
    """Whether it may become ready with nobody's help."""
    if replica.failures >= LOOP_FAILURES or _blocked(deployment, replica):
        return False
    return not deployment.paused or _upward(replica) is not None


def _blocked(deployment: Deployment, replica: Replica) -> bool:
    """Whether its job waits for somebody, and nothing else will be tried for it."""
    attempt = _upward(replica)
    if attempt is None or attempt.job is None or not attempt.job.waiting:
        return False
    wait = waits_for(attempt.job.state, attempt.job.reason)
    if wait is Wait.SOMEBODY:
        return len(deployment.spec.placements) == 1
    held = wait in (Wait.HELD, Wait.HELD_BY_SLURM)
    return held and deployment.spec.outside_changes is OutsideChanges.RESPECT


def _upward(replica: Replica) -> Attempt | None:
    """The live attempt, if it is not on its way out."""
    attempt = replica.live_attempt
    if attempt is None or attempt.drain_at or attempt.signalled_at or attempt.cancelled_at:
        return None
    return attempt


def _not_before(replica: Replica, now: datetime) -> datetime | None:
    attempt = _upward(replica)
    if attempt is not None:
        start = _start(attempt.job) if attempt.job is not None else None
    else:
        start = replica.next_attempt_at if replica.live_attempt is None else None
    return start if start is not None and start > now else None


def _start(job: Job) -> datetime | None:
    """Slurm's estimate for a job that waits."""
    return job.started_at if job.waiting else None
