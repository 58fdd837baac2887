"""A Slurm cluster in memory: the same port, a small scheduler, and faults on demand.

For tests of anything that speaks to `penstock.slurm.port.Slurm`. The contract suite runs on it and on real clusters
alike, so what it answers is what Slurm answers. It runs no script: a job that has started runs until its time limit,
a signal, or a call of `finish`; attach what should happen meanwhile with the hooks.

    fake = FakeSlurm(clock=clock.now)
    job_id = await fake.submit(submission)
    clock.advance(seconds=2)
    assert (await fake.list_jobs())[0].state is JobState.RUNNING
    fake.finish(job_id, exit_code=1)

Time is the injected clock's and nothing else's. Every call, and `advance()`, first lets happen what was due since the
last one, each at its own time and in order, so that the same calls at the same times give the same history.

What it does not model: priorities and fair share (jobs are considered in the order of their ids, and a later one that
fits may overtake), reservations but for maintenance, arrays, accounting beyond a list of accounts, and other users.

The rule guarded here: like Slurm, it promises nothing about replies. `faults` makes it fall silent, refuse, or accept
a job and lose the answer.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from penstock.core.jobs import Cluster, Job, JobState, Maintenance, Node, Partition, Submission
from penstock.core.slurm_words import ENDED_STATES
from penstock.slurm import options, parse
from penstock.slurm.port import (
    May,
    NoAccounting,
    NoSuchJob,
    SlurmUnavailable,
    SubmissionRefused,
    SubmissionUnknown,
)
from penstock.testing.jobs import FakeJob
from penstock.testing.room import compressed, cpus, described, fits, free, gpus

DEFAULT_NODES = (
    Node(
        name="node1", state="IDLE", cpus=8, memory_mib=16000, gpus={"": 2}, partitions=("cpu", "gpu", "short")
    ),
    Node(
        name="node2", state="IDLE", cpus=8, memory_mib=16000, gpus={"": 2}, partitions=("cpu", "gpu", "short")
    ),
)
"""The development cluster's."""

DEFAULT_LIMITS = {"gpu": (None, 3600), "cpu": (None, 3600), "short": (600, 300)}
"""Partition -> longest and default time in seconds; the development cluster's. The first is the default."""

DOWN_NODE = "DOWN+NOT_RESPONDING"


class SubmitFault(enum.Enum):
    """What can become of a submission besides an answer."""

    NOT_SENT = "there was nobody to send the request"
    LOST_BEFORE = "the request never arrived; there is no job"
    LOST_AFTER = "the job was made and the reply was lost"


@dataclass(slots=True)
class Faults:
    """What goes wrong next. All of it can be set at any time; a fault for one call is used up by it."""

    down: str = ""
    """When not empty every call fails with this message, and no submission arrives."""
    submits: deque[SubmitFault | str | None] = field(default_factory=deque)
    """For the coming submissions, one each: a fault, a sentence to refuse with, or None for none."""
    failing: Counter[str] = field(default_factory=Counter)
    """Call -> how many of the coming ones fail with SlurmUnavailable: `failing["list_jobs"] = 2`."""


Hook = Callable[[FakeJob], None]
SignalHook = Callable[[FakeJob, str], bool]
CallHook = Callable[[str], Awaitable[None]]


def anybody() -> None:
    """Whoever calls may: there is no other controller."""


