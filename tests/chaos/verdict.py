"""The judgement after the faults: what the watch saw, what Slurm and PostgreSQL hold, and what the log says of it.

Every check returns sentences, one for each violation; an empty list is a rule that held.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from tests.chaos.faults import Foreign
from tests.chaos.watch import FORGED_FOLDER, SeenJob

JOB = re.compile(r"\bjob (\d+)\b")

LIVE_TOKENS = "SELECT token FROM attempts WHERE ended_at IS NULL"
LOG = "SELECT message, actions FROM decisions"
COUNTS = """
SELECT (SELECT count(*) FROM decisions), (SELECT count(DISTINCT tick) FROM decisions),
       (SELECT term FROM leases WHERE name = 'controller')
"""
ROWS = """
SELECT first_at, last_at, count, coalesce(nullif(replica, ''), nullif(deployment, ''), 'cluster'), reason, message,
       actions
FROM decisions ORDER BY id
"""
NOT_CARRIED_OUT = """
SELECT count(*) FROM decisions, jsonb_array_elements(actions) AS action WHERE action->>'outcome' = ''
"""


@dataclass(frozen=True)
class Log:
    """The decision log, in numbers, and which jobs it speaks of."""

    decisions: int
    ticks: int
    terms: int
    without_outcome: int
    """Effects whose controller died before it could write what came of them."""
    jobs: frozenset[int]


def read_log(database: str) -> Log:
    with psycopg.connect(database) as connection:
        decisions, ticks, terms = one(connection, COUNTS)
        (without_outcome,) = one(connection, NOT_CARRIED_OUT)
        named: set[int] = set()
        for message, actions in connection.execute(LOG):
            texts = [message, *(f"{action['target']} {action['outcome']}" for action in actions)]
            named |= {int(id_) for text in texts for id_ in JOB.findall(text)}
    return Log(decisions, ticks, terms, without_outcome, frozenset(named))


def write_log(database: str, path: Path) -> None:
    """The decision log as it is in the end, a line for each row: for whoever asks why something did not converge."""
    with psycopg.connect(database) as connection, path.open("w") as lines:
        for first_at, last_at, count, subject, reason, message, actions in connection.execute(ROWS):
            done = ", ".join(f"{one['action']} {one['target']}: {one['outcome']}" for one in actions)
            lines.write(f"{first_at:%T} {last_at:%T} {count}x {subject} {reason}: {message} > {done}\n")


def one(connection: psycopg.Connection[Any], statement: str) -> Any:
    row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return row


def live_tokens(database: str) -> frozenset[str]:
    with psycopg.connect(database) as connection:
        return frozenset(token for (token,) in connection.execute(LIVE_TOKENS))


def orphans(jobs: Iterable[SeenJob], owned: frozenset[str], installation: str) -> list[str]:
    return [
        f"job {job.id} ({job.name}) is {job.state} and no live attempt owns it"
        for job in jobs
        if job.live and job.token(installation) not in owned
    ]


def unexplained(jobs: Iterable[SeenJob], log: Log) -> list[str]:
    return [f"the log never speaks of job {job.id} ({job.name})" for job in jobs if job.id not in log.jobs]


def foreign(jobs: Iterable[SeenJob], submitted: Iterable[Foreign]) -> list[str]:
    """Held jobs of others are still held; orphans that bear a right mark are gone."""
    forged = {(job.id, job.name): job for job in jobs if job.folder == FORGED_FOLDER}
    wrong = []
    for job in submitted:
        seen = forged.get((job.id, job.name))
        if seen is None or (job.orphan and seen.gone):
            continue  # Lost with a slurmctld that was killed before it had saved it.
        if job.orphan and seen.state != "CANCELLED":
            wrong.append(f"job {job.id} ({job.forged}) is {seen.state}; it should have been cancelled")
        if not job.orphan and seen.state != "PENDING":
            wrong.append(
                f"foreign job {job.id} ({job.forged}) is {seen.state}; it should have been left alone"
            )
    return wrong


def slow(fail_overs_s: Iterable[float], within_s: float) -> list[str]:
    return [
        f"no new leader for {took_s:.1f} s after a kill, with a standby, PostgreSQL and Slurm there"
        for took_s in fail_overs_s
        if took_s > within_s
    ]


def crashed(log: str) -> list[str]:
    """Bugs that the daemon's own log tells of, each sort once with its number."""
    lines = log.splitlines()
    found = Counter(
        lines[index - 1] if not line.startswith("Traceback") else _last_of(lines, index)
        for index, line in enumerate(lines)
        if line.startswith("Traceback")
    )
    return [f"{count} times in the log: {line}" for line, count in found.items()]


def _last_of(lines: list[str], start: int) -> str:
    """The line that names the exception."""
    for line in lines[start + 1 :]:
        if line and not line.startswith((" ", "\t", "|", "+")):
            return line
    return lines[start]
