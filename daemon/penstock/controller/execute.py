"""Carrying out what was written down: one idempotent branch for each effect, and no policy.

Each intent is in the database before this file sees it. A branch begins with nothing but its intent, calls
Slurm, and says what came of it. A crash before the call leaves an attempt without a job, which the planner
finds in doubt; a crash after it leaves a job with the attempt's token, which the planner adopts. An error of
Slurm's is an outcome, not an exception.

Effects go in groups, because a transaction for each would cost more than Slurm's own part. A group's submissions are
marked in one transaction just before its calls, and what came of the calls is written in one when all have returned;
meanwhile the next group is made ready.

The rule guarded here is the seventh: each call that changes something in Slurm begins in the term of the lease that its
tick began in, which was current by the database's clock a moment ago; and it asks our own clock right before anything
is sent, however long it has waited since.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from penstock.controller import outcomes
from penstock.controller.file_calls import FileCalls
from penstock.controller.folders import Folders
from penstock.controller.lease import Term
from penstock.controller.outcomes import NOT_KNOWN, Outcome, Result
from penstock.controller.record import Intent, Launch, hash_of
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
from penstock.store.queries import attempts
from penstock.store.queries.decisions import DONE
from penstock.store.records import decided

log = logging.getLogger(__name__)

CONCURRENCY = 8
"""Calls at a time. slurmctld serves submissions one after the other; more would only fill its queue."""

GROUP = 16
"""Effects in a group: a transaction's cost is divided by it, and a crash leaves so many jobs to be found by token."""

LANES = 2
"""Groups at a time: one calls while the other is made ready or written down."""

PROOF_STANDS_FOR = timedelta(seconds=1)
"""How old may be what a group has proven and marked when an effect's turn comes; what is older is proven and marked
again. The doubt about a submission counts from its mark, so this is what it may be short by."""

SILENT_AFTER = 8
"""Calls in a row without an answer, after which the rest of a tick's effects are not tried. A slurmctld that hangs
costs each call its whole time-out, and a thousand of them would keep the controller from looking for an hour. More than
one, so that a job whose submission alone is never answered keeps nobody else from being submitted."""

NOT_TRIED = "not tried: Slurm does not answer"
DATABASE_SLOW = f"not tried: the database took more than {PROOF_STANDS_FOR.total_seconds():g} s"
NOT_WANTED = "not tried: the attempt has a job by now, or has ended"
SLURM_BUSY = f"not tried: another call to Slurm took more than {PROOF_STANDS_FOR.total_seconds():g} s"


class _NotTried(Exception):
    """Nothing was sent, and why."""


@dataclass(slots=True)
class _Tick:
    """What the effects of a tick have in common."""

    id: str
    term: Term
    unanswered: int = 0
    """Calls in a row to which Slurm gave no answer."""

    @property
    def slurm_is_silent(self) -> bool:
        return self.unanswered >= SILENT_AFTER


@dataclass(slots=True)
class _Effect:
    """An intent on its way to Slurm."""

    tick: _Tick
    intent: Intent
    obstacle: str = ""
    """Why the attempt's folder cannot be made, and what a human can do."""
    secret: str = ""
    """What lies in the folder of a submission."""
    proven_at: datetime | None = None
    """When the term was last current by the database's clock."""
    marked_at: datetime | None = None
    """When a submission was last marked as about to be made; None: its attempt has a job by now, or has ended."""


