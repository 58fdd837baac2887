"""Bugs on purpose: each makes the production code break one promise, and the simulation must notice.

What a simulation finds is worth what it would have found. Each mutant is a change that a tired programmer could
make, laid over the real code while a story is played; `rules` names what may catch it, `risk` makes the weather in
which it matters more frequent, so that few seeds suffice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from penstock.controller import execute, reconcile
from penstock.controller.execute import Executor
from penstock.controller.lease import Lease, Term
from penstock.controller.observe import Observer
from penstock.controller.record import Intent, Recorder
from penstock.core import (
    backoff,
    endings,
    leaving,
    model,
    orphans,
    plan,
    progress,
    replicas,
    rollout,
    running,
    submitting,
    waiting,
)
from penstock.core import decisions as acts
from penstock.core.decisions import Reason
from penstock.core.jobs import Job
from penstock.core.model import Listing, ReplicaState, Unknown
from penstock.core.scene import Scene
from penstock.slurm.port import SlurmError, SlurmUnavailable
from penstock.store.clock import DatabaseClock
from penstock.store.queries import attempts, decisions
from tests.simulation.world import CALM, STORMY, Risk

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    """One bug. `rules`: those that may catch it."""

    name: str
    rules: tuple[str, ...]
    apply: Callable[[Patch], None]
    risk: Risk = field(default_factory=lambda: STORMY)
    story: int = 0
    """The first to be played. Where it is not 0, those before it told nothing when that was last looked at."""


def _intent_after_the_submission(patch: Patch) -> None:
    """And what has no intent yet counts as marked: the mark alone would keep it from being sent."""
    insert, mark, submit = attempts.insert_many, attempts.mark_submitting, Executor._submit
    waiting: dict[str, tuple[Any, Any]] = {}

    async def remember(conn: Any, made: Any, now: Any) -> None:
        waiting.update({new.token: (new, now) for new in made})

    async def mark_without(conn: Any, tokens: Any, now: Any) -> frozenset[str]:
        marked = await mark(conn, tokens, now)
        return marked.union(token for token in tokens if token in waiting)

    async def submit_first(self: Executor, effect: Any, launch: Any) -> Any:
        outcome = await submit(self, effect, launch)
        if effect.intent.token in waiting:
            new, now = waiting.pop(effect.intent.token)
            async with self._db.transaction() as conn:
                await insert(conn, [new], now)
        return outcome

    patch.setattr(attempts, "insert_many", remember)
    patch.setattr(attempts, "mark_submitting", mark_without)
    patch.setattr(Executor, "_submit", submit_first)


def _unknown_is_absent(patch: Patch) -> None:
    async def look(self: Observer) -> Listing:
        try:
            return Listing(await self._slurm.list_jobs())
        except SlurmUnavailable:
            return Listing(())

    patch.setattr(Observer, "look", look)


def _no_look_up(patch: Patch) -> None:
    patch.setattr(Executor, "_resubmit", Executor._submit)


def _no_doubt(patch: Patch) -> None:
    patch.setattr(submitting, "DOUBT_FACTOR", 0)


def _silence_not_heard(patch: Patch) -> None:
    async def look(self: Observer) -> Listing | Unknown:
        try:
            return Listing(await self._slurm.list_jobs())
        except SlurmUnavailable as error:
            return Unknown(str(error), self._clock())

    patch.setattr(Observer, "look", look)


def _hosts_clock(patch: Patch) -> None:
    patch.setattr(DatabaseClock, "__call__", lambda self: self._host().astimezone(self._zone))


def _no_lease(patch: Patch) -> None:
    _no_fence(patch)
    patch.setattr(Term, "require", lambda self: None)
    patch.setattr(Lease, "held", property(lambda self: self._term is not None))


def _no_fence(patch: Patch) -> None:
    async def fence(self: Term, connection: Any) -> None:
        return

    patch.setattr(Term, "fence", fence)


def _own_clock_not_asked(patch: Patch) -> None:
    patch.setattr(Term, "require", lambda self: None)


def _any_term_will_do(patch: Patch) -> None:
    """What belongs to a tick's term asks for the one that is current."""
    require, fence = Term.require, Term.fence

    def current(term: Term) -> Term:
        return term._lease._term or term

    async def fence_by_current(self: Term, connection: Any) -> None:
        await fence(current(self), connection)

    patch.setattr(Term, "require", lambda self: require(current(self)))
    patch.setattr(Term, "fence", fence_by_current)


