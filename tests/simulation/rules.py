"""The rules that never break, asserted from outside: by Slurm's truth and the committed rows, never by the
controller's own view.

Numbers are DESIGN's: 1 never twice, 2 owned or gone, 3 unknown is not absent, 4 converges and rests, 5 enough ready,
6 intent before effect, 7 one leader, 9 waiting is no failure; and `back-off`, `surge` (no more replicas than that),
`canary` (no more of it than its share), `stopped` (no more of a revision that failed beside one that serves), `pack`
(nodes are asked for that run the deployment's) and `bug` (a pass that raises or hangs).

A rule can promise only what the world allows. A submission that reaches slurmctld after its message time-out may meet
its own repetition: then two jobs may be there, and the singleton dependency must keep one from running. A slurmctld
that forgot its jobs, and a database from yesterday, leave jobs that nobody could know of. `excuse` and `restored` say
where that happened; everything else stays strict.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penstock.core.decisions import Reason
from penstock.core.jobs import JobState, Submission
from penstock.core.rollout import available_floor
from penstock.core.spec import OutsideChanges, RolloutStrategy, Spec, share
from penstock.store.documents import decode
from penstock.testing.jobs import FakeJob

if TYPE_CHECKING:
    from tests.simulation.world import Process, World

ATTEMPTS = """
SELECT a.token, a.number, a.replica_uid, a.job_id, a.phase, a.restart_count, a.refusal, a.intended_at, a.submitted_at,
       a.ready_at, a.reported_at, a.drain_at, a.signalled_at, a.cancelled_at, a.ended_at, r.leaving, r.name,
       r.revision, d.uid, d.paused
FROM attempts a JOIN replicas r ON r.uid = a.replica_uid JOIN deployments d ON d.uid = r.deployment_uid
"""
EFFECT = """
SELECT id, reason, action->>'outcome' FROM decisions, jsonb_array_elements(actions) AS action
WHERE action->>'action' = ANY(%(actions)s) AND action->>'target' = ANY(%(targets)s) ORDER BY id DESC LIMIT 1
"""
NEW_DECISIONS = """
SELECT id, deployment, replica, reason, message FROM decisions WHERE id > %s ORDER BY id
"""
OPEN_ENDS = """
SELECT id, count, action->>'action' AS action FROM decisions, jsonb_array_elements(actions) AS action
WHERE action->>'outcome' = '' AND (id > %s OR id IN (SELECT max(id) FROM decisions GROUP BY deployment, replica))
"""
"""A subject's newest decision is counted up when it is tried again only; what was counted of an older one is written
when another takes its place."""
MADE = """
SELECT d.uid, count(*) FILTER (WHERE action->>'target' = 'revision ' || d.revision) AS current
FROM decisions CROSS JOIN LATERAL jsonb_array_elements(actions) AS action
JOIN deployments d ON d.name = decisions.deployment
WHERE decisions.id > %s AND action->>'action' = 'create-replica' GROUP BY d.uid
"""
THERE = """
SELECT r.revision, r.burst, r.leaving, r.revision <> d.revision AS other, a.token IS NOT NULL AS live,
       a.ready_at IS NOT NULL AS served
FROM replicas r JOIN deployments d ON d.uid = r.deployment_uid
LEFT JOIN attempts a ON a.replica_uid = r.uid AND a.ended_at IS NULL
WHERE r.deployment_uid = %s AND r.removed_at IS NULL AND a.handover_at IS NULL
"""
CANARY = """
SELECT revision, rollout_paused, coalesce((rollout->>'stable_revision')::bigint, 0) AS stable,
       coalesce((rollout->>'failed_revision')::bigint, 0) AS failed,
       greatest(promoted_revision, (rollout->>'baked_revision')::bigint) AS trusted
