"""Jobs of ours whose mark somebody rewrote: `scontrol update` of Comment or JobName, or a site's job_submit plugin.

Such a job is there, so its attempt has not ended, and another one would run beside it (rule 1). But it does not bear
our mark, so it is not ours to touch (rule 2). One that has only got another deployment's name is as far away: effects
call the job by the name that its attempt gave it. What is left is to know it, by its id together with what still stands
of name and comment, and to say how the mark is put back. A job of which only the id agrees is somebody else's: Slurm
gives ids again after it has lost its state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from penstock.core.jobs import Job
from penstock.core.model import JOB_NAME_PREFIX, Attempt, job_comment, job_name


@dataclass(frozen=True, slots=True)
class Unmarked:
    """The listed jobs that do not bear our mark."""

    by_id: Mapping[int, Job]
    by_name: Mapping[str, Job]
    """Those alone whose name may be one of ours."""


@dataclass(frozen=True, slots=True)
class Altered:
    """An attempt's job without our mark."""

    job: Job
    message: str
    """What is another, and how it is put back."""


def unmarked(jobs: Iterable[Job]) -> Unmarked:
    """The index of `jobs`, none of which bears our mark."""
    by_id = {job.job_id: job for job in jobs}
    return Unmarked(by_id, {job.name: job for job in by_id.values() if job.name.startswith(JOB_NAME_PREFIX)})


def renamed(attempt: Attempt, deployment: str, job: Job | None) -> Altered | None:
    """The attempt's job, which bears our mark, if its name is not the one that it was submitted under."""
    name = job_name(deployment, attempt.token)
    if job is None or job.name == name:
        return None
    return _altered(job, "name", f"JobName={name}")


def altered_job(attempt: Attempt, deployment: str, installation: str, among: Unmarked) -> Altered | None:
    """The attempt's job among those without our mark, if it is there."""
    name, comment = job_name(deployment, attempt.token), job_comment(installation, attempt.token)
    job = among.by_name.get(name) if attempt.job_id is None else among.by_id.get(attempt.job_id)
    if job is None:
        return None
    if job.name == name:
        return _altered(job, "comment", f"Comment='{comment}'")
    return _altered(job, "name", f"JobName={name}") if job.comment == comment else None


def _altered(job: Job, what: str, remedy: str) -> Altered:
    message = (
        f"job {job.job_id}'s {what} is no longer ours; put it back with scontrol update JobId={job.job_id} {remedy};"
        " until then it is neither touched nor replaced"
    )
    return Altered(job, message)