class FakeSlurm:
    """A Slurm cluster in memory; implements `penstock.slurm.port.Slurm`."""

    def __init__(
        self,
        *,
        clock: Callable[[], datetime],
        nodes: Sequence[Node] = DEFAULT_NODES,
        limits: Mapping[str, tuple[int | None, int | None]] = DEFAULT_LIMITS,
        accounts: tuple[str, ...] | None = None,
        keeps_history: bool = False,
        name: str = "fake",
        slurm_version: str = "26.05.5",
        message_timeout_s: int = 10,
        start_delay_s: float = 1.0,
        requeue_delay_s: float = 6.0,
        kill_wait_s: float = 30.0,
        min_job_age_s: float = 300.0,
        on_start: Hook | None = None,
        on_signal: SignalHook | None = None,
        on_end: Hook | None = None,
        before_call: CallHook | None = None,
        after_call: CallHook | None = None,
    ) -> None:
        """`clock` gives the time, aware and never going back.

        `nodes`: as idle; which partitions they are in is theirs to say. `limits`: as DEFAULT_LIMITS.
        `keeps_history`: there is a slurmdbd, which forgets nothing.
        `start_delay_s`: from submission to the earliest start; `requeue_delay_s`: the same after a requeue.
        `kill_wait_s`: from SIGTERM to SIGKILL; `min_job_age_s`: how long an ended job is remembered.

        `on_start`, `on_end`: called once when a job starts (again after a requeue) or ends (or is requeued).
        `on_signal`: called with the signal's name without SIG; true says that the job lives on and will end itself with
        `finish` (or be killed). Without the hook every signal ends the job at once.
        `before_call`, `after_call`: awaited with the name of a port call around its effect: the place for a
        delay, or for a crash just before or just after. A call that changes something asks its `may` between the two.
        """
        self._clock = clock
        self._now = clock()
        self._nodes = {node.name: node for node in nodes}
        self._partitions = _partitions(nodes, limits)
        self._accounts = accounts
        self._name = name
        self._slurm_version = slurm_version
        self.message_timeout_s = message_timeout_s
        self._start_delay = timedelta(seconds=start_delay_s)
        self._requeue_delay = timedelta(seconds=requeue_delay_s)
        self._kill_wait = timedelta(seconds=kill_wait_s)
        self._min_job_age = timedelta(seconds=min_job_age_s)
        self.on_start = on_start
        self.on_signal = on_signal
        self.on_end = on_end
        self.before_call = before_call
        self.after_call = after_call
        self._jobs: dict[int, FakeJob] = {}
        self.keeps_history = keeps_history
        self._history: dict[tuple[int, datetime], Job] = {}
        """By id and submission, as accounting tells runs apart."""
        self._advancing = False
        self._next_id = 1
        self._maintenance: list[Maintenance] = []
        self.faults = Faults()
        self.calls: Counter[str] = Counter()
        """Port call -> how often it was made, also when it failed."""

    # The port --------------------------------------------------------------------------------------------------

    @property
    def backend(self) -> str:
        return "fake"

    @property
    def one_at_a_time(self) -> bool:
        return False

    async def list_jobs(self) -> tuple[Job, ...]:
        await self._begin("list_jobs")
        rows = tuple(self._row(job) for job in self._jobs.values())
        await self._end("list_jobs")
        return rows

    async def find(self, name: str) -> tuple[Job, ...]:
        await self._begin("find")
        rows = tuple(self._row(job) for job in self._jobs.values() if job.name == name)
        await self._end("find")
        return rows

    async def history(self, job_ids: Sequence[int]) -> tuple[Job, ...]:
        await self._begin("history")
        if not self.keeps_history:
            raise NoAccounting("Slurm accounting storage is disabled")
        for job in self._jobs.values():
            self._remember(job)
        wanted = [row for (job_id, _), row in sorted(self._history.items()) if job_id in job_ids]
        await self._end("history")
        return tuple(wanted)

    async def submit(self, submission: Submission, *, may: May = anybody) -> int:
        fault = self.faults.submits.popleft() if self.faults.submits else None
        try:
            await self._begin("submit", may)
        except SlurmUnavailable as error:
            raise SubmissionUnknown(f"submitting job {submission.name}: {error}") from error
        if fault is SubmitFault.NOT_SENT:
            raise SlurmUnavailable(f"submitting job {submission.name}: the request was not sent (injected)")
        if fault is SubmitFault.LOST_BEFORE:
            raise SubmissionUnknown(f"submitting job {submission.name}: the request was lost (injected)")
        if isinstance(fault, str):
            raise SubmissionRefused(fault)
        job = self._make(submission)
        await self._end("submit")
        if fault is SubmitFault.LOST_AFTER:
            raise SubmissionUnknown(f"submitting job {submission.name}: the reply was lost (injected)")
        return job.job_id

    async def cancel(self, job_id: int, *, name: str, may: May = anybody, only_waiting: bool = False) -> None:
        await self._begin("cancel")
        job = self._named(job_id, name)
        if not job.ended and not (only_waiting and job.active):
            may()
            self._terminate(job, JobState.CANCELLED)
        await self._end("cancel")

    async def signal(self, job_id: int, signal: str, *, name: str, may: May = anybody) -> None:
        await self._begin("signal")
        job = self._named(job_id, name)
        if job.state is not JobState.RUNNING:
            raise NoSuchJob(f"job {job_id} ({name}) is {job.state}, so it cannot be sent {signal}")
        may()
        self._signal(job, signal.removeprefix("SIG"))
        await self._end("signal")

    async def cluster(self) -> Cluster:
        await self._begin("cluster")
        holders = self._holders()
        cluster = Cluster(
            name=self._name,
            slurm_version=self._slurm_version,
            partitions=tuple(self._partitions.values()),
            nodes=tuple(described(node, holders.get(node.name, ())) for node in self._nodes.values()),
            accounts=self._accounts,
            message_timeout_s=self.message_timeout_s,
            maintenance=tuple(sorted(self._maintenance, key=lambda one: (one.begins_at, one.name))),
        )
        await self._end("cluster")
        return cluster

    async def close(self) -> None:
        """Nothing is held."""

    # What a test does to the cluster -----------------------------------------------------------------------------

    def advance(self) -> None:
        """Let happen what is due by the clock. Every call does this first; from within a hook it does nothing."""
        if self._advancing:
            return
        self._advancing = True
        try:
            target = self._clock()
            while (due := min(self._events(), default=None)) is not None and due <= target:
                self._now = due
                self._pass()
            self._now = max(target, self._now)
            self._pass()
        finally:
            self._advancing = False

    def job(self, job_id: int) -> FakeJob:
        """The job with this id; KeyError when it is forgotten or never was."""
        return self._jobs[job_id]

    def jobs(self) -> tuple[FakeJob, ...]:
        """Every job that is remembered, by id."""
        return tuple(self._jobs.values())

    def finish(self, job_id: int, *, exit_code: int = 0, exit_signal: int | None = None) -> None:
        """The batch script ends, by itself or by a signal. A job that was told to end keeps that ending."""
        self.advance()
        job = self._jobs[job_id]
        if not job.active:
            raise ValueError(f"job {job_id} is {job.state}; only a running job can finish")
        clean = exit_code == 0 and exit_signal is None
        state = job.ending or (JobState.COMPLETED if clean else JobState.FAILED)
        self._over(job, state, exit_code=None if exit_signal else exit_code, exit_signal=exit_signal)

    def end(self, job_id: int, state: JobState, *, reason: str = "", exit_code: int = 0) -> None:
        """Slurm ends the job in this state, whatever its script does: OUT_OF_MEMORY, BOOT_FAIL, REVOKED, ..."""
        self.advance()
        if state not in ENDED_STATES:
            raise ValueError(f"{state} is no state that a job ends in")
        self._over(self._jobs[job_id], state, reason=reason, exit_code=exit_code)

    def show(self, job_id: int, state: JobState | None, text: str = "") -> None:
        """Listings call the job's state so until it changes; None: they say what it is.

        For states that this fake has no scheduler for (SUSPENDED, RESIZING, STAGE_OUT, ...) and for those that no
        release knows: then `state` is UNKNOWN and `text` is Slurm's word.
        """
        self._jobs[job_id].shown = None if state is None else (state, text or state.value)

    def comment(self, job_id: int, text: str | None) -> None:
        """As `scontrol update Comment=`; None: as it was submitted."""
        self._jobs[job_id].comment = text

    def rename(self, job_id: int, name: str | None) -> None:
        """As `scontrol update JobName=`; None: as it was submitted."""
        self._jobs[job_id].renamed = name

    def requeue(self, job_id: int) -> None:
        """Slurm takes the job off its nodes and queues it again: same id, one restart more. So ends a preemption."""
        self.advance()
        job = self._jobs[job_id]
        if not job.active:
            raise ValueError(f"job {job_id} is {job.state}; only a running job can be requeued")
        self._remember(job, JobState.REQUEUED)
        self._gone(job)
        job.state, job.reason = JobState.PENDING, "BeginTime"
        job.restarts += 1
        # Slurm counts it as submitted anew, never at the second of the time before: accounting tells runs apart by it.
        job.submitted_at = max(self._now, job.submitted_at + timedelta(seconds=1))
        job.eligible_at = self._now + self._requeue_delay
        job.started_at = job.kill_at = job.ending = None
        job.nodes, job.warned, job.shown = (), False, None

    def lose(self, job_id: int) -> None:
        """Slurm forgets the job; whatever ran of it is gone."""
        self.advance()
        job = self._jobs.pop(job_id)
        self._remember(job)
        if job.active:
            self._gone(job)

    def reset_state(self) -> None:
        """slurmctld loses its state: every job is forgotten and ids start again from 1."""
        for job_id in list(self._jobs):
            self.lose(job_id)
        self._next_id = 1

    def purge(self) -> None:
        """slurmdbd forgets what it knew, as a site lets it do with what is old."""
        self._history.clear()

    def hold(self, job_id: int, reason: str = "JobHeldAdmin") -> None:
        """Keep a waiting job waiting for this reason, until `release`."""
        self.advance()
        job = self._jobs[job_id]
        job.reason, job.eligible_at = reason, datetime.max.replace(tzinfo=self._now.tzinfo)

    def release(self, job_id: int) -> None:
        """End a hold."""
        job = self._jobs[job_id]
        job.reason, job.eligible_at = "", self._now
        self.advance()

    def fail_node(self, name: str) -> None:
        """The node falls silent. Its jobs are requeued, or become NODE_FAIL when submitted with `no-requeue`."""
        self.advance()
        self._nodes[name] = replace(self._nodes[name], state=DOWN_NODE, reason="Not responding")
        for job in [job for job in self._jobs.values() if job.active and name in job.nodes]:
            if "no-requeue" in job.submission.extra_options or job.ending is not None:
                self._over(job, job.ending or JobState.NODE_FAIL, reason="NodeDown", exit_code=0)
            else:
                self.requeue(job.job_id)

    def drain_node(self, name: str, reason: str = "maintenance") -> None:
        """The node takes no new job; its running ones go on."""
        self._nodes[name] = replace(self._nodes[name], state="IDLE+DRAIN", reason=reason)

    def reserve(self, maintenance: Maintenance) -> None:
        """Announces a maintenance, over whatever runs there (Slurm's flags MAINT and IGNORE_JOBS): from now on no job
        is started that would run into it, and the ones that run when it begins are left to whoever made it."""
        self.advance()
        self._maintenance.append(maintenance)

    def restore_node(self, name: str) -> None:
        """The node is well again."""
        self._nodes[name] = replace(self._nodes[name], state="IDLE", reason="")

    # Inside ----------------------------------------------------------------------------------------------------

    async def _begin(self, call: str, may: May = anybody) -> None:
        self.calls[call] += 1
        if self.before_call is not None:
            await self.before_call(call)
        may()
        if self.faults.down:
            raise SlurmUnavailable(self.faults.down)
        if self.faults.failing[call] > 0:
            self.faults.failing[call] -= 1
            raise SlurmUnavailable(f"{call} failed (injected)")
        self.advance()

    async def _end(self, call: str) -> None:
        if self.after_call is not None:
            await self.after_call(call)

    def _make(self, submission: Submission) -> FakeJob:
        wrong = options.problems(submission)
        if wrong:
            raise SubmissionRefused("; ".join(wrong))
        partition = self._partition(submission)
        refusal = self._refusal(submission)
        if refusal is not None:
            raise SubmissionRefused(refusal)
        limit = submission.time_limit_s
        job = FakeJob(
            job_id=self._next_id,
            submission=submission,
            partition=partition,
            state=JobState.PENDING,
            reason="",
            submitted_at=self._now,
            eligible_at=self._now + self._start_delay,
            time_limit_s=partition.default_time_s if limit is None else options.minutes(limit) * 60,
        )
        self._jobs[job.job_id] = job
        self._next_id += 1
        if not self._exceeds(job) and self._able(job) < submission.nodes:
            # Slurm's own habits: what the partition is too small for as a whole may wait for it to grow; what its
            # nodes cannot carry is refused, and kept for a while as a failed job.
            self._over(job, JobState.FAILED, reason="BadConstraints", exit_signal=1)
            raise SubmissionRefused("Requested node configuration is not available")
        self.advance()
        return job

    def _partition(self, submission: Submission) -> Partition:
        if submission.partition is None:
            return next(partition for partition in self._partitions.values() if partition.is_default)
        if submission.partition not in self._partitions:
            raise SubmissionRefused("Invalid partition name specified")
        return self._partitions[submission.partition]

    def _refusal(self, submission: Submission) -> str | None:
        features = {feature for node in self._nodes.values() for feature in node.features}
        if self._accounts is not None and (submission.account or "") not in (*self._accounts, ""):
            return "Invalid account or account/partition combination specified"
        if submission.reservation is not None:
            return "Requested reservation is invalid"
        if submission.constraint is not None and submission.constraint not in features:
            return "Invalid feature specification"
        if not {*submission.exclude_nodes, *submission.require_nodes} <= set(self._nodes):
            return "Invalid node name specified"
        unknown = sorted(set(submission.extra_options) - options.KNOWN_OPTIONS)
        if unknown:
            return f"unrecognized option '--{unknown[0]}'"
        try:
            gpus(submission)
        except ValueError:
            return "Invalid generic resource (gres) specification"
        return None

    def _named(self, job_id: int, name: str) -> FakeJob:
        job = self._jobs.get(job_id)
        if job is None:
            raise NoSuchJob(f"Slurm knows no job {job_id} ({name}) of this user")
        if job.name != name:
            raise NoSuchJob(
                f"job {job_id} is named {parse.quote(job.name)}, not {name}: its id was used again"
            )
        return job

    def _events(self) -> Iterable[datetime]:
        """When something is next due to happen, for each job; only times after now."""
        for job in self._jobs.values():
            moments = [job.eligible_at] if job.state is JobState.PENDING else []
            if job.state is JobState.RUNNING and job.limit_at is not None:
                moments.append(job.limit_at)
                if job.submission.warn_signal_s is not None and not job.warned:
                    moments.append(job.limit_at - timedelta(seconds=job.submission.warn_signal_s))
            if job.kill_at is not None:
                moments.append(job.kill_at)
            if job.ended_at is not None:
                moments.append(job.ended_at + self._min_job_age)
            if job.state is JobState.PENDING:
                moments += [one.ends_at for one in self._maintenance]
            yield from (moment for moment in moments if moment > self._now)

    def _pass(self) -> None:
        """Everything that is due now, once for each job: ends first, so that their nodes can be used at once."""
        for job in list(self._jobs.values()):
            if job.kill_at is not None and job.kill_at <= self._now:
                self._over(job, job.ending or JobState.FAILED, exit_signal=9)
            elif job.state is JobState.RUNNING and job.limit_at is not None:
                self._near_limit(job, job.limit_at)
            elif job.ended_at is not None and job.ended_at + self._min_job_age <= self._now:
                self._jobs.pop(job.job_id, None)  # a hook may have lost it
        for job in list(self._jobs.values()):
            if job.state is JobState.PENDING and job.eligible_at <= self._now:
                self._consider(job)

    def _near_limit(self, job: FakeJob, limit_at: datetime) -> None:
        warning = job.submission.warn_signal_s
        if limit_at <= self._now:
            self._terminate(job, JobState.TIMEOUT)
        elif warning is not None and not job.warned and limit_at - timedelta(seconds=warning) <= self._now:
            job.warned = True
            self._signal(job, "TERM")

    def _consider(self, job: FakeJob) -> None:
        """Start a waiting job, or say why not."""
        job.reason = self._obstacle(job)
        if job.reason:
            return
        chosen = self._room(job, job.time_limit_s)
        if chosen is None and job.submission.time_min_s is not None:
            # Backfill tries the shortest limit that is allowed, and then gives what fits.
            least_s = options.minutes(job.submission.time_min_s) * 60
            chosen = self._room(job, least_s)
            if chosen is not None:
                job.time_limit_s = self._longest(chosen, least_s, job.time_limit_s)
        if chosen is None and self._room(job, 0) is not None:
            job.reason = "ReqNodeNotAvail, Reserved for maintenance"
            return
        if chosen is None:
            ahead = any(
                other.reason == "Resources" and other.job_id < job.job_id and other.partition is job.partition
                for other in self._jobs.values()
                if other.state is JobState.PENDING
            )
            job.reason = "Priority" if ahead else "Resources"
            return
        job.state, job.nodes, job.started_at = JobState.RUNNING, chosen, self._now
        job.shown = None
        if self.on_start is not None:
            self.on_start(job)

    def _longest(self, nodes: Sequence[str], least_s: int, most_s: int | None) -> int:
        """The longest limit with which these nodes are left before the next maintenance, in whole minutes."""
        begins = [
            one.begins_at
            for one in self._maintenance
            if one.begins_at > self._now and {*nodes} & {*one.nodes}
        ]
        left_s = int((min(begins) - self._now).total_seconds()) // 60 * 60 if begins else most_s
        return max(least_s, min(limit for limit in (left_s, most_s) if limit is not None))

    def _obstacle(self, job: FakeJob) -> str:
        if not job.partition.up:
            return "PartitionDown"
        limit = job.partition.max_time_s
        if limit is not None and (job.time_limit_s is None or job.time_limit_s > limit):
            return "PartitionTimeLimit"
        if self._exceeds(job):
            return "PartitionConfig"
        if job.submission.singleton and any(
            other.name == job.name and not other.ended and (other.active or other.job_id < job.job_id)
            for other in self._jobs.values()
            if other is not job
        ):
            return "Dependency"
        return ""

    def _exceeds(self, job: FakeJob) -> bool:
        """Whether the job is larger than its whole partition."""
        nodes = job.submission.nodes
        return nodes > job.partition.total_nodes or nodes * cpus(job.submission) > job.partition.total_cpus

    def _able(self, job: FakeJob) -> int:
        """How many nodes of the partition could carry the job if they were empty."""
        return sum(
            fits(job.submission, node)
            for node in self._nodes.values()
            if job.partition.name in node.partitions
        )

    def _runs_into_maintenance(self, job: FakeJob, node: str, limit_s: int | None) -> bool:
        ends_at = None if limit_s is None else self._now + timedelta(seconds=limit_s)
        return any(
            node in one.nodes and self._now < one.ends_at and (ends_at is None or ends_at > one.begins_at)
            for one in self._maintenance
        )

    def _room(self, job: FakeJob, limit_s: int | None) -> tuple[str, ...] | None:
        """The first nodes that have what the job needs free for so long; None when they are too few."""
        holders = self._holders()
        able = [
            name
            for name, node in self._nodes.items()
            if node.usable
            and job.partition.name in node.partitions
            and free(job.submission, node, holders.get(name, ()))
            and not self._runs_into_maintenance(job, name, limit_s)
        ]
        required = job.submission.require_nodes
        if not set(required) <= set(able) or len(able) < job.submission.nodes:
            return None
        return tuple(sorted(able, key=lambda name: name not in required)[: job.submission.nodes])

    def _holders(self) -> dict[str, list[FakeJob]]:
        """The jobs that hold each node that any job holds. Asked for once for all nodes: each asks all jobs."""
        holders: dict[str, list[FakeJob]] = {}
        for job in self._jobs.values():
            for name in job.nodes if job.active else ():
                holders.setdefault(name, []).append(job)
        return holders

    def _signal(self, job: FakeJob, signal: str) -> None:
        if self.on_signal is not None and self.on_signal(job, signal):
            return
        if job.active:
            self._over(job, job.ending or JobState.FAILED, exit_signal=_SIGNALS.get(signal, 15))

    def _terminate(self, job: FakeJob, ending: JobState) -> None:
        """SIGTERM now, SIGKILL after kill_wait_s; a waiting job just ends. Doing it twice changes nothing."""
        if not job.active:
            self._over(job, ending, exit_code=0)
        elif job.ending is None:
            job.state, job.ending, job.kill_at = JobState.COMPLETING, ending, self._now + self._kill_wait
            self._signal(job, "TERM")

    def _gone(self, job: FakeJob) -> None:
        if self.on_end is not None:
            self.on_end(job)

    def _over(
        self,
        job: FakeJob,
        state: JobState,
        *,
        exit_code: int | None = None,
        exit_signal: int | None = None,
        reason: str | None = None,
    ) -> None:
        ran = job.active
        job.state, job.ended_at, job.kill_at, job.ending = state, self._now, None, None
        job.exit_code, job.exit_signal, job.shown = exit_code, exit_signal, None
        default = {JobState.FAILED: "NonZeroExitCode", JobState.TIMEOUT: "TimeLimit"}.get(state, "")
        job.reason = default if reason is None else reason
        self._remember(job)
        if ran:
            self._gone(job)

    def _remember(self, job: FakeJob, state: JobState | None = None) -> None:
        """As slurmdbd would tell of it now; `state`: of a run that is over while the job is not."""
        if self.keeps_history:
            row = replace(self._row(job), comment="", reason="", time_limit_s=None, restarts=0)
            if state is not None:
                row = replace(row, state=state, state_text=state.value, ends_at=self._now)
            self._history[job.job_id, job.submitted_at] = row

    def _row(self, job: FakeJob) -> Job:
        started_at, ends_at = job.started_at, job.ended_at or job.limit_at
        if job.reason == "Resources" and not job.ended:
            # Slurm's backfill scheduler estimates a start from the limits of what runs.
            ends = [
                other.limit_at for other in self._jobs.values() if other.active and other.limit_at is not None
            ]
            started_at = min(ends, default=None)
        state, state_text = job.shown or (job.state, job.state.value)
        return Job(
            job_id=job.job_id,
            name=job.name,
            comment=job.submission.comment if job.comment is None else job.comment,
            state=state,
            state_text=state_text,
            reason=job.reason,
            partition=job.partition.name,
            nodes=compressed(job.nodes),
            submitted_at=job.submitted_at,
            started_at=started_at,
            ends_at=ends_at,
            time_limit_s=job.time_limit_s,
            exit_code=job.exit_code if job.ended else None,
            exit_signal=job.exit_signal if job.ended else None,
            restarts=job.restarts,
        )


_SIGNALS = {"HUP": 1, "INT": 2, "QUIT": 3, "KILL": 9, "USR1": 10, "USR2": 12, "TERM": 15}


def _partitions(
    nodes: Sequence[Node], limits: Mapping[str, tuple[int | None, int | None]]
) -> dict[str, Partition]:
    found: dict[str, Partition] = {}
    for name, (max_time_s, default_time_s) in limits.items():
        members = [node for node in nodes if name in node.partitions]
        found[name] = Partition(
            name=name,
            up=True,
            is_default=not found,
            max_time_s=max_time_s,
            default_time_s=default_time_s,
            max_nodes=None,
            total_nodes=len(members),
            total_cpus=sum(node.cpus for node in members),
            nodes=tuple(node.name for node in members),
        )
    return found
