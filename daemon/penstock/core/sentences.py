"""Small pieces of the sentences that decisions are said in."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from penstock.core.jobs import Job, JobState
from penstock.core.slurm_words import STATES, reason_row


def clock(at: datetime, now: datetime) -> str:
    """A time of day in the time zone of `now`, with the date where it is another day."""
    local = at.astimezone(now.tzinfo)
    return f"{local:%H:%M:%S}" if local.date() == now.date() else f"{local:%Y-%m-%d %H:%M}"


def count(number: int, noun: str) -> str:
    """`1 replica`, `2 replicas`: for nouns that take a plain s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def ranges(numbers: Iterable[int]) -> str:
    """Which numbers there are, in order.

    >>> ranges([7, 1, 6, 3, 5])
    '1, 3, 5 to 7'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join(" to ".join(str(end) for end in run) for run in runs)


def estimate(at: datetime, now: datetime) -> str:
    """A time that Slurm guesses, to the minute: finer would be another sentence at each of its guesses."""
    local = at.astimezone(now.tzinfo)
    return f"{local:%H:%M}" if local.date() == now.date() else f"{local:%Y-%m-%d %H:%M}"


def queue_wait(job: Job, now: datetime) -> str:
    """Why a job waits, as Slurm says it: `queued in Slurm as job 7, Resources, estimated start 14:03`.

    An estimate that has passed says nothing any more and is left out. A job that ran before, and was requeued by
    Slurm or by somebody, is said to have been: it is in the queue although nothing was submitted.
    """
    parts = [f"queued in Slurm as job {job.job_id}", job.reason or "no reason given yet"]
    if job.restarts:
        parts[0] += f", requeued {count(job.restarts, 'time')}"
    if job.started_at is not None and job.started_at > now:
        parts.append(f"estimated start {estimate(job.started_at, now)}")
    return ", ".join(parts)


def why_blocked(job: Job) -> str:
    """Why waiting does not help: `job 7 never starts as it is: PartitionTimeLimit: its time limit is above ...`."""
    row = reason_row(job.reason)
    meaning = f": {_inside(row.meaning)}" if row is not None else ""
    return f"job {job.job_id} never starts as it is: {job.reason}{meaning}"


def _inside(sentence: str) -> str:
    """A sentence as a part of another one."""
    return sentence[0].lower() + sentence[1:].rstrip(".")


_PLAIN_ENDS = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})
"""Ends whose word says it all."""


def job_end(job: Job, exit_code: int | None) -> str:
    """How a job ended: `job 7 ended as FAILED with exit code 1 (NonZeroExitCode)`, and what a rarer word means."""
    text = f"job {job.job_id} ended as {job.state}"
    if job.state is not JobState.COMPLETED and exit_code:
        text += f" with exit code {exit_code}"
    if job.exit_signal:
        text += f", signal {job.exit_signal}"
    text += f" ({job.reason})" if job.reason else ""
    return text if job.state in _PLAIN_ENDS else f"{text}: {_inside(STATES[job.state].meaning)}"