def _back_off_forgotten(patch: Patch) -> None:
    resume = Recorder.resume

    async def forget(self: Recorder, connection: Any) -> None:
        await resume(self, connection)
        await connection.execute(text("UPDATE replicas SET failures = 0, next_attempt_at = NULL"))

    patch.setattr(Recorder, "resume", forget)


def _failures_not_counted(patch: Patch) -> None:
    patch.setattr(backoff, "failures_after", lambda *given: 1)


def _missing_at_once(patch: Patch) -> None:
    patch.setattr(replicas, "MISSING_FOR_S", 0)


def _name_not_compared(patch: Patch) -> None:
    def marked(job: Job, installation: str) -> str | None:
        words = job.comment.split(" ")
        return words[2] if len(words) == 3 and words[:2] == ["penstock/1", installation] else None

    _mark(patch, marked)


def _installation_not_compared(patch: Patch) -> None:
    original = model.marked_token

    def marked(job: Job, installation: str) -> str | None:
        return original(job, job.comment.split(" ")[1] if job.comment.count(" ") == 2 else "")

    _mark(patch, marked)


def _mark(patch: Patch, marked: Callable[[Job, str], str | None]) -> None:
    for module in (plan, orphans, reconcile):
        patch.setattr(module, "marked_token", marked)


def _no_grace(patch: Patch) -> None:
    patch.setattr(orphans, "ORPHAN_GRACE_S", 0)


def _orphans_stay(patch: Patch) -> None:
    patch.setattr(orphans, "ORPHAN_GRACE_S", 10**8)


def _retired_too_soon(patch: Patch) -> None:
    patch.setattr(rollout, "available_floor", lambda *given: 0)


def _not_drained(patch: Patch) -> None:
    def at_once(scene: Any, attempt: Any, job: Job) -> Any:
        return leaving.cancel(scene, attempt, job, Reason.CANCEL, f"job {job.job_id} is cancelled")

    patch.setattr(replicas, "leave", at_once)


def _not_adopted(patch: Patch) -> None:
    jobs_of = replicas.jobs_of

    def known_only(attempt: Any, jobs_by_token: Any) -> Job | None:
        return None if attempt.job_id is None else jobs_of(attempt, jobs_by_token)

    patch.setattr(plan, "jobs_of", known_only)
    _no_look_up(patch)


def _new_token_on_doubt(patch: Patch) -> None:
    intend = Recorder._intend

    async def anew(
        self: Recorder, connection: Any, now: Any, row: int, position: int, action: Any, world: Any
    ) -> Intent:
        if isinstance(action, acts.Resubmit):
            await attempts.end(
                connection, action.token, message="again", exit_code=None, job=None, failures=0,
                next_attempt_at=None, now=now,
            )  # fmt: skip
            action = acts.Submit(action.replica_uid)
        return await intend(self, connection, now, row, position, action, world)

    patch.setattr(Recorder, "_intend", anew)


def _refusal_is_doubt(patch: Patch) -> None:
    class Never(SlurmError):
        reason = ""

    patch.setattr(execute, "SubmissionRefused", Never)


