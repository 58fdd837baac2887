"""What came of effects, written down: many in one transaction.

An attempt and its line in the log are written together, so that neither can lack what the other says (rule 6). Who
crashes before has lost no more than the words: a job that nobody wrote down bears its attempt's token.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.controller.record import Intent
from penstock.store.database import Database
from penstock.store.queries import attempts, decisions

NOT_KNOWN = "not known: "
"""Begins the words of a submission that may have been taken."""


class Result(enum.Enum):
    """What an effect did for the plan."""

    DONE = "it was answered: the next listing, or the next plan, shows it"
    VAIN = "it was tried, and nothing is known to have come of it; it is tried again, at growing intervals"
    OPEN = "it was not tried"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one effect, and what of it the attempt's row must know."""

    intent: Intent
    text: str
    result: Result = Result.DONE
    job_id: int | None = None
    """The job that Slurm made of a submission."""
    write: Callable[[AsyncConnection], Awaitable[object]] | None = None
    """Anything else."""


async def write(db: Database, outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Writes them all, and returns them as they were written.

    Where a job's id is still another live attempt's (Slurm gives ids again after it has lost its state), the log says
    so, and the planner takes the job by its token once that attempt has ended.
    """
    try:
        async with db.transaction() as connection:
            await _write(connection, outcomes)
        return tuple(outcomes)
    except IntegrityError:
        if len(outcomes) > 1:  # One of them; the others must not go with it.
            return tuple([written for outcome in outcomes for written in await write(db, [outcome])])
        (outcome,) = outcomes
        if outcome.job_id is None and outcome.write is None:
            raise
        text = outcome.text + ", but that id is still another attempt's"
        return await write(db, [replace(outcome, text=text, job_id=None, write=None)])


async def _write(connection: AsyncConnection, outcomes: Sequence[Outcome]) -> None:
    submitted = [(outcome.intent.token, outcome.job_id) for outcome in outcomes if outcome.job_id is not None]
    await attempts.record_job_ids(connection, submitted)
    for outcome in outcomes:
        if outcome.write is not None:
            await outcome.write(connection)
    await decisions.record_outcomes(
        connection,
        [(outcome.intent.decision_id, outcome.intent.position, outcome.text) for outcome in outcomes],
    )