FROM deployments WHERE uid = %s
"""
OTHERS = """
SELECT r.name FROM replicas r JOIN deployments d ON d.uid = r.deployment_uid
WHERE d.uid = %s AND r.revision <> d.revision AND NOT r.leaving AND r.removed_at IS NULL
"""
FAILED = """
SELECT name, (rollout->>'failed_revision')::bigint AS revision, rollout->>'failed_message' AS message
FROM deployments WHERE (rollout->>'failed_revision')::bigint > 0 ORDER BY name
"""
LEASE = "SELECT holder, term, expires_at FROM leases"
DEPLOYMENTS = "SELECT uid, name, spec, revision, paused, deleted_at, force_delete FROM deployments"
ROWS = """
SELECT 'deployments', uid, xmin::text FROM deployments
UNION ALL SELECT 'replicas', uid, xmin::text FROM replicas
UNION ALL SELECT 'attempts', token, xmin::text FROM attempts
UNION ALL SELECT 'decisions', id::text, xmin::text FROM decisions
ORDER BY 1, 2
"""
"""Every row that a tick may write, with the transaction that wrote it last."""

SERVING = (JobState.UNKNOWN, JobState.RESIZING, JobState.SIGNALING)
"""Shown of a job whose processes run all the same: a state that nobody knows says nothing against its agent."""

TIMEOUTS = (Reason.STARTUP_TIMEOUT.word, Reason.REPORT_TIMEOUT.word)
EVADING = (Reason.HELD.word, Reason.SUSPENDED_TOO_LONG.word)
"""Cancellations of what somebody else has halted."""
ADMIN_HOLD = "JobHeldAdmin"
PATIENCE = 0.74
"""Of the doubled back-off at least this share must be waited: the rest may be jitter."""
PACE_S = 59
"""At least so long after an attempt that somebody else ended was written down the next one is."""
MARK_S = 1.0
"""A submission is sent no later than this after it was written down that it is about to be."""
REPEAT_S = 59
"""No sooner than this is a cancellation repeated."""
GRACE_S = 55
"""No job is younger than this when it is cancelled as nobody's."""