def _queue_time_out(patch: Patch) -> None:
    by_state = replicas._by_job_state

    def impatient(scene: Any, attempt: Any, job: Job) -> Any:
        waited_s = (scene.now - attempt.submitted_at).total_seconds() if attempt.submitted_at else 0
        if job.waiting and waited_s > 30:
            message = f"job {job.job_id} waits for too long"
            return leaving.cancel(scene, attempt, job, Reason.STARTUP_TIMEOUT, message)
        return by_state(scene, attempt, job)

    patch.setattr(replicas, "_by_job_state", impatient)


def _outcome_not_written(patch: Patch) -> None:
    async def nothing(*given: Any) -> None:
        return

    patch.setattr(decisions, "record_outcomes", nothing)


def _second_outcome_not_written(patch: Patch) -> None:
    bump, record = decisions.bump, decisions.record_outcomes
    tried: set[int] = set()

    async def remember(conn: Any, repeated: Any, tried_again: Any = ()) -> None:
        tried.update(tried_again)
        await bump(conn, repeated, dict(tried_again))

    async def first_only(conn: Any, came: Any) -> None:
        await record(conn, [one for one in came if one[0] not in tried])

    patch.setattr(decisions, "bump", remember)
    patch.setattr(decisions, "record_outcomes", first_only)


def _unknown_state_is_an_end(patch: Patch) -> None:
    by_state = replicas._by_job_state

    def ended(scene: Any, attempt: Any, job: Job) -> Any:
        if job.state == "UNKNOWN":
            return endings.ended(scene, attempt, job)
        return by_state(scene, attempt, job)

    patch.setattr(replicas, "_by_job_state", ended)


def _said_each_time(patch: Patch) -> None:
    patch.setattr(Recorder, "_stands", lambda self, decision: False)


def _ids_without_names(patch: Patch) -> None:
    def by_id(attempt: Any, jobs_by_token: Any) -> Job | None:
        if attempt.job_id is None:
            return next(iter(jobs_by_token.get(attempt.token, ())), None)
        every = [job for jobs in jobs_by_token.values() for job in jobs]
        return next((job for job in every if job.job_id == attempt.job_id), None)

    patch.setattr(plan, "jobs_of", by_id)


def _silence_without_ears(patch: Patch) -> None:
    """Agents count as silent though nobody was there to hear them."""

    def since(scene: Any, attempt: Any) -> Any:
        if attempt.reported_at is None:
            return None
        silent_s = (scene.now - attempt.reported_at).total_seconds()
        return attempt.reported_at if silent_s > 25 else None

    patch.setattr(running, "_silent_since", since)


def _no_pace(patch: Patch) -> None:
    patch.setattr(endings, "PACE_S", 0)


def _nothing_respected(patch: Patch) -> None:
    patch.setattr(Scene, "respects", False)


def _placement_left_at_once(patch: Patch) -> None:
    """The next placement is tried without the job of the last one having ended."""

    def left(scene: Any, attempt: Any, job: Job) -> Any:
        end = acts.EndAttempt(
            scene.replica.uid, attempt.token, None, job, 0, None, "given up", False, attempt.placement + 1
        )
        return scene.decide(Reason.PLACEMENT_GIVEN_UP, ReplicaState.WAITING, "given up", end)

    patch.setattr(waiting, "_given_up", left)


def _kinds_forgotten(patch: Patch) -> None:
    patch.setattr(plan, "misplaced", lambda *given: ())


def _canary_rolled_out_unasked(patch: Patch) -> None:
    patch.setattr(rollout, "is_canary", lambda deployment: False)


def _deadline_from_the_queue(patch: Patch) -> None:
    def failure(deployment: Any, replica: Any, held: Any, now: Any, failures: Any) -> str:
        attempt = replica.live_attempt
        if attempt is None or attempt.submitted_at is None or replica.state is model.ReplicaState.READY:
            return ""
        limit_s = progress.deadline_s(deployment)
        late = (now - attempt.submitted_at).total_seconds() >= limit_s
        return f"job {attempt.job_id} generated no token within {limit_s} s of its start" if late else ""

    patch.setattr(progress, "_failure", failure)


