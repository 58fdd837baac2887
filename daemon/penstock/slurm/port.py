"""The port: everything Penstock asks of Slurm, and what it may rely on.

One contract, in words here and as a test suite in `tests/contract`; the fake, the command-line backend and the pyslurm
backend all pass it. The port decides nothing and retries nothing: whether to try again is the controller's business.

The rule guarded here: *unknown is not absent*. A call that cannot be answered in full raises; it never returns
less than the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from penstock.core.jobs import Cluster, Job, Submission

HISTORY_MAX = 200
"""Ids in one question to accounting: slurmdbd looks each of them up."""

May = Callable[[], None]
"""Asked once by a call that changes something, right before anything of it is sent, however long it has waited for its
turn or looked around first. What it raises goes through: then nothing was sent, and the backend is as it was."""


class SlurmError(Exception):
    """What Slurm said no to, or did not say. The message is for people and names the command or call."""


class SlurmUnavailable(SlurmError):
    """Slurm could not be asked, or answered in part or in a form this release cannot read.

    From `submit` it means that nothing was sent. From `cancel` and `signal` it leaves open whether the job was reached:
    both can be repeated.
    """


class SubmissionRefused(SlurmError):
    """Slurm said no: nothing runs or will run from this call. `reason` is Slurm's sentence."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SubmissionUnknown(SlurmError):
    """The call failed in a way that leaves it open whether a job was made: look it up by name, and wait first.

    `answered`: something came back that nothing can be concluded from; Slurm is not silent.
    """

    def __init__(self, message: str, *, answered: bool = False) -> None:
        super().__init__(message)
        self.answered = answered


class NoSuchJob(SlurmError):
    """Slurm knows no such job, or the job with that id bears another name (ids are reused after a state reset)."""


class NoAccounting(SlurmError):
    """Nobody can be asked for jobs that slurmctld has forgotten: the site keeps no accounting, or the backend does not
    ask it."""


class Slurm(Protocol):
    """A Slurm cluster, seen by the one user that Penstock runs as."""

    @property
    def backend(self) -> str:
        """`cli`, `pyslurm` or `fake`; for the log."""
        ...

    @property
    def one_at_a_time(self) -> bool:
        """Whether its calls wait for one another."""
        ...

    async def list_jobs(self) -> tuple[Job, ...]:
        """Every job of this user that Slurm still remembers, ended ones too (MinJobAge, 300 s by default).

        One request to slurmctld, whatever the number of jobs, ordered by id. Array tasks come as one row each;
        those that have not started share their array's id.
        Raises SlurmUnavailable rather than return part of the queue; an empty tuple means an empty queue.
        """
        ...

    async def find(self, name: str) -> tuple[Job, ...]:
        """The jobs of this user with exactly this name, ended ones too. Raises SlurmUnavailable."""
        ...

    async def history(self, job_ids: Sequence[int]) -> tuple[Job, ...]:
        """What accounting (slurmdbd) remembers of this user's jobs with these ids, at most HISTORY_MAX of them.

        One row for each run that it knows, the earlier first; a job it does not know has none. An id that Slurm has
        given twice shows both jobs: the name tells them apart. Comments and restarts are not told.
        Raises NoAccounting, and SlurmUnavailable when slurmdbd does not answer in full. slurmctld is not asked.
        """
        ...

    async def submit(self, submission: Submission, *, may: May) -> int:
        """Make one job and return its id. Not idempotent: calling twice makes two jobs.

        Raises SubmissionRefused when there certainly is no job that could run, SubmissionUnknown when there may be
        one, and SlurmUnavailable when Slurm was certainly not asked. Slurm keeps some refused submissions for a while
        as a FAILED job with the reason BadConstraints; it is listed like any ended job.
        """
        ...

    async def cancel(self, job_id: int, *, name: str, may: May, only_waiting: bool = False) -> None:
        """Cancel the job with this id if it bears this name. Idempotent: an ended job stays as it is, without error.

        `only_waiting`: one that has nodes is left alone, without error. Slurm has no such request: it is looked at
        right before, and a job that starts in that moment may be hit all the same.
        Sends SIGTERM to the batch shell and its steps, then SIGKILL after KillWait.
        Raises NoSuchJob (also when the name differs) and SlurmUnavailable.
        """
        ...

    async def signal(self, job_id: int, signal: str, *, name: str, may: May) -> None:
        """Send a signal such as `TERM` to the batch shell only, if the job bears this name and runs.

        Raises NoSuchJob (also when the job does not run) and SlurmUnavailable.
        """
        ...

    async def cluster(self) -> Cluster:
        """Partitions, nodes and limits as of now. Raises SlurmUnavailable."""
        ...

    async def close(self) -> None:
        """Release what the backend holds (its bridge process, say). Jobs are left alone."""
        ...
