"""How long a successor takes: its wait in Slurm's queue and its cold start, estimated from what was measured before.

Measured are the deployment's own attempts, on this cluster and with this model, so that nobody has to tell what a load
of weights takes. Of the last SAMPLES that became ready the value that QUANTILE of them kept counts: a mean would be
late half of the time, and the worst one would count for days after a bad hour. What Slurm says of jobs that wait right
now counts where it is more: history knows nothing of a queue that has grown since.

Rests on durations of one clock each: the wait is Slurm's, the cold start our own, and how far the two are apart does
not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from penstock.core.jobs import Job
from penstock.core.sentences import count
from penstock.core.spec import Spec

SAMPLES = 20
"""Old enough to be steady, young enough to follow a cluster that fills over a day."""
QUANTILE = 0.9


@dataclass(frozen=True, slots=True)
class Start:
    """How one attempt came to serve."""

    ready_at: datetime
    wait_s: float
    """In Slurm's queue."""
    cold_start_s: float
    """From its job's start to its first generated token."""


@dataclass(frozen=True, slots=True)
class Estimates:
    """What the next attempt of a deployment will probably take."""

    wait_s: int
    cold_start_s: int
    measured: int
    """Of so many attempts; 0: of none."""
    slurm_says: bool = False
    """The wait is what Slurm estimates of a job that waits now."""

    @property
    def sentence(self) -> str:
        """Such as `30 s in the queue and 95 s to start (as 9 in 10 of the last 12 did)`."""
        wait = "as Slurm estimates" if self.slurm_says else ""
        if not self.measured:
            start = "no start was measured yet: spec.probes.startup_timeout_s"
        elif self.measured == 1:
            start = "as the last one did"
        else:
            start = f"as {round(10 * QUANTILE)} in 10 of the last {count(self.measured, 'start')} did"
        return f"{self.wait_s} s in the queue{f' ({wait})' * bool(wait)} and {self.cold_start_s} s to start ({start})"


def start_of(running_since: datetime | None, ready_at: datetime | None, job: Job | None) -> Start | None:
    """What an attempt's row tells of its start; None: it was never ready, or nobody saw its job begin."""
    if running_since is None or ready_at is None or ready_at <= running_since:
        return None
    if job is None or job.submitted_at is None or job.started_at is None:
        return None
    wait_s = (job.started_at - job.submitted_at).total_seconds()
    return Start(ready_at, max(0.0, wait_s), (ready_at - running_since).total_seconds())


def estimate(spec: Spec, starts: Iterable[Start], jobs: Iterable[Job]) -> Estimates:
    """Of a deployment, from its starts in any order and from its jobs as Slurm lists them.

    Before anything was measured a cold start is taken to last as long as it may (`startup_timeout_s`): a guess that is
    too long makes a successor too early, which costs some overlap, and one that is too short cuts the service.
    """
    newest = sorted(starts, key=lambda start: start.ready_at, reverse=True)[:SAMPLES]
    wait_s = _high([start.wait_s for start in newest])
    cold_start_s = _high([start.cold_start_s for start in newest])
    said_s = max(
        (
            math.ceil((job.started_at - job.submitted_at).total_seconds())
            for job in jobs
            if job.waiting and job.started_at is not None and job.submitted_at is not None
        ),
        default=0,
    )
    return Estimates(
        wait_s=max(wait_s, said_s),
        cold_start_s=cold_start_s if newest else spec.probes.startup_timeout_s,
        measured=len(newest),
        slurm_says=said_s > wait_s,
    )


def _high(values: Sequence[float]) -> int:
    """The value that QUANTILE of them do not exceed, in whole seconds; 0 where there are none.

    >>> _high([10.2, 30.0, 20.0]), _high([float(n) for n in range(1, 21)]), _high([])
    (30, 18, 0)
    """
    return math.ceil(sorted(values)[math.ceil(QUANTILE * len(values)) - 1]) if values else 0