def _unborn_not_counted(patch: Patch) -> None:
    patch.setattr(rollout, "_is_unborn", lambda replica: False)


def _proof_for_ever(patch: Patch) -> None:
    patch.setattr(execute, "PROOF_STANDS_FOR", timedelta(days=1))


def _outcomes_before_calls(patch: Patch) -> None:
    drain, cancel = Executor._drain, Executor._cancel

    async def drain_told(self: Executor, effect: Any, action: acts.Drain) -> Any:
        async with self._db.transaction() as conn:
            await attempts.mark_signalled(conn, action.token, self._clock())
        return await drain(self, effect, action)

    async def cancel_told(self: Executor, effect: Any, action: Any) -> Any:
        if isinstance(action, acts.Cancel):
            async with self._db.transaction() as conn:
                await attempts.mark_cancelled(conn, action.token, self._clock())
        return await cancel(self, effect, action)

    patch.setattr(Executor, "_drain", drain_told)
    patch.setattr(Executor, "_cancel", cancel_told)


def _unmarked_touched(patch: Patch) -> None:
    patch.setattr(replicas, "_untouched", lambda scene, altered, outlook: outlook)


def _unmarked_replaced(patch: Patch) -> None:
    patch.setattr(plan, "altered_job", lambda *given: None)


def _asks_for_any_node(patch: Patch) -> None:
    def elsewhere(spec: Any, there: Any, cluster: Any, left_out: Any = ()) -> tuple[str, ...]:
        nodes = () if cluster is None else cluster.nodes
        return tuple(node.name for node in nodes if node.name not in there)[:1] if there else ()

    patch.setattr(plan, "company", elsewhere)


def _any_end_is_want_of_room(patch: Patch) -> None:
    end = attempts.end

    async def withdrawn(*given: Any, **more: Any) -> bool:
        return await end(*given, **{**more, "found_no_room": True})

    patch.setattr(attempts, "end", withdrawn)


def _renamed_touched(patch: Patch) -> None:
    patch.setattr(plan, "renamed", lambda *given: None)


def _relieved_at_once(patch: Patch) -> None:
    """Who is handed over goes without waiting for the successor."""

    def relieved(self: Any, but: Any = (), beside: Any = None) -> Any:
        gone = {one.uid for one in but}
        return [one for one in self.ending if one.uid not in gone]

    patch.setattr(rollout._Fleet, "relieved", relieved)


def _only_what_was_whole_is_fallen_back_on(patch: Patch) -> None:
    def is_stopped(deployment: Any, replicas: Any) -> bool:
        stable = deployment.rollout.stable_revision not in (0, deployment.revision)
        return stable and deployment.rollout.failed_revision == deployment.revision

    patch.setattr(rollout, "is_stopped", is_stopped)


