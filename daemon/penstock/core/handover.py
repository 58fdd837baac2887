"""When a successor is to take over from a replica: before its job's time is up, before maintenance takes its nodes, or
because somebody drains its node.

Theory. A job ends when Slurm says, so the successor must be ready before: it is due when the time that is left is no
longer than what it may take (`estimates`) and the deployment's margin. From then on the replica is one too many
(`rollout`), and it drains when the successor is ready; if that comes too late, the old one serves until its end, and
the signal ahead of the time limit lets it finish what it has.

What was once decided stands for that run of the job, whatever the estimates say later: a successor is not made and
unmade with each guess. A run that begins anew, after a requeue or a halt, is looked at anew.

Slurm's clock may be an hour away from ours. So no time of Slurm's is ever compared with our `now`: what counts is how
long after the job's start something happens, by Slurm's clock, and when that start was, by ours (`by_our_clock`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from penstock.core.estimates import Estimates
from penstock.core.jobs import Job
from penstock.core.model import Attempt
from penstock.core.sentences import clock
from penstock.core.spec import Spec
from penstock.core.walltime import warning_s

SHARE_MAX = 2
"""A successor is due after the first half of a job's time at the earliest: a replica is there to serve, and
estimates that are longer than the time limit itself must not make one successor after the other."""

SIGNAL_EARLY_S = 30
"""By so much the signal ahead of a time limit may come too early: slurmctld looks every 30 s, and sends what would be
due before it looks again (PERIODIC_TIMEOUT)."""


@dataclass(frozen=True, slots=True)
class Threat:
    """Something besides its time limit that will take a running job's nodes from it."""

    why: str
    """Such as `node gpu3 is drained`."""
    at: datetime | None = None
    """By Slurm's clock; None: as soon as the job leaves."""
    patience_s: int = 0
    """For so long a successor waits at placements that have no nodes for it, before it is at one that has."""


@dataclass(frozen=True, slots=True)
class Due:
    """When a successor is due, and why."""

    at: datetime
    ends_at: datetime | None
    """When the job ends. None: nothing ends it, and it is in somebody's way."""
    why: str


def handed_over(attempt: Attempt) -> bool:
    """Whether it was decided of this very run that a successor takes over."""
    since, run = attempt.handover_at, attempt.running_since
    return since is not None and run is not None and since >= run


def by_our_clock(attempt: Attempt, job: Job, moment: datetime) -> datetime | None:
    """When `moment`, of Slurm's clock and after the job's start, is by ours; None: that cannot be known.

    Two facts bind the clocks together: the job was not seen to run before it started, and it was not submitted before
    we asked for it. Each can only make the moment too late (we were away when it started; sbatch took its time), so the
    earlier one is the better one.
    """
    if job.started_at is None or attempt.running_since is None:
        return None
    found = attempt.running_since + (moment - job.started_at)
    # A requeue gives the job another time of submission, of which nobody told us.
    if job.restarts == 0 and attempt.submitted_at is not None and job.submitted_at is not None:
        found = min(found, attempt.submitted_at + (moment - job.submitted_at))
    return found


def limit_at(attempt: Attempt, job: Job) -> datetime | None:
    """When this running job reaches its time limit as it is now: whoever alters it alters the job's end with it.

    None: it has no limit. What Slurm gives as such a job's end is a year away and means nothing.
    """
    if job.time_limit_s is None or job.ends_at is None:
        return None
    return by_our_clock(attempt, job, job.ends_at)


def end_of(attempt: Attempt, job: Job, threats: Sequence[Threat]) -> datetime | None:
    """When this running job ends, by its limit or by what threatens it; None: nothing is known to end it."""
    ends = [by_our_clock(attempt, job, one.at) for one in threats if one.at is not None]
    return min((end for end in (limit_at(attempt, job), *ends) if end is not None), default=None)


def due(
    spec: Spec,
    attempt: Attempt,
    job: Job,
    estimates: Estimates,
    now: datetime,
    threats: Sequence[Threat] = (),
) -> Due | None:
    """When a successor of this running job is due; None: nothing ends it, or its deployment hands nothing over."""
    if not spec.handover.enabled or attempt.running_since is None:
        return None
    found = [_of_threat(spec, attempt, job, estimates, now, threat) for threat in threats]
    found.append(_of_limit(spec, attempt, job, estimates, now))
    return min((one for one in found if one is not None), key=lambda one: one.at, default=None)


def _of_limit(spec: Spec, attempt: Attempt, job: Job, estimates: Estimates, now: datetime) -> Due | None:
    ends_at = limit_at(attempt, job)
    if ends_at is None or job.ends_at is None or job.started_at is None:
        return None
    # The agent is told to drain ahead of the limit, and the successor must be there before that.
    warned_s = warning_s(spec, job.time_limit_s) + SIGNAL_EARLY_S
    lead_s = min(
        estimates.wait_s + estimates.cold_start_s + spec.handover.margin_s,
        max(0, int((job.ends_at - job.started_at).total_seconds()) - warned_s) // SHARE_MAX,
    )
    at = clock(ends_at, now)
    why = f"job {job.job_id} reaches its time limit at {at} and may be told to drain {warned_s} s before"
    return Due(ends_at - timedelta(seconds=warned_s + lead_s), ends_at, why)


def _of_threat(
    spec: Spec, attempt: Attempt, job: Job, estimates: Estimates, now: datetime, threat: Threat
) -> Due | None:
    if attempt.running_since is None:
        return None
    if threat.at is None:
        return Due(attempt.running_since, None, threat.why)
    at = by_our_clock(attempt, job, threat.at)
    if at is None:
        return None
    lead_s = threat.patience_s + estimates.wait_s + estimates.cold_start_s + spec.handover.margin_s
    why = f"{threat.why} at {clock(at, now)}"
    if threat.patience_s:
        why += f", and only a placement after {threat.patience_s} s of patience has other nodes"
    return Due(max(attempt.running_since, at - timedelta(seconds=lead_s)), at, why)


def sentence(found: Due, spec: Spec, estimates: Estimates) -> str:
    """Why a successor is made now, with the numbers."""
    if found.ends_at is None:
        return f"{found.why}; a successor takes over elsewhere"
    return (
        f"{found.why}; a successor may take {estimates.sentence}, with {spec.handover.margin_s} s to spare,"
        " and is due"
    )
