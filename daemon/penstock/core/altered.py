"""Jobs of ours whose mark somebody rewrote: `scontrol update Comment=`, or a site's job_submit plugin.

Such a job is there, so its attempt has not ended, and another one would run beside it (rule 1). But it does not bear
our mark, so it is not ours to touch (rule 2). What is left is to know it, by its id together with what still stands of
name and comment, and to say how the mark is put back. A job of which only the id agrees is somebody else's: Slurm gives
ids again after it has lost its state.
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


def altered_job(attempt: Attempt, deployment: str, installation: str, among: Unmarked) -> Altered | None:
    """The attempt's job among those without our mark, if it is there."""
    name, comment = job_name(deployment, attempt.token), job_comment(installation, attempt.token)
    job = among.by_name.get(name) if attempt.job_id is None else among.by_id.get(attempt.job_id)
    if job is None:
        return None
    if job.name == name:
        what, remedy = "comment", f"Comment='{comment}'"
    elif job.comment == comment:
        what, remedy = "name", f"JobName={name}"
    else:
        return None
    message = (
        f"job {job.job_id}'s {what} is no longer ours; put it back with scontrol update JobId={job.job_id} {remedy};"
        " until then it is neither touched nor replaced"
    )
    return Altered(job, message)