LOST = replace(STORMY, submit=0.7, crash=0.0, pause=0.0, nap=0.0, slow=0.0)
DOUBTFUL = replace(LOST, submissions=("before", "after", "late"))
STALE = replace(STORMY, stale=0.5, crash=0.0, pause=0.0)
LATE = replace(LOST, submit=0.9, stale=1.0, oldest=1.0, slurm_call=0.0, submissions=("late",), mute=True)
FROZEN = replace(LATE, stale=0.0, submissions=("frozen",), steps={"tick": 40, "long_wait": 20})
JUMPY = replace(STORMY, steps={"clock_jump": 10})
SLEEPY = replace(STORMY, pause=0.06)
RELAPSING = replace(
    CALM,
    pause=0.1,
    steps={"tick": 60, "another_controller": 20, "kill": 20, "scale": 12, "edit": 8, "clock_jump": 0},
)
UNANSWERED = replace(CALM, slurm_call=0.3, steps={"tick": 80, "scale": 20, "edit": 8})
NODDING = replace(
    CALM,
    nap=0.4,
    nap_at=("begin", "committed"),
    naps_s=(0.9, 9.4),
    steps={"tick": 80, "scale": 12, "edit": 8},
)
FRAIL = replace(CALM, agent=1.0, agents=("fails", "dies"), steps={"tick": 200, "kill": 6, "restore": 0})
CROWDED = replace(STORMY, crash=0.0, steps={"foreign_job": 20, "long_wait": 8})
BUSY = replace(CALM, steps={"edit": 15, "scale": 15, "delete": 0, "pause": 0})
FULL = replace(CALM, steps={"job_changes": 20, "node_changes": 15, "long_wait": 8})
FORGETFUL = replace(CALM, steps={"reset": 12, "scale": 10})
ROLLING = replace(
    CALM,
    steps={"tick": 20, "roll_out": 6, "apply": 8, "delete": 2, "pause": 0, "promote": 0, "pause_rollout": 0},
)
CAREFUL = replace(ROLLING, strategies=(0, 0, 100))
FLAPPING = replace(
    CALM,
    strategies=(100, 0, 0),
    steps={"edit": 30, "apply": 10, "job_changes": 0, "scale": 0, "pause": 0, "pause_rollout": 0},
)
HASTY = replace(
    CALM,
    strategies=(100, 0, 0),
    pack=0.15,
    short=0.8,
    steps={"roll_out_too_soon": 15, "delete": 8, "preemption": 4, "pause": 0, "pause_rollout": 0},
)
DEAF = replace(CALM, steps={"control_outage": 10, "long_wait": 8, "delete": 0})

HANDS = replace(CALM, steps={"job_changes": 40, "preemption": 10, "tick": 120})
MINDFUL = replace(
    CALM,
    respect=1.0,
    steps={
        "job_changes": 20,
        "tick": 80,
        "long_wait": 10,
        "delete": 0,
        "pause": 0,
        "edit": 0,
    },
)
UNHEARD = replace(
    CALM, mute=True, steps={"job_changes": 30, "tick": 80, "long_wait": 10, "scale": 0, "delete": 0}
)
PACKED = replace(CALM, pack=1.0, spread=0.0, steps={"tick": 80, "scale": 12, "delete": 0, "pause": 0})
SLUGGISH = replace(CALM, slow=0.5, steps={"tick": 80, "scale": 12, "edit": 8})
BRIEF = replace(CALM, short=1.0, steps={"tick": 80, "long_wait": 20, "delete": 0, "pause": 0, "edit": 0})
SCARCE = replace(
    CALM,
    fallback=1.0,
    steps={
        "tick": 40,
        "node_changes": 30,
        "long_wait": 20,
        "apply": 10,
        "scale": 10,
        "delete": 0,
        "reset": 0,
    },
)
MOVING = replace(CALM, steps={"change_burst": 15, "apply": 10})