class Violation(AssertionError):
    """A rule is broken. `rule` is its number or word."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(f"rule {rule}: {what}")
        self.rule = rule


def deployment_of(submission: Submission) -> str:
    return submission.name.removeprefix("penstock-").rpartition("-")[0]


def _misplaced(spec: Spec, there: Sequence[Any]) -> int:
    """How many of these rows are of a kind (burst or not) of which fewer are wanted: they are handed over, as at a time
    limit, and what takes over is one more."""
    if spec.burst is None:
        return 0
    guaranteed = min(spec.burst.base, spec.replicas)
    kinds = Counter(one.burst for one in there)
    return max(0, kinds[False] - guaranteed) + max(0, kinds[True] - spec.replicas + guaranteed)


class Rules:
    """Watches one world. Called by it at every turn; raises Violation."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._excused: set[str] = set()
        self._replica_of: dict[str, str] = {}
        self._refused: set[str] = set()
        self._restored = False
        self._last_decision = self._before = 0
        self._open: frozenset[tuple[int, int]] = frozenset()
        """When the running pass looked: decisions without an outcome, and how often each was made."""
        self.failed: set[str] = set()
        """Tokens of attempts whose job ended with an error of its own."""
        self._failures: set[tuple[Any, ...]] = set()
        """Failed revisions that were judged: deployment, revision, message."""
        self._revisions: Mapping[str, int] = {}
        """When the running pass looked: token of each live attempt -> its replica's revision."""
        self._serving: Mapping[str, str] = {}
        """When the running pass looked: token of each attempt that served -> its deployment's uid."""
        self._given_up: frozenset[str] = frozenset()
        """Those of them whose agent had been silent for too long."""
        self._waiting: frozenset[int] = frozenset()
        """When the running pass looked: jobs that had no nodes."""
        self._nodes: Mapping[str, set[str]] = {}
        """When the running pass looked: each deployment's name -> the nodes that ran its jobs."""
        self._specs: Mapping[str, tuple[Any, ...]] = {}
        self._victims: Counter[str] = Counter()

    # What nobody could know ------------------------------------------------------------------------------------

    def excuse(self, name: str) -> None:
        self._excused.add(name.rpartition("-")[2])

    def restored(self) -> None:
        self._restored = True
        self._refused.clear()

    def forget(self, tokens: set[str]) -> None:
        """Of attempts but these nobody will ask again."""
        self._excused &= tokens
        self._refused &= tokens
        self.failed &= tokens
        self._replica_of = {token: uid for token, uid in self._replica_of.items() if token in tokens}

    # At every turn ---------------------------------------------------------------------------------------------

    def jobs(self) -> None:
        """Rule 1, by Slurm's truth."""
        live: dict[str, list[FakeJob]] = {}
        for job in self._ours():
            if not job.ended and job.ending is None:
                live.setdefault(job.submission.name, []).append(job)
        running: dict[str, str] = {}
        for name, jobs in live.items():
            token = name.rpartition("-")[2]
            ids = ", ".join(str(job.job_id) for job in jobs)
            if len(jobs) > 1 and token not in self._excused:
                raise Violation("1", f"jobs {ids} are live under the one name {name}")
            runs = [job for job in jobs if job.state is JobState.RUNNING]
            if len(runs) > 1:
                raise Violation("1", f"jobs {ids} run under the one name {name}")
            replica = self._replica_of.get(token)
            if not runs or replica is None or token in self._excused or self._restored:
                continue
            if replica in running:
                raise Violation("1", f"{running[replica]} and {name} run for the same replica")
            running[replica] = name

    async def look(self, process: Process) -> None:
        """The pass has its term, and asks for the listing."""
        (lease,) = await self._all(LEASE) or (None,)
        process.term = lease.term if lease is not None and lease.holder == process.name else 0

    async def begin_tick(self, process: Process) -> None:
        """The pass has its listing: what is there now is what its acts are judged by."""
        slurm = self._world.slurm
        rows = await self._all(f"{ATTEMPTS} WHERE a.ended_at IS NULL")
        there = {job.job_id: job for job in slurm.jobs()}
        serving = {}
        self._specs = {row.uid: tuple(row) for row in await self._all(DEPLOYMENTS)}
        for row in rows:
            job = there.get(row.job_id)
            plain = job is not None and (job.shown is None or job.shown[0] in SERVING)
            fit = job is not None and job.state is JobState.RUNNING and plain
            if not fit or job is None or job.restarts != row.restart_count or row.phase != "ready":
                continue
            if not (row.leaving or row.drain_at or row.signalled_at or row.cancelled_at):
                serving[row.token] = row.uid
        self._serving = serving
        self._given_up = frozenset(
            row.token for row in rows if row.token in serving and self._is_given_up(row)
        )
        self._revisions = {row.token: row.revision for row in rows}
        self._waiting = frozenset(job.job_id for job in slurm.jobs() if job.state is JobState.PENDING)
        nodes: dict[str, set[str]] = {}
        for job in self._ours():
            if not job.ended:
                nodes.setdefault(deployment_of(job.submission), set()).update(job.nodes)
        self._nodes = nodes
        self._victims.clear()
        self._before = self._last_decision
        self._open = frozenset((row.id, row.count) for row in await self._all(OPEN_ENDS, self._before))

    async def effect(self, process: Process, kind: str, name: str, job_id: int | None = None) -> None:
        """A controller calls Slurm to change something: rules 2, 3, 5, 6 and 9, before it is done."""
        what = f"{process.name} calls {kind} for {name}"
        if not process.listed:
            raise Violation("3", f"{what} in a pass without a listing")
        if kind == "submit":
            await self._submission(name, what)
        else:
            assert job_id is not None
            await self._mutation(process, kind, name, job_id, what)

    def beside(self, process: Process, submission: Submission) -> None:
        """Nodes are asked for only where they run replicas of the deployment."""
        there = self._nodes.get(deployment_of(submission), set())
        elsewhere = [node for node in submission.require_nodes if node not in there]
        if elsewhere and not (process.disturbed or process.stale_s):
            raise Violation(
                "pack", f"{process.name} asks for {elsewhere} for {submission.name}, which run none of it"
            )

    async def sent(self, process: Process, kind: str, name: str) -> None:
        """Rule 7 for what is done, and rule 1 for what may have been done: the call was let through."""
        what = f"{process.name} sends {kind} for {name}"
        await self._holds_lease(process, what)
        if kind == "submit":
            await self._doubted_from_now(name, what)

    async def committed(self, process: Process) -> None:
        """Rule 7 for what is decided: only the holder writes the log."""
        (newest,) = await self._all("SELECT coalesce(max(id), 0) AS id FROM decisions")
        if newest.id > self._last_decision:
            await self._holds_lease(process, f"{process.name} decides")
            await self._tell(process)

    async def end_tick(self, process: Process) -> None:
        """The pass is over: rules 2 (nothing living is given up) and 5."""
        self.jobs()
        live = {
            token: job
            for job in self._ours()
            if not job.ended and job.ending is None
            if (token := job.submission.name.rpartition("-")[2]) not in self._excused
        }
        if live and not self._restored:
            gone = await self._all(
                f"{ATTEMPTS} WHERE a.ended_at IS NOT NULL AND a.token = ANY(%s)", list(live)
            )
            for row in gone:
                never_seen = row.job_id is None and (row.leaving or row.paused)
                if not never_seen:
                    raise Violation(
                        "2", f"the attempt of job {live[row.token].job_id} was ended, and it lives"
                    )
        # A pass without a listing decides nothing, and what it would be judged by is an earlier one's.
        if process.listed and not (process.disturbed or process.stale_s):
            self._enough_ready()
            await self._not_too_many()
        if process.listed and not process.disturbed:
            self._refused |= process.refused
            for row in await self._all(OPEN_ENDS, self._before):
                if (row.id, row.count) not in self._open:
                    raise Violation("6", f"{process.name}: nothing says what came of {row.action}")

    async def at_rest(self) -> None:
        """Faults are off and everything is as wanted: rule 2, and every end has its sentence (rule 6)."""
        owned = {row.token for row in await self._all(f"{ATTEMPTS} WHERE a.ended_at IS NULL")}
        for job in self._ours():
            if not job.ended and job.submission.name.rpartition("-")[2] not in owned:
                raise Violation(
                    "2", f"job {job.job_id} ({job.submission.name}) bears our mark and is nobody's"
                )
        silent = await self._all("SELECT token FROM attempts WHERE ended_at IS NOT NULL AND end_message = ''")
        if silent:
            raise Violation("6", f"attempt {silent[0].token} ended without a word")

    async def rows(self) -> list[Any]:
        return await self._all(ROWS)

    async def unsettled(self) -> str:
        """Why the world is not as wanted; empty: it is."""
        for row in await self._all(DEPLOYMENTS):
            if row.deleted_at is not None:
                return f"{row.name} is not gone"
            want = row.spec["replicas"]
            made = await self._all(
                "SELECT r.state, r.revision, r.message, r.burst FROM replicas r"
                " WHERE r.deployment_uid = %s AND r.removed_at IS NULL",
                row.uid,
            )
            for one in made:
                if one.state != "ready" or one.revision != row.revision:
                    return f"a replica of {row.name} is {one.state}: {one.message}"
            spec = decode(Spec, row.spec)
            base = want if spec.burst is None else min(spec.burst.base, want)
            if (guaranteed := sum(not one.burst for one in made)) != base:
                return f"{row.name} has {guaranteed} of {base} guaranteed replicas"
            if len(made) != want:
                return f"{row.name} has {len(made)} of {want} replicas"
        owned = {row.token for row in await self._all(f"{ATTEMPTS} WHERE a.ended_at IS NULL")}
        for job in self._ours():
            if not job.ended and job.submission.name.rpartition("-")[2] not in owned:
                return f"job {job.job_id} is nobody's"
        return ""

    # One effect ------------------------------------------------------------------------------------------------

    async def _holds_lease(self, process: Process, what: str) -> None:
        rows = await self._all(LEASE)
        if not rows or rows[0].holder != process.name or rows[0].expires_at <= self._world.now:
            holder = f"{rows[0].holder} until {rows[0].expires_at:%H:%M:%S}" if rows else "nobody"
            raise Violation("7", f"{what} without the lease (holder: {holder})")
        if rows[0].term != process.term:
            raise Violation("7", f"{what} in term {rows[0].term}, and its pass began in term {process.term}")

    async def _submission(self, name: str, what: str) -> None:
        token = name.rpartition("-")[2]
        rows = await self._all(f"{ATTEMPTS} WHERE a.token = %s", token)
        if not rows or rows[0].ended_at is not None or rows[0].submitted_at is None:
            raise Violation("6", f"{what}, and no live attempt says so")
        (row,) = rows
        targets = [f"replica {row.name}", f"attempt {token}"]
        if not await self._intent(["submit", "resubmit"], targets):
            raise Violation("6", f"{what}, and no decision says so")
        if row.refusal or token in self._refused:
            raise Violation("6", f"{what}, though Slurm has refused it")
        self._replica_of[token] = row.replica_uid
        await self._backed_off(row, what)
        await self._minded(row, what)

    async def _doubted_from_now(self, name: str, what: str) -> None:
        """Who comes next counts the doubt from what is written here, so it must be about now."""
        (row,) = await self._all(f"{ATTEMPTS} WHERE a.token = %s", name.rpartition("-")[2])
        marked_s = (self._world.now - row.submitted_at).total_seconds()
        if marked_s > MARK_S:
            raise Violation("1", f"{what}, and the doubt about it counts from {marked_s:.1f} s ago")

    async def _backed_off(self, row: Any, what: str) -> None:
        earlier = await self._all(
            f"{ATTEMPTS} WHERE a.replica_uid = %s AND a.number < %s ORDER BY a.number DESC",
            row.replica_uid,
            row.number,
        )
        if self._restored or not earlier:
            return
        failures = 0
        policy = decode(Spec, (await self._all(DEPLOYMENTS + " WHERE uid = %s", row.uid))[0].spec).restart
        for one in earlier:
            if one.token not in self.failed:
                break
            failures += 1
            if one.ready_at and (one.ended_at - one.ready_at).total_seconds() >= policy.reset_after_s:
                break
        if failures:
            due_s = min(policy.backoff_initial_s * 2 ** (failures - 1), policy.backoff_max_s)
            waited_s = (row.intended_at - earlier[0].ended_at).total_seconds()
            if waited_s < due_s * PATIENCE:
                raise Violation(
                    "back-off",
                    f"{what} {waited_s:.1f} s after failure {failures} in a row; {due_s} s were due",
                )

    async def _minded(self, row: Any, what: str) -> None:
        """What somebody else ended is respected where the deployment says so, and makes no storm where not."""
        earlier = await self._all(
            "SELECT job, job_id, cancelled_at, intended_at FROM attempts"
            " WHERE replica_uid = %s AND number = %s AND ended_at IS NOT NULL",
            row.replica_uid,
            row.number - 1,
        )
        if self._restored or not earlier or earlier[0].job is None:
            return
        (last,) = earlier
        outside = last.job["state"] == JobState.CANCELLED and last.cancelled_at is None
        if not outside and last.job["state"] != JobState.PREEMPTED:
            return
        if outside and await self._intent(["withdraw"], [f"job {last.job_id}"]):
            return
        waited_s = (row.intended_at - last.intended_at).total_seconds()
        if waited_s < PACE_S:
            raise Violation("pace", f"{what} {waited_s:.0f} s after an attempt that somebody ended")
        spec = decode(Spec, (await self._all(DEPLOYMENTS + " WHERE uid = %s", row.uid))[0].spec)
        if outside and spec.outside_changes is OutsideChanges.RESPECT:
            raise Violation("respect", f"{what}, and somebody cancelled job {last.job_id}")

    async def _mutation(self, process: Process, kind: str, name: str, job_id: int, what: str) -> None:
        action = {"signal": ["drain"], "withdraw": ["withdraw"]}.get(kind, ["cancel", "cancel-orphan"])
        intent = await self._intent(action, [f"job {job_id}"])
        if intent is None:
            raise Violation("6", f"{what}, and no decision says so")
        job = next((job for job in self._world.slurm.jobs() if job.job_id == job_id), None)
        if job is None or job.submission.name != name or job.ended:
            return
        if job not in self._ours():
            raise Violation("2", f"{what}: job {job_id} is not ours")
        await self._not_told_before(kind, job_id, what)
        reason, as_seen = intent.reason, not (process.disturbed or process.stale_s)
        if as_seen and (job.comment is not None or job.renamed is not None):
            raise Violation("2", f"{what}: somebody took our mark from job {job_id}")
        if reason in EVADING and as_seen:
            await self._respected(job, what)
        if reason in TIMEOUTS and job_id in self._waiting and not process.stale_s:
            raise Violation("9", f"{what}: {reason}, and job {job_id} waits in the queue")
        age_s = (self._world.now - job.submitted_at).total_seconds()
        is_young = age_s < GRACE_S and job.restarts == 0  # A requeue submits it anew.
        if reason == Reason.ORPHAN_CANCELLED.word and is_young:
            raise Violation("2", f"{what}: nobody's for {age_s:.0f} s only")
        token = name.rpartition("-")[2]
        if token in self._serving and as_seen:
            self._serves(kind, reason, token, job, what)

    async def _not_told_before(self, kind: str, job_id: int, what: str) -> None:
        """What an attempt's row says of a signal or a cancellation came after it (rule 6)."""
        rows = await self._all(f"{ATTEMPTS} WHERE a.job_id = %s AND a.ended_at IS NULL", job_id)
        for row in rows:
            told_s = None
            if kind == "cancel" and row.cancelled_at is not None:
                told_s = (self._world.now - row.cancelled_at).total_seconds()
            if (kind == "signal" and row.signalled_at is not None) or (
                told_s is not None and told_s < REPEAT_S
            ):
                raise Violation("6", f"{what}, and it is written down already that it was done")

    async def _respected(self, job: FakeJob, what: str) -> None:
        """What somebody halts is his to set free, where the deployment says so; what an administrator holds, always."""
        attempt = await self._all(f"{ATTEMPTS} WHERE a.job_id = %s AND a.ended_at IS NULL", job.job_id)
        if not attempt or attempt[0].leaving:
            return
        spec = decode(Spec, (await self._all(DEPLOYMENTS + " WHERE uid = %s", attempt[0].uid))[0].spec)
        if job.reason == ADMIN_HOLD or spec.outside_changes is OutsideChanges.RESPECT:
            raise Violation("respect", f"{what}, and somebody halted job {job.job_id} ({job.reason})")

    def _serves(self, kind: str, reason: str, token: str, job: FakeJob, what: str) -> None:
        """The job takes requests: it may be drained, within bounds, and cancelled only for its agent's silence."""
        *_, deleted_at, forced = self._specs.get(self._serving[token], (None, False))
        if reason in TIMEOUTS:
            if not self._is_silent(job.job_id):
                raise Violation("5", f"{what}: {reason}, and its agent speaks")
        elif kind == "cancel" and not (deleted_at and forced):
            raise Violation("5", f"{what}: it serves, and was not drained")
        else:
            self._victims[token] += 1

    def _is_silent(self, job_id: int) -> bool:
        agent = self._world.agents.get(job_id)
        return agent is None or (agent.silent_from is not None and agent.silent_from <= self._world.now)

    def _is_given_up(self, row: Any) -> bool:
        """Whether its silence alone would have its job cancelled: letting it go takes nothing from anybody."""
        if row.reported_at is None or not self._is_silent(row.job_id):
            return False
        spec = decode(Spec, self._specs[row.uid][2])
        return bool((self._world.now - row.reported_at).total_seconds() > spec.probes.report_timeout_s)

    def _enough_ready(self) -> None:
        """Rule 5: what is left of each deployment that this pass took from."""
        taken = {token for token in self._victims if token not in self._given_up}
        for uid in {self._serving[token] for token in taken}:
            if uid not in self._specs:
                continue
            _, name, document, revision, _, deleted_at, _ = self._specs[uid]
            spec = decode(Spec, document)
            if deleted_at is not None or spec.rollout.strategy is RolloutStrategy.RECREATE:
                continue
            left = sum(its == uid and token not in self._victims for token, its in self._serving.items())
            # What a rollout may take is a rollout's: a handover, or a scaling, leaves as many as are wanted.
            rolls = any(self._revisions[token] != revision for token in taken if self._serving[token] == uid)
            floor = available_floor(spec.rollout, spec.replicas) if rolls else spec.replicas
            if left < floor:
                raise Violation("5", f"{left} replicas of {name} are left ready by a pass; {floor} must be")

    async def _not_too_many(self) -> None:
        """What this pass made fits the wanted number and the surge, and a canary is no more than its share."""
        for made in await self._all(MADE, self._before):
            row = self._specs.get(made.uid)
            if row is None or row[5] is not None:
                continue
            _, name, document, revision, *_ = row
            spec = decode(Spec, document)
            most = spec.replicas + share(spec.rollout.max_surge, spec.replicas, up=True)
            there = await self._all(THERE, made.uid)
            found = [one for one in there if not one.leaving or (one.live and not one.served and one.other)]
            most += _misplaced(spec, found)
            if len(found) > most:
                raise Violation("surge", f"{name} has {len(found)} replicas; {most} may be")
            (record,) = await self._all(CANARY, made.uid)
            await self._stopped(name, spec, record, made)
            canary = spec.rollout.canary
            is_new = record.stable in (0, revision) or record.trusted >= revision or record.failed == revision
            if canary is None or is_new or record.revision != revision:
                continue
            new = [one for one in there if one.revision == revision and not one.leaving]
            most = max(1, -(-canary.percent * spec.replicas // 100)) + _misplaced(spec, new)
            if made.current and len(new) > most:
                raise Violation(
                    "canary", f"{len(new)} replicas of {name} run the canary, of {spec.replicas} wanted"
                )

    async def _stopped(self, name: str, spec: Spec, record: Any, made: Any) -> None:
        """A revision that has failed gets no more replicas as long as there are others to fall back on."""
        failed = record.failed == record.revision and not record.rollout_paused
        if not (failed and made.current) or spec.rollout.strategy is RolloutStrategy.RECREATE:
            return
        others = await self._all(OTHERS, made.uid)
        if record.stable not in (0, record.revision) or others:
            raise Violation(
                "stopped",
                f"{made.current} made of revision {record.revision} of {name}, which failed, beside {len(others)}",
            )

    async def _deadlines(self, process: Process) -> None:
        """Rule 9: the progress deadline is counted from the job's start."""
        for row in await self._all(FAILED):
            if tuple(row) not in self._failures:
                self._failures.add(tuple(row))
                said = f"{process.name} calls revision {row.revision} of {row.name} failed"
                self._deadline(process, row.message, said)

    def _deadline(self, process: Process, message: str, said: str) -> None:
        found = re.search(r"job (\d+) generated no token within (\d+) s of its start", message)
        jobs = [] if found is None else [one for one in self._ours() if one.job_id == int(found[1])]
        if found is None or not jobs or process.stale_s or process.disturbed:
            return
        (job,) = jobs
        if job.state is JobState.PENDING or job.started_at is None:
            raise Violation("9", f"{said}: job {job.job_id} waits in the queue")
        ran_s = (self._world.now - job.started_at).total_seconds()
        if ran_s < int(found[2]):
            raise Violation("9", f"{said}: job {job.job_id} has run for {ran_s:.0f} s only")

    async def _intent(self, actions: list[str], targets: list[str]) -> Any:
        rows = await self._all(EFFECT, {"actions": actions, "targets": targets})
        return rows[0] if rows else None

    async def _tell(self, process: Process) -> None:
        """The new decisions, into the story."""
        for row in await self._all(NEW_DECISIONS, self._last_decision):
            self._last_decision = row.id
            subject = row.replica or row.deployment or "cluster"
            self._world.say(f"{process.name} on {subject}: {row.reason}: {row.message}")
        await self._deadlines(process)

    def _ours(self) -> list[FakeJob]:
        return [job for job in self._world.slurm.jobs() if self._world.is_ours(job)]

    async def _all(self, statement: str, *values: Any) -> list[Any]:
        given: Any = values[0] if len(values) == 1 and isinstance(values[0], dict) else values
        found = await self._world.admin.execute(statement.encode(), given)
        return await found.fetchall()