class Executor:
    """Acts on Slurm for the lease's holder."""

    def __init__(self, db: Database, slurm: Slurm, folders: Folders, clock: Callable[[], datetime]) -> None:
        self._db = db
        self._slurm = slurm
        self._folders = folders
        self._files = FileCalls(folders.root)
        self._clock = clock
        self._lanes = asyncio.Semaphore(LANES)
        # Whoever waited inside would wait with a proof that grows old.
        self._slots = asyncio.Semaphore(1 if slurm.one_at_a_time else CONCURRENCY)

    async def carry_out(self, tick: str, term: Term, intents: Sequence[Intent]) -> tuple[Outcome, ...]:
        """Carries all of them out, several at a time, and returns what came of them when each has its outcome; those
        that the term has not sufficed for are left to the next one, and have none.

        Where Slurm falls silent the rest is not tried. The planner asks for it again.
        Raises the first failure that is neither Slurm's nor the lease's (a bug, or the database), after all
        have ended.
        """
        its = _Tick(tick, term)
        # What needs no folder does not wait for one.
        kinds = (
            [one for one in intents if one.launch is None],
            [one for one in intents if one.launch is not None],
        )
        groups = [kind[start : start + GROUP] for kind in kinds for start in range(0, len(kind), GROUP)]
        ended = await asyncio.gather(*(self._group(its, group) for group in groups), return_exceptions=True)
        _raise_first(ended)
        return tuple(one for group in ended if isinstance(group, list) for one in group)

    async def _group(self, tick: _Tick, intents: Sequence[Intent]) -> list[Outcome]:
        effects = [_Effect(tick, intent) for intent in intents]
        async with self._lanes:
            if not tick.slurm_is_silent:
                try:
                    # A submission that is repeated is looked for first, and made ready where it is not found.
                    await self._make_ready(
                        tick, [one for one in effects if not isinstance(one.intent.action, acts.Resubmit)]
                    )
                except LeaseLost as lost:
                    log.warning(
                        "tick %s: %d effects are left to the next term: %s", tick.id, len(effects), lost
                    )
                    return []
            ended = await asyncio.gather(*(self._one(effect) for effect in effects), return_exceptions=True)
            known = [outcome for outcome in ended if isinstance(outcome, Outcome)]
            if known:
                for outcome in await outcomes.write(self._db, known):
                    shown = decided(outcome.intent.action)
                    what = f"{shown.action} {outcome.intent.token or shown.target}"
                    log.info("tick %s: %s: %s", tick.id, what, outcome.text)
        _raise_first(ended)
        return known

    async def _one(self, effect: _Effect) -> Outcome | None:
        """What came of it; None where the term was over before."""
        tick, intent = effect.tick, effect.intent
        async with self._slots:
            if tick.slurm_is_silent:
                return _not_sent(effect, NOT_TRIED, Result.OPEN)
            try:
                outcome = await self._branch(effect)
            except SubmissionUnknown as error:
                tick.unanswered = 0 if error.answered else tick.unanswered + 1
                return _unknown(intent, error, self._clock())
            except SlurmUnavailable as error:
                tick.unanswered += 1
                return _not_sent(effect, str(error), Result.VAIN)
            except SlurmError as error:
                return Outcome(intent, str(error), Result.VAIN)
            except _NotTried as untried:
                return _not_sent(effect, str(untried), Result.OPEN)
            except LeaseLost as lost:
                log.warning("tick %s: %s is left to the next term: %s", tick.id, intent.action, lost)
                return None
            tick.unanswered = 0
            return outcome

    async def _branch(self, effect: _Effect) -> Outcome:
        match effect.intent.action, effect.intent.launch:
            case acts.Submit(), Launch() as launch:
                return await self._submit(effect, launch)
            case acts.Resubmit(), Launch() as launch:
                return await self._resubmit(effect, launch)
            case acts.Drain() as drain, _:
                return await self._drain(effect, drain)
            case (acts.Cancel() | acts.Withdraw() | acts.CancelOrphan()) as cancel, _:
                return await self._cancel(effect, cancel)
            case _:
                raise TypeError(f"{effect.intent.action} is no effect")

    async def _make_ready(self, tick: _Tick, effects: Sequence[_Effect]) -> None:
        """All that comes before the calls: folders, and the proof."""
        submissions = [(effect, launch) for effect in effects if (launch := effect.intent.launch) is not None]
        if submissions:
            await self._make_folders(submissions)
        await self._prove(tick, effects)

    async def _make_folders(self, submissions: Sequence[tuple[_Effect, Launch]]) -> None:
        def make() -> list[str | OSError]:
            return [self._made(effect.intent.token, launch) for effect, launch in submissions]

        made: Sequence[str | OSError]
        try:
            made = await self._files.do(make)
        except OSError as silent:
            made = [silent] * len(submissions)
        for (effect, _), one in zip(submissions, made, strict=True):
            if isinstance(one, OSError):
                effect.obstacle = self._folders.obstacle(one)
            else:
                effect.secret, effect.obstacle = one, ""

    def _made(self, token: str, launch: Launch) -> str | OSError:
        """The secret that lies in the folder, or why it cannot be made."""
        try:
            return self._folders.prepare(token, launch.config, launch.secret)
        except OSError as error:
            return error

    async def _prove(self, tick: _Tick, effects: Sequence[_Effect]) -> None:
        """Marks the submissions as about to be made, while the tick's term is current by the database's clock.

        Raises LeaseLost.
        """
        now = self._clock()
        submitted = [
            one.intent.token for one in effects if one.intent.launch is not None and not one.obstacle
        ]
        async with self._db.transaction() as connection:
            marked = await attempts.mark_submitting(connection, submitted, now)
            for effect in effects:
                intent = effect.intent
                # Only who knows what the folder holds may say what opens the door to the agent that reads it.
                if isinstance(intent.action, acts.Resubmit) and intent.launch and intent.token in marked:
                    script, secret_hash = intent.launch.submission.script, hash_of(effect.secret)
                    packed = acts.packed(intent.action)
                    await attempts.launch_again(connection, intent.token, script, secret_hash, packed=packed)
            # Last, because it locks the lease until the commit, and a lease that is locked cannot be renewed.
            await tick.term.fence(connection)
        for effect in effects:
            effect.proven_at, effect.marked_at = now, now if effect.intent.token in marked else None

    async def _be_sure(self, effect: _Effect) -> None:
        """Raises LeaseLost or _NotTried unless the effect's call may begin now."""
        if self._stale(effect):
            await self._prove(effect.tick, [effect])
            if self._stale(effect):
                raise _NotTried(DATABASE_SLOW)
        if effect.intent.launch is not None and effect.marked_at is None:
            raise _NotTried(NOT_WANTED)

    def _may_submit(self, effect: _Effect) -> None:
        """Raises LeaseLost or _NotTried unless the submission may be sent now. What else changes Slurm leaves no doubt
        that would count from its proof: for that `Term.require` is enough."""
        effect.tick.term.require()
        if self._stale(effect):
            raise _NotTried(SLURM_BUSY)

    def _stale(self, effect: _Effect) -> bool:
        return effect.proven_at is None or self._clock() - effect.proven_at > PROOF_STANDS_FOR

    async def _submit(self, effect: _Effect, launch: Launch) -> Outcome:
        intent = effect.intent
        if effect.obstacle:
            return Outcome(intent, effect.obstacle, Result.VAIN)
        await self._be_sure(effect)
        try:
            job_id = await self._slurm.submit(launch.submission, may=lambda: self._may_submit(effect))
        except SubmissionRefused as refusal:
            return _refused(effect, refusal.reason)
        return Outcome(intent, f"job {job_id}", job_id=job_id)

    async def _resubmit(self, effect: _Effect, launch: Launch) -> Outcome:
        found = await self._slurm.find(launch.submission.name)
        if not found:
            await self._make_ready(effect.tick, [effect])
            return await self._submit(effect, launch)
        job, token = min(found, key=lambda job: (job.ended, job.job_id)), effect.intent.token
        return Outcome(
            effect.intent,
            f"found as job {job.job_id}",
            write=lambda conn: attempts.record_job_id(conn, token, job.job_id, job),
        )

    async def _drain(self, effect: _Effect, drain: acts.Drain) -> Outcome:
        await self._be_sure(effect)
        try:
            await self._slurm.signal(drain.job_id, "TERM", name=drain.name, may=effect.tick.term.require)
        except NoSuchJob as gone:
            return Outcome(effect.intent, f"nothing to signal: {gone}", Result.VAIN)
        now = self._clock()
        return Outcome(
            effect.intent, DONE, write=lambda conn: attempts.mark_signalled(conn, drain.token, now)
        )

    async def _cancel(
        self, effect: _Effect, cancel: acts.Cancel | acts.Withdraw | acts.CancelOrphan
    ) -> Outcome:
        await self._be_sure(effect)
        only_waiting = isinstance(cancel, acts.Withdraw)
        try:
            await self._slurm.cancel(
                cancel.job_id, name=cancel.name, may=effect.tick.term.require, only_waiting=only_waiting
            )
        except NoSuchJob as gone:
            return Outcome(effect.intent, f"nothing to cancel: {gone}", Result.VAIN)
        if not isinstance(cancel, acts.Cancel):
            return Outcome(effect.intent, DONE)
        token, now = cancel.token, self._clock()
        return Outcome(effect.intent, DONE, write=lambda conn: attempts.mark_cancelled(conn, token, now))