MUTANTS = (
    Mutant("the intent is written after the submission", ("6",), _intent_after_the_submission),
    Mutant("unknown is read as absent", ("3",), _unknown_is_absent, story=2),
    Mutant("no look-up by token on doubt", ("1",), _no_look_up, LATE, story=7),
    Mutant("no time for doubt", ("1",), _no_doubt, DOUBTFUL, story=4),
    Mutant("doubt is not lengthened by Slurm's silence", ("1",), _silence_not_heard, FROZEN),
    Mutant("the host's clock is the time", ("1", "2", "5", "6", "back-off", "pace"), _hosts_clock, JUMPY),
    Mutant("the lease is not checked", ("7",), _no_lease, SLEEPY),
    Mutant("the fence is skipped", ("7",), _no_fence, SLEEPY),
    Mutant("the own clock is not asked before an effect", ("7",), _own_clock_not_asked, NODDING),
    Mutant("a tick outlives its term", ("7",), _any_term_will_do, RELAPSING),
    Mutant("the proof stands for ever", ("1",), _proof_for_ever, SLUGGISH, story=1),
    Mutant("outcomes are written before the calls", ("6",), _outcomes_before_calls, BUSY),
    Mutant("back-off is forgotten at a restart", ("back-off",), _back_off_forgotten, FRAIL, story=9),
    Mutant("failures are not counted", ("back-off",), _failures_not_counted, FRAIL),
    Mutant("a missing job is believed at once", ("1", "2"), _missing_at_once, STALE),
    Mutant("a mark is believed whatever the name", ("2",), _name_not_compared, CROWDED, story=1),
    Mutant("another installation's jobs count as ours", ("2",), _installation_not_compared, CROWDED, story=1),
    Mutant("an orphan has no grace", ("2",), _no_grace, CROWDED),
    Mutant("orphans stay", ("2", "4"), _orphans_stay, CROWDED, story=1),
    Mutant("a healthy replica goes before its successor is ready", ("5",), _retired_too_soon, BUSY, story=2),
    Mutant("a serving replica is cancelled without a drain", ("5",), _not_drained, BUSY, story=2),
    Mutant("a job found again is not adopted", ("1", "2"), _not_adopted, replace(LOST, mute=True)),
    Mutant("doubt leads to a new token", ("1", "2"), _new_token_on_doubt, LATE, story=7),
    Mutant("a refusal is taken for doubt", ("6",), _refusal_is_doubt, LOST, story=5),
    Mutant("a queued job is timed out", ("9",), _queue_time_out, FULL, story=1),
    Mutant("an outcome is not written", ("6",), _outcome_not_written),
    Mutant("the outcome of a second try is not written", ("6",), _second_outcome_not_written, UNANSWERED),
    Mutant("a state nobody knows is taken for an end", ("1", "2"), _unknown_state_is_an_end, story=3),
    Mutant("a decision that stands is written each time", ("4",), _said_each_time),
    Mutant("a job is known by its id alone", ("1", "2", "4", "bug"), _ids_without_names, FORGETFUL, story=5),
    Mutant("whoever cancels in a loop makes a storm", ("pace",), _no_pace, HANDS, story=1),
    Mutant(
        "outside changes are repaired where they are to be respected",
        ("respect",),
        _nothing_respected,
        MINDFUL,
    ),
    Mutant("a job without our mark is touched", ("2",), _unmarked_touched, HANDS, story=8),
    Mutant("a packed replica asks for any node", ("pack",), _asks_for_any_node, PACKED),
    Mutant(
        "whatever ends was withdrawn for want of room",
        ("respect",),
        _any_end_is_want_of_room,
        MINDFUL,
        story=2,
    ),
    Mutant("a job under another deployment's name is touched", ("2",), _renamed_touched, HANDS, story=18),
    Mutant("a job without our mark is replaced", ("1", "2"), _unmarked_replaced, UNHEARD, story=2),
    Mutant("a replica is handed over to nobody", ("5",), _relieved_at_once, BRIEF, story=8),
    Mutant(
        "a placement is left before its job is gone", ("1", "2"), _placement_left_at_once, SCARCE, story=7
    ),
    Mutant("what is of the wrong kind stays", ("4",), _kinds_forgotten, MOVING, story=3),
    Mutant("a canary is rolled out unasked", ("canary",), _canary_rolled_out_unasked, CAREFUL),
    Mutant("the progress deadline runs in the queue", ("9",), _deadline_from_the_queue, ROLLING, story=2),
    Mutant(
        "what never got ready and has not ended is forgotten",
        ("surge",),
        _unborn_not_counted,
        FLAPPING,
        story=1,
    ),
    Mutant(
        "a revision that failed is made anew beside one that serves",
        ("stopped",),
        _only_what_was_whole_is_fallen_back_on,
        HASTY,
        story=3,
    ),
    Mutant("silence counts while nobody listens", ("5",), _silence_without_ears, DEAF),
)
