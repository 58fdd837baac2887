"""A job inside the fake Slurm: what was asked, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from penstock.core.jobs import JobState, Partition, Submission


@dataclass(slots=True)
class FakeJob:
    """A job inside the fake. Hooks get it to read; change it through FakeSlurm's methods."""

    job_id: int
    submission: Submission
    partition: Partition
    state: JobState
    reason: str
    submitted_at: datetime
    eligible_at: datetime
    """Not considered by the scheduler before this."""
    time_limit_s: int | None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    nodes: tuple[str, ...] = ()
    restarts: int = 0
    exit_code: int | None = None
    exit_signal: int | None = None
    warned: bool = False
    ending: JobState | None = None
    """What it will be once its processes are gone; then the state is COMPLETING."""
    kill_at: datetime | None = None
    shown: tuple[JobState, str] | None = None
    """What a listing calls its state, where that is not `state`; see `FakeSlurm.show`."""
    comment: str | None = None
    """What somebody wrote over the submission's."""
    renamed: str | None = None
    """The same for its name."""

    @property
    def name(self) -> str:
        """What Slurm calls it now."""
        return self.submission.name if self.renamed is None else self.renamed

    @property
    def limit_at(self) -> datetime | None:
        if self.started_at is None or self.time_limit_s is None:
            return None
        return self.started_at + timedelta(seconds=self.time_limit_s)

    @property
    def active(self) -> bool:
        """Whether it holds nodes."""
        return self.state in (JobState.RUNNING, JobState.COMPLETING)

    @property
    def ended(self) -> bool:
        return self.ended_at is not None
