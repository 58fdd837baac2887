"""Carrying out what was written down: one idempotent branch for each effect, and no policy.

Each intent is in the database before this file sees it. A branch begins with nothing but its intent, calls
Slurm, and writes what came of it. A crash before the call leaves an attempt without a job, which the planner
finds in doubt; a crash after it leaves a job with the attempt's token, which the planner adopts. An error of
Slurm's is an outcome, not an exception.

The rule guarded here is the seventh: right before each call that changes something in Slurm the lease is asked, by
the database's clock and by our own, however long the branch has waited since the tick began.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.controller.folders import Folders
from penstock.controller.lease import Lease
from penstock.controller.record import Intent, Launch
from penstock.core import decisions as acts
from penstock.slurm.port import (
    NoSuchJob,
    Slurm,
    SlurmError,
    SlurmUnavailable,
    SubmissionRefused,
    SubmissionUnknown,
)
from penstock.store.database import Database
from penstock.store.errors import LeaseLost
from penstock.store.queries import attempts, decisions

log = logging.getLogger(__name__)

CONCURRENCY = 8
"""Effects at a time. slurmctld serves submissions one after the other; more would only fill its queue."""

SILENT_AFTER = 8
"""Calls in a row without an answer, after which the rest of a tick's effects are not tried. A slurmctld that hangs
costs each call its whole time-out, and a thousand of them would keep the controller from looking for an hour. More than
one, so that a job whose submission alone is never answered keeps nobody else from being submitted."""

DONE = "done"
NOT_TRIED = "not tried: Slurm does not answer"

Write = Callable[[AsyncConnection], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class _Result:
    """What came of an effect, and what of it the attempt's row must know."""

    outcome: str
    write: Write | None = None


@dataclass(slots=True)
class _Silence:
    """How long Slurm has not answered within one tick."""

    calls: int = 0


class Executor:
    """Acts on Slurm for the lease's holder."""

    def __init__(
        self, db: Database, slurm: Slurm, lease: Lease, folders: Folders, clock: Callable[[], datetime]
    ) -> None:
        self._db = db
        self._slurm = slurm
        self._lease = lease
        self._folders = folders
        self._clock = clock
        self._slots = asyncio.Semaphore(CONCURRENCY)

    async def carry_out(self, tick: str, intents: Sequence[Intent]) -> None:
        """Carries all of them out, several at a time, and returns when each has its outcome.

        Where Slurm falls silent the rest is not tried. The planner asks for it again: a submission that was not tried
        is in doubt to it like any other without a job.
        Raises the first failure that is neither Slurm's nor the lease's (a bug, or the database), after all
        have ended.
        """
        silence = _Silence()
        results = await asyncio.gather(
            *(self._one(tick, intent, silence) for intent in intents), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _one(self, tick: str, intent: Intent, silence: _Silence) -> None:
        async with self._slots:
            try:
                if silence.calls >= SILENT_AFTER:
                    result = _Result(NOT_TRIED)
                else:
                    result = await self._branch(intent)()
                    silence.calls = 0
            except (SlurmUnavailable, SubmissionUnknown) as error:
                silence.calls += 1
                result = _Result(
                    f"not known: {error}" if isinstance(error, SubmissionUnknown) else str(error)
                )
            except SlurmError as error:
                result = _Result(str(error))
            except LeaseLost as lost:
                log.warning("tick %s: %s is left to the lease's new holder: %s", tick, intent.action, lost)
                return
            outcome = await self._write(intent, result)
            log.info("tick %s: %s %s: %s", tick, type(intent.action).__name__, intent.token, outcome)

    async def _write(self, intent: Intent, result: _Result) -> str:
        """Writes to the attempt and to the log in one transaction, so that neither can lack what the other says.

        Where the job's id is still another live attempt's (Slurm gives ids again after it has lost its state), the
        planner takes the job by its token once that attempt has ended.
        """
        outcome = result.outcome
        if result.write is not None:
            try:
                async with self._db.transaction() as connection:
                    await result.write(connection)
                    await decisions.record_outcome(connection, intent.decision_id, intent.position, outcome)
                return outcome
            except IntegrityError:
                outcome += ", but that id is still another attempt's"
        async with self._db.transaction() as connection:
            await decisions.record_outcome(connection, intent.decision_id, intent.position, outcome)
        return outcome

    def _branch(self, intent: Intent) -> Callable[[], Awaitable[_Result]]:
        match intent.action, intent.launch:
            case acts.Submit(), Launch() as launch:
                return lambda: self._submit(intent.token, launch)
            case acts.Resubmit(), Launch() as launch:
                return lambda: self._resubmit(intent.token, launch)
            case acts.Drain() as drain, _:
                return lambda: self._drain(drain)
            case acts.Cancel() as cancel, _:
                return lambda: self._cancel(cancel)
            case acts.CancelOrphan() as orphan, _:
                return lambda: self._cancel_orphan(orphan)
            case _:
                raise TypeError(f"{intent.action} is no effect")

    async def _submit(self, token: str, launch: Launch) -> _Result:
        try:
            await asyncio.to_thread(self._folders.prepare, token, launch.config, launch.secret)
        except OSError as error:
            return _refused(token, f"the attempt's folder cannot be made: {error}")
        async with self._db.transaction() as connection:
            await self._lease.fence(connection)
            await attempts.mark_submitting(connection, token, self._clock())
        self._lease.require()
        try:
            job_id = await self._slurm.submit(launch.submission)
        except SubmissionRefused as refusal:
            return _refused(token, refusal.reason)
        return _Result(f"job {job_id}", lambda conn: attempts.record_job_id(conn, token, job_id))

    async def _prove_lease(self) -> None:
        """Raises LeaseLost unless the lease is ours by the database's clock, and then still by our own."""
        async with self._db.transaction() as connection:
            await self._lease.fence(connection)
        self._lease.require()

    async def _resubmit(self, token: str, launch: Launch) -> _Result:
        found = await self._slurm.find(launch.submission.name)
        if not found:
            return await self._submit(token, launch)
        job = min(found, key=lambda job: (job.ended, job.job_id))
        return _Result(
            f"found as job {job.job_id}", lambda conn: attempts.record_job_id(conn, token, job.job_id, job)
        )

    async def _drain(self, drain: acts.Drain) -> _Result:
        await self._prove_lease()
        try:
            await self._slurm.signal(drain.job_id, "TERM", name=drain.name)
        except NoSuchJob as gone:
            return _Result(f"nothing to signal: {gone}")
        return _Result(DONE, lambda conn: attempts.mark_signalled(conn, drain.token, self._clock()))

    async def _cancel(self, cancel: acts.Cancel) -> _Result:
        await self._prove_lease()
        try:
            await self._slurm.cancel(cancel.job_id, name=cancel.name)
        except NoSuchJob as gone:
            return _Result(f"nothing to cancel: {gone}")
        return _Result(DONE, lambda conn: attempts.mark_cancelled(conn, cancel.token, self._clock()))

    async def _cancel_orphan(self, orphan: acts.CancelOrphan) -> _Result:
        await self._prove_lease()
        try:
            await self._slurm.cancel(orphan.job_id, name=orphan.name)
        except NoSuchJob as gone:
            return _Result(f"nothing to cancel: {gone}")
        return _Result(DONE)


def _refused(token: str, reason: str) -> _Result:
    return _Result(f"refused: {reason}", lambda conn: attempts.record_refusal(conn, token, reason))
