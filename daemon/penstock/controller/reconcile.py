"""One tick: observe, plan, record, execute.

The same pass whatever woke it, and it takes no hint. Slurm is asked once; PostgreSQL is read whole in a fixed
number of statements. New replicas are written first and the rest is planned again with them, so that a
deployment's first job is submitted in the tick that sees it. Which nodes there are is asked only where something
is submitted while nodes are under suspicion, and then it is planned again with them.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy.exc import IntegrityError

from penstock.controller.execute import Executor
from penstock.controller.lease import Term
from penstock.controller.observe import Observer
from penstock.controller.outcomes import NOT_KNOWN, Outcome, Result
from penstock.controller.record import Intent, Recorder, World
from penstock.core.budget import WINDOW
from penstock.core.decisions import CancelOrphan, CreateReplica, Resubmit, Submit
from penstock.core.estimates import Start
from penstock.core.jobs import MESSAGE_TIMEOUT_S
from penstock.core.model import Listing, Observation, Replica, Unknown, Vain, job_name, marked_token
from penstock.core.pace import again_at
from penstock.core.pace import key as key_of
from penstock.core.plan import Plan, plan
from penstock.core.suspects import suspects
from penstock.store.database import Database
from penstock.store.queries import attempts, members, world
from penstock.store.records import World as StoredWorld

log = logging.getLogger(__name__)

STARTS_STAND_FOR = timedelta(minutes=1)
"""How attempts of the past came to serve moves slowly, and reading it goes through all of them."""

FORGOTTEN_AFTER = timedelta(minutes=1)
"""What is still wanted is tried within twice its pace, whatever a tick may take."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """What a tick did, for whoever times the next one."""

    tick: str
    effects: int
    """Effects on Slurm that it has answered: what came of them shows in the next listing."""


class Reconciler:
    """Brings the cluster one step closer to what is wanted, each time it is asked."""

    def __init__(
        self,
        *,
        db: Database,
        installation: str,
        observer: Observer,
        recorder: Recorder,
        executor: Executor,
        clock: Callable[[], datetime],
        clock_off_s: Callable[[], int] = lambda: 0,
        message_timeout_s: int = MESSAGE_TIMEOUT_S,
        orphan_grace_s: int | None = None,
    ) -> None:
        """`clock_off_s`: how far the host's own clock is ahead of `clock`.
        `message_timeout_s`: stands for Slurm's until a look around has told it.
        `orphan_grace_s`: `Observation.orphan_grace_s`."""
        self._db = db
        self._installation = installation
        self._observer = observer
        self._recorder = recorder
        self._executor = executor
        self._clock = clock
        self._clock_off_s = clock_off_s
        self._message_timeout_s = message_timeout_s
        self._orphan_grace_s = orphan_grace_s
        self._world = world.Reader()
        self._strays_since: dict[int, datetime] = {}
        """Of the last full listing's jobs, so it is bounded by it. Another controller counts anew: a longer grace."""
        self._vain: dict[str, Vain] = {}
        """Of the tries of the last minutes. Another controller tries at once."""
        self._starts: Mapping[str, tuple[Start, ...]] = {}
        self._read_starts_at: datetime | None = None

    async def tick(self, term: Term) -> Ticked:
        """Runs one pass within a term of the lease that began before it. Raises LeaseLost, the database's outages, and
        bugs; Slurm's failures are observations."""
        tick = secrets.token_hex(4)
        seen = await self._observer.look()
        observation = await self._observe(seen)
        decided = plan(observation)
        if (creations := _creations(decided)).decisions:
            await self._record(tick, term, observation, creations)
            observation = await self._observe(seen)
            decided = plan(observation)
        suspected = observation.cluster is None and suspects(observation.failures, observation.now)
        if suspected and _submits(decided):
            observation = replace(observation, cluster=await self._observer.cluster_if_it_says())
            decided = plan(observation)
        intents = await self._record(tick, term, observation, decided)
        if isinstance(
            seen, Listing
        ):  # Else the plan speaks of the cluster alone, and the others still stand.
            self._recorder.forget_gone(frozenset(decision.subject for decision in decided.decisions))
        ended = await self._executor.carry_out(tick, term, intents) if intents else ()
        self._remember(ended)
        return Ticked(tick, sum(one.result is Result.DONE for one in ended))

    async def look_around(self) -> bool:
        """Looks at nodes and reservations for the ticks to come. Returns whether anything is another than before."""
        before = self._observer.cluster
        after = await self._observer.look_around()
        return (before and (before.leaving, before.maintenance)) != (
            after and (after.leaving, after.maintenance)
        )

    def _remember(self, ended: Sequence[Outcome]) -> None:
        """What came to nothing, for the next tries; forgotten once nobody tries any more."""
        now = self._clock()
        self._vain = {
            key: vain
            for key, vain in self._vain.items()
            if now < vain.last_at + 2 * (again_at(vain) - vain.last_at) + FORGOTTEN_AFTER
        }
        for one in ended:
            action = one.intent.action
            its_key = key_of(action, one.intent.token)
            # An orphan's row, where it has one, does not tell that it was cancelled.
            if one.result is Result.VAIN or (one.result is Result.DONE and isinstance(action, CancelOrphan)):
                before = self._vain.get(its_key)
                why = one.text.removeprefix(NOT_KNOWN) if one.result is Result.VAIN else ""
                self._vain[its_key] = Vain(1 if before is None else before.times + 1, now, why)
            else:
                self._vain.pop(its_key, None)

    async def _observe(self, seen: Listing | Unknown) -> Observation:
        async with self._db.snapshot() as connection:
            stored = await self._world.load(connection)
            heard = await members.heard(connection)
            failures = await attempts.failures(connection, self._clock() - WINDOW)
            now = self._clock()
            if self._read_starts_at is None or now >= self._read_starts_at:
                self._starts = await attempts.starts(connection)
                self._read_starts_at = now + STARTS_STAND_FOR
            strays = self._strays(seen, stored.replicas)
            known = await world.ended_tokens(connection, strays.values()) if strays else frozenset[str]()
        now = self._clock()
        if isinstance(seen, Listing):  # A listing that failed tells nothing of who is gone.
            self._strays_since = {job_id: self._strays_since.get(job_id, now) for job_id in strays}
        return Observation(
            now=now,
            installation=self._installation,
            deployments=stored.deployments,
            replicas=stored.replicas,
            slurm=seen,
            message_timeout_s=self._observer.message_timeout_s or self._message_timeout_s,
            heard=heard,
            failures=failures,
            starts=self._starts,
            cluster=self._observer.cluster,
            history=await self._observer.history(vanished) if (vanished := _vanished(stored, seen)) else {},
            strays_since=self._strays_since,
            orphan_grace_s=self._orphan_grace_s,
            known_tokens=known,
            vain=self._vain,
            clock_off_s=self._clock_off_s(),
        )

    def _strays(self, seen: Listing | Unknown, replicas: Sequence[Replica]) -> Mapping[int, str]:
        """The running jobs that bear our mark and are not known as a live attempt's, each with its token."""
        if isinstance(seen, Unknown):
            return {}
        owned = {
            (attempt.token, attempt.job_id)
            for replica in replicas
            if (attempt := replica.live_attempt) is not None
        }
        return {
            job.job_id: token
            for job in seen.jobs
            if not job.ended
            and (token := marked_token(job, self._installation)) is not None
            and not owned & {(token, job.job_id), (token, None)}
        }

    async def _record(
        self, tick: str, term: Term, observation: Observation, decided: Plan
    ) -> tuple[Intent, ...]:
        before = World(
            {deployment.uid: deployment for deployment in observation.deployments},
            {replica.uid: replica for replica in observation.replicas},
        )
        if self._recorder.has_nothing_new(decided):
            self._recorder.count(decided, observation.now)
            return ()
        try:
            async with self._db.transaction() as connection:
                intents = await self._recorder.record(connection, tick, observation.now, decided, before)
                # Last, because it locks the lease until the commit, and a lease that is locked cannot be renewed.
                await term.fence(connection)
        except IntegrityError:
            # Another leader may have written the same: then it is that, and no bug.
            async with self._db.transaction() as connection:
                await term.fence(connection)
            raise
        return intents


def _vanished(stored: StoredWorld, seen: Listing | Unknown) -> Mapping[str, tuple[int, str]]:
    """Token -> job id and name of the jobs that this full listing and one before it lacked."""
    if isinstance(seen, Unknown):
        return {}
    listed = {(job.job_id, job.name) for job in seen.jobs}
    names = {deployment.uid: deployment.name for deployment in stored.deployments}
    return {
        attempt.token: (attempt.job_id, name)
        for replica in stored.replicas
        if (attempt := replica.live_attempt) is not None
        and attempt.job_id is not None
        and attempt.missing_since is not None
        and (attempt.job_id, name := job_name(names[replica.deployment_uid], attempt.token)) not in listed
    }


def _submits(decided: Plan) -> bool:
    return any(
        isinstance(action, Submit | Resubmit) for decision in decided.decisions for action in decision.actions
    )


def _creations(decided: Plan) -> Plan:
    """The part of a plan that makes replicas."""
    chosen = tuple(
        decision
        for decision in decided.decisions
        if any(isinstance(action, CreateReplica) for action in decision.actions)
    )
    return Plan(chosen, (), ())
