"""Small pieces of the sentences that decisions are said in."""

from __future__ import annotations

from datetime import datetime

from penstock.core.jobs import Job, JobState


def clock(at: datetime, now: datetime) -> str:
    """A time of day in the time zone of `now`, with the date where it is another day."""
    local = at.astimezone(now.tzinfo)
    return f"{local:%H:%M:%S}" if local.date() == now.date() else f"{local:%Y-%m-%d %H:%M}"


def count(number: int, noun: str) -> str:
    """`1 replica`, `2 replicas`: for nouns that take a plain s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def estimate(at: datetime, now: datetime) -> str:
    """A time that Slurm guesses, to the minute: finer would be another sentence at each of its guesses."""
    local = at.astimezone(now.tzinfo)
    return f"{local:%H:%M}" if local.date() == now.date() else f"{local:%Y-%m-%d %H:%M}"


def queue_wait(job: Job, now: datetime) -> str:
    """Why a job waits, as Slurm says it: `queued in Slurm as job 7, Resources, estimated start 14:03`.

    An estimate that has passed says nothing any more and is left out.
    """
    parts = [f"queued in Slurm as job {job.job_id}", job.reason or "no reason given yet"]
    if job.started_at is not None and job.started_at > now:
        parts.append(f"estimated start {estimate(job.started_at, now)}")
    return ", ".join(parts)


def job_end(job: Job, exit_code: int | None) -> str:
    """How a job ended: `job 7 ended as FAILED with exit code 1 (NonZeroExitCode)`."""
    text = f"job {job.job_id} ended as {job.state}"
    if job.state is not JobState.COMPLETED and exit_code:
        text += f" with exit code {exit_code}"
    if job.exit_signal:
        text += f", signal {job.exit_signal}"
    return f"{text} ({job.reason})" if job.reason else text