def _not_sent(effect: _Effect, text: str, result: Result) -> Outcome:
    """A submission that Slurm was not asked for is in no doubt: its mark is taken back, if it is still ours.

    That of one that Slurm may have been asked for before stays.
    """
    intent, marked_at = effect.intent, effect.marked_at
    if intent.asked_before or marked_at is None:
        return Outcome(intent, text, result)
    return Outcome(
        intent, text, result, write=lambda conn: attempts.unmark_submitting(conn, intent.token, marked_at)
    )


def _unknown(intent: Intent, error: SubmissionUnknown, now: datetime) -> Outcome:
    """The doubt counts from here: the call may have lasted as long as the doubt does."""
    return Outcome(
        intent,
        f"{NOT_KNOWN}{error}",
        Result.VAIN,  # Where it is the same each time it is not worth a call each time the doubt is over.
        write=lambda conn: attempts.mark_submitting(conn, [intent.token], now),
    )


def _refused(effect: _Effect, reason: str) -> Outcome:
    """Of this call, and no later one's: who slept since may find that another's was accepted."""
    intent, marked_at = effect.intent, effect.marked_at
    return Outcome(
        intent,
        f"refused: {reason}",
        write=lambda conn: attempts.record_refusal(conn, intent.token, reason, marked_at),
    )


def _raise_first(ended: Sequence[object]) -> None:
    for one in ended:
        if isinstance(one, BaseException):
            raise one
