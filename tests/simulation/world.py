"""A whole installation in one process and one seed: controllers, PostgreSQL, Slurm, agents, people, and bad luck.

What decides, writes and acts is the production code: Controller, Reconciler, Recorder, Executor, Lease, and every
statement of the store on a real PostgreSQL. Simulated are time (the database's too: `clock_timestamp()` and `now()`
are replaced in the simulation's database), Slurm, the agents in the jobs, and the people.

One thing happens at a time: a controller's pass runs alone until it ends, is killed, or is held still at one of its
places (`ports`), and only then the next thing happens. So a seed is a story, the same each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.controller import execute
from penstock.controller.controller import LOOK_AROUND_EVERY_S, Controller
from penstock.controller.execute import Executor
from penstock.controller.folders import AgentSettings, Folders
from penstock.controller.housekeeping import Housekeeping
from penstock.controller.lease import Lease
from penstock.controller.observe import Observer
from penstock.controller.reconcile import Reconciler
from penstock.controller.record import Recorder, hash_of
from penstock.core.jobs import Job, JobState, Node, Submission
from penstock.core.model import TOKEN_ALPHABET, TOKEN_LENGTH, Phase
from penstock.core.spec import Model, Placement, Probes, Resources, RestartPolicy, Rollout, Spec
from penstock.slurm.port import SlurmUnavailable, SubmissionRefused, SubmissionUnknown
from penstock.store.clock import DatabaseClock
from penstock.store.database import Database
from penstock.store.errors import AttemptEnded, AttemptSuperseded, JobTaken, StoreError
from penstock.store.queries import members, runtime
from penstock.store.records import Load
from penstock.testing.jobs import FakeJob
from penstock.testing.slurm import FakeSlurm
from tests.simulation.ports import DatabasePort, LeasePort, SlurmPort, outage
from tests.simulation.rules import Rules, Violation

INSTALLATION = "sim"
BEGIN = datetime(2026, 3, 2, 14, 0, 0, tzinfo=UTC)
SLICE_S = 5.0
"""Time passes in pieces of at most this: running controllers renew their lease in each (it lasts 10 s)."""
HANG_S = 60.0
"""Of real time: a pass that takes longer hangs."""
MESSAGE_TIMEOUT_S = 10
LATE_MAX_S = 9.0
"""A submission whose reply timed out is taken at most this much later, or so long after slurmctld answers again: while
it hangs, requests wait at its door."""
NAPS_S = (0.4, 0.9, 4.0, 9.4)
"""How long a process that nobody notices stands still (a machine that swaps, a host that is migrated): shorter than a
proof stands for, or nearly as long as a lease lasts, so that one after the other ends between the two."""
SLOW_S = (0.6, 3.0, 12.0, 25.0)
"""How long an answer may take that is not given up: a proof stands for longer than the first alone."""
ANSWERS = ("found", "submitted", "cancelled", "signalled")
"""The places where an answer has come."""
EXECUTOR = {"GROUP": 2, "LANES": 1, "CONCURRENCY": 1}
"""Its settings here: several groups in a pass of three replicas; one effect at a time, else the order of replies would
be the machine's."""
LOOK_AROUND_EVERY = timedelta(seconds=LOOK_AROUND_EVERY_S)
STALE_MAX_S = 25.0
"""A listing is at most this old: less than JOB_MISSING's half minute, as an answer from memory is."""

SPEC = Spec(
    model=Model(path="/models/llama"),
    resources=Resources(cpus=1),
    placement=Placement(time_limit="8h", time_limit_s=28_800),
    probes=Probes(startup_timeout_s=90, report_timeout_s=60),
    rollout=Rollout(),
    # A whole hour's budget: the end of a story must not wait for the next hour.
    restart=RestartPolicy(
        backoff_initial_s=4, backoff_max_s=32, reset_after_s=60, max_failures_per_hour=1000
    ),
    drain_timeout_s=20,
)
NODES = tuple(
    Node(name, "IDLE", cpus=6, memory_mib=64_000, gpus={}, partitions=("gpu", "spot"))
    for name in ("node1", "node2", "node3")
)
TABLES = ("deployments", "revisions", "model_names", "replicas", "attempts", "decisions", "leases", "members")
"""What a backup holds, parents first."""


@dataclass(frozen=True)
class Risk:
    """How likely each kind of bad luck is, for each time that it could strike. All zero: none."""

    crash: float = 0.0
    pause: float = 0.0
    nap: float = 0.0
    """A process stands still for one of NAPS_S."""
    slow: float = 0.0
    """Slurm takes one of SLOW_S to answer, and the process waits for it."""
    database_call: float = 0.0
    slurm_call: float = 0.0
    submit: float = 0.0
    stale: float = 0.0
    agent: float = 0.0
    submissions: tuple[str, ...] = ("before", "after", "late", "refused", "unsent", "frozen")
    """What becomes of those that do not go well. Frozen: slurmctld hangs from there on."""
    agents: tuple[str, ...] = ("fails", "dies", "silent", "stuck", "deaf")
    pause_at: str = ""
    """Pauses happen at this place only; empty: anywhere."""
    nap_at: tuple[str, ...] = ()
    """Naps happen at these places only; empty: anywhere."""
    oldest: float = 0.5
    """Of stale listings so many are as old as they may be."""
    naps_s: tuple[float, ...] = NAPS_S
    strategies: tuple[int, ...] = (55, 15, 30)
    """Of the deployments that are made so many in 100 roll, are recreated, or try a canary first."""
    fallback: float = 0.3
    """So many of them have a second placement,"""
    burst: float = 0.3
    """replicas beyond a base,"""
    respect: float = 0.3
    """respect for what somebody else does to their jobs,"""
    spread: float = 0.2
    """another node for each replica,"""
    pack: float = 0.0
    """the node of another replica for each,"""
    short: float = 0.2
    """a time limit of minutes, so that their jobs are handed over."""
    mute: bool = False
    """No agent gets through to the control API."""
    steps: Mapping[str, float] = field(default_factory=dict)
    """Steps of `chaos` by name -> their weights, where they are not the usual ones."""


STORMY = Risk(
    crash=0.008,
    pause=0.006,
    nap=0.01,
    slow=0.03,
    database_call=0.01,
    slurm_call=0.03,
    submit=0.25,
    stale=0.08,
    agent=0.25,
    pack=0.15,
    steps={"roll_out_too_soon": 0.3},
)
CALM = Risk()


class Fate(enum.Enum):
    """What happens to a process at one of its places."""

    CRASH = "is killed"
    PAUSE = "is held still"
    NAP = "stands still for a while"
    SLOW = "waits for Slurm's answer"
    OUTAGE = "loses the database"


@dataclass(frozen=True)
class MemoryFolders(Folders):
    """Attempts' folders without a disk."""

    secrets: dict[str, str]

    def prepare(self, token: str, config: Mapping[str, Any], secret: str) -> str:
        return self.secrets.setdefault(token, secret)

    def older_than(self, timestamp: float) -> Iterator[str | None]:
        return iter(())


class Process:
    """One controller process, from its start until it is killed."""

    def __init__(self, world: World, name: str, skew_s: float = 0.0) -> None:
        self.world = world
        self.name = name
        self.skew_s = skew_s
        """How far its host's clock is off."""
        self.dead = False
        self.points = 0
        """Places passed in this pass."""
        self.fated: tuple[int, Fate] | None = None
        """What happens at which place of the coming pass."""
        self.passed: list[str] = []
        self.listed = False
        """Whether this pass has a listing."""
        self.stale_s = 0.0
        self.disturbed = False
        """Whether anything befell this pass."""
        self.refused: set[str] = set()
        """Tokens that Slurm refused in this pass."""
        self.task: asyncio.Task[None] | None = None
        """A pass that is held still."""
        self.held_since = BEGIN
        self.waits = False
        """For an answer, in the middle of its pass; its lease goes on."""
        self.term = 0
        """Of the lease, when this pass asked for its listing; 0: it was not this process's."""
        self._stop: asyncio.Future[Fate] | None = None
        self._go_on = asyncio.Event()
        self._taken = asyncio.Event()
        db = DatabasePort(world.database, self)
        slurm = SlurmPort(self)
        folders = MemoryFolders(Path("/simulated"), world.secrets)
        self.clock = DatabaseClock(zone=UTC, host=self._host_time, elapsed_s=lambda: world.elapsed_s)
        self.lease = Lease(
            LeasePort(world.database, self), name, clock=self.clock, elapsed_s=lambda: world.elapsed_s
        )
        self.recorder = Recorder(
            INSTALLATION,
            folders,
            AgentSettings(("127.0.0.1:8600",), "127.0.0.1", ""),
            "python3",
            new_token=world.new_token,
        )
        self.housekeeping = Housekeeping(db, folders, self.clock, timedelta(days=1))
        reconciler = Reconciler(
            db=db,
            installation=INSTALLATION,
            observer=Observer(slurm, self.clock),
            recorder=self.recorder,
            executor=Executor(db, slurm, folders, self.clock),
            clock=self.clock,
            clock_off_s=lambda: self.clock.off_s,
            message_timeout_s=MESSAGE_TIMEOUT_S,
        )
        self._look_around = reconciler.look_around
        self._looked_at: datetime | None = None
        self.controller = Controller(db, self.lease, self.recorder, reconciler, self.housekeeping, 5.0)

    def _host_time(self) -> datetime:
        return self.world.now + timedelta(seconds=self.skew_s)

    async def hold_lease(self) -> None:
        """As its lease task does every few seconds while the process runs."""
        await self.lease.hold(self._taken)
        if self._taken.is_set():
            self._taken.clear()
            self.world.say(f"{self.name} takes the lease")
            self.controller.begin_term()

    async def tick(self) -> None:
        """One pass, until it ends or is held still; before it a look at the nodes, when one is due."""
        self.points, self.passed, self.listed, self.disturbed, self.stale_s = 0, [], False, False, 0.0
        self.refused = set()
        self.task = asyncio.create_task(self._pass())
        await self._drive()

    async def _pass(self) -> None:
        since = self._looked_at
        if self.lease.held and (since is None or self.world.now - since >= LOOK_AROUND_EVERY):
            self._looked_at = self.world.now
            await self._look_around()
        await self.controller.tick()

    def wake(self) -> None:
        """It was held still and wakes; its lease's task goes on, and its pass waits for an answer still."""
        self.world.say(f"{self.name} wakes after {self._held_s:.0f} s, and waits for an answer")
        self.waits = True

    async def go_on(self) -> None:
        """Lets a pass that was held still go on."""
        self.world.say(f"{self.name} goes on after {self._held_s:.0f} s, in the middle of its pass")
        self.waits = False
        self._go_on.set()
        await self._drive()

    @property
    def _held_s(self) -> float:
        return (self.world.now - self.held_since).total_seconds()

    async def kill(self) -> None:
        self.dead = True
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None

    async def point(self, where: str) -> None:
        """A place. Only DatabasePort and SlurmPort call it, in the running pass."""
        if self.dead:
            await asyncio.Future()
        self.points += 1
        self.passed.append(where)
        fate = self.world.fate(self, where)
        if fate is None:
            return
        self.disturbed = True
        self.world.say(f"{self.name} {fate.value} at {where}")
        if fate is Fate.OUTAGE:
            raise outage(where)
        if fate in (Fate.NAP, Fate.SLOW):
            self.waits = fate is Fate.SLOW
            lengths_s = SLOW_S if self.waits else self.world.risk.naps_s
            await self.world.pass_time(self.world.random.choice(lengths_s))
            self.waits = False
            return
        assert self._stop is not None
        self._go_on.clear()
        self._stop.set_result(fate)
        if fate is Fate.CRASH:
            self.dead = True
            await asyncio.Future()
        await self._go_on.wait()

    async def committed(self) -> None:
        await self.world.rules.committed(self)

    async def _drive(self) -> None:
        assert self.task is not None
        task = self.task
        self._stop = asyncio.get_running_loop().create_future()
        waited: set[asyncio.Future[Any]] = {task, self._stop}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED, timeout=HANG_S)
        if task.done():
            self.task = None
            error = task.exception()
            if isinstance(error, Violation):
                raise error
            if error is not None:
                raise Violation("bug", f"the pass of {self.name} raised {error!r}") from error
            await self.world.rules.end_tick(self)
        elif not self._stop.done():
            await self.kill()
            raise Violation("bug", f"the pass of {self.name} hangs after {self.passed[-3:]}")
        elif self._stop.result() is Fate.CRASH:
            await self.kill()
        else:
            self.held_since = self.world.now


@dataclass
class Agent:
    """What runs in one run of a job."""

    token: str
    job_id: int
    restarts: int
    node: str
    secret: str
    """What lay in the attempt's folder when it started."""
    register_at: datetime
    ready_at: datetime | None
    """None: the engine never gets there."""
    ends_at: datetime | None = None
    exit_code: int = 0
    says_so: bool = False
    """It reports its failure before it ends."""
    silent_from: datetime | None = None
    drain_s: float | None = 5.0
    """None: SIGTERM is not heeded."""
    draining: bool = False
    ghost: bool = False
    """Slurm has forgotten the job, and the processes run on."""
    phase: Phase = Phase.NONE
    next_at: datetime = BEGIN


class World:
    """Everything there is, and what may be done to it. `rules` watches."""

    def __init__(
        self,
        database: Database,
        admin: psycopg.AsyncConnection[Any],
        seed: str,
        nodes: tuple[Node, ...] = NODES,
    ) -> None:
        self.seed = seed
        self.database = database
        self.admin = admin
        self.random = random.Random(seed)
        self._tokens = random.Random(f"{seed} tokens")
        self.now = BEGIN
        self.risk = CALM
        self.slurm = FakeSlurm(
            clock=lambda: self.now,
            nodes=nodes,
            limits={"gpu": (None, 28_800), "spot": (None, 28_800)},
            kill_wait_s=10.0,
            keeps_history=self.random.random() < 0.5,
            on_start=self._started,
            on_end=self._ended,
            on_signal=self._signalled,
        )
        self.slurm_down = self.database_down = self.control_down = self.backed_up = False
        self.processes: list[Process] = []
        self.agents: dict[int, Agent] = {}
        self.secrets: dict[str, str] = {}
        """What lies in the attempts' folders, by token."""
        self.ghosts: list[Agent] = []
        self.lines: list[str] = []
        self.names: tuple[str, ...] = ("chat", "code")
        """What people call the deployments that they make."""
        self.steps = 0
        self.slice_s, self.beat_s = SLICE_S, 10.0
        """How finely time passes, and how often agents report: a long story takes larger steps."""
        self.rules = Rules(self)
        self._late: list[tuple[datetime, Submission]] = []
        self._listings: list[tuple[datetime, tuple[Job, ...]]] = []
        self._born = 0
        self._taken: set[str] = set()
        """Names of the jobs that controllers submitted."""
        self.clock = DatabaseClock(zone=UTC, host=lambda: self.now, elapsed_s=lambda: self.elapsed_s)
        """The gateway's, by which agents and people are written down."""
        self._gateway_came = True

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        database: Database,
        admin: psycopg.AsyncConnection[Any],
        seed: str,
        nodes: tuple[Node, ...] = NODES,
        executor: Mapping[str, int] = EXECUTOR,
    ) -> AsyncIterator[World]:
        """A world with nothing in it; what an earlier one left in the database is gone. `executor`: its constants."""
        await admin.execute(f"TRUNCATE {', '.join(TABLES)} RESTART IDENTITY CASCADE".encode())
        world = cls(database, admin, seed, nodes)
        usual = {name: getattr(execute, name) for name in executor}
        vars(execute).update(executor)
        try:
            await world.pass_time(0)
            yield world
        finally:
            vars(execute).update(usual)
            for process in world.processes:
                await process.kill()

    # Chance and words ------------------------------------------------------------------------------------------

    @property
    def elapsed_s(self) -> float:
        return (self.now - BEGIN).total_seconds()

    def chance(self, likelihood: float) -> bool:
        return likelihood > 0 and self.random.random() < likelihood

    def say(self, line: str) -> None:
        self.lines.append(f"{self.elapsed_s:9.1f} s  {line}")

    def new_token(self) -> str:
        return "".join(self._tokens.choice(TOKEN_ALPHABET) for _ in range(TOKEN_LENGTH))

    def fate(self, process: Process, where: str) -> Fate | None:
        if process.fated is not None and process.fated[0] == process.points:
            return process.fated[1]
        in_database = where in ("begin", "commit", "committed", "read")
        if self.database_down and in_database and where != "committed":
            return Fate.OUTAGE
        if self.chance(self.risk.crash):
            return Fate.CRASH
        # A transaction that is held open would hold its locks; there PostgreSQL itself ends it.
        if where != "commit" and self.risk.pause_at in ("", where) and self.chance(self.risk.pause):
            return Fate.PAUSE
        if where != "commit" and where in (self.risk.nap_at or (where,)) and self.chance(self.risk.nap):
            return Fate.NAP
        if where in ANSWERS and self.chance(self.risk.slow):
            return Fate.SLOW
        if in_database and self.chance(self.risk.database_call):
            return Fate.OUTAGE
        return None

    # Time ------------------------------------------------------------------------------------------------------

    async def pass_time(self, seconds: float) -> None:
        """Lets everything happen that is due, in pieces."""
        end = self.now + timedelta(seconds=seconds)
        while True:
            self.now = min(end, self.now + timedelta(seconds=self.slice_s))
            await self.admin.execute("UPDATE sim.clock SET at = %s", (self.now,))
            if not (self.control_down or self.database_down):
                await self._beat()
            self.slurm.advance()
            await self._deliver()
            await self._agents_act()
            for process in self.processes:
                if not process.dead and (process.task is None or process.waits):
                    await process.hold_lease()
            self._listings = [one for one in self._listings if self._age_s(one[0]) <= STALE_MAX_S]
            self._listings.append((self.now, await self.slurm.list_jobs()))
            self.rules.jobs()
            if self.now >= end:
                return

    async def _beat(self) -> None:
        """As the gateway's task does."""
        async with self.database.transaction() as conn:
            await members.beat(conn, members.GATEWAY, "g", "g:1", came=self._gateway_came)
            await self.clock.sync(conn)
        self._gateway_came = False

    async def leap(self, seconds: float) -> None:
        """A long time in which nobody does anything: the controllers go on, and nothing else is simulated."""
        self.now += timedelta(seconds=seconds - SLICE_S)
        await self.pass_time(SLICE_S)
        await self.pass_time(SLICE_S)  # The lease, lost by the leap itself, is taken again.

    def forget(self) -> None:
        """Drops the story so far, and what is known of attempts whose jobs Slurm has forgotten. Everything rests."""
        self._taken &= {job.submission.name for job in self.slurm.jobs()}
        tokens = {name.rpartition("-")[2] for name in self._taken}
        for token in self.secrets.keys() - tokens:
            del self.secrets[token]
        self.rules.forget(tokens)
        self.slurm.purge()
        self.lines.clear()

    @property
    def running(self) -> list[Process]:
        """Controllers that are neither dead nor held still."""
        return [one for one in self.processes if not one.dead and one.task is None]

    @property
    def held(self) -> list[Process]:
        return [one for one in self.processes if not one.dead and one.task is not None]

    def _age_s(self, at: datetime) -> float:
        return (self.now - at).total_seconds()

    # Controllers -----------------------------------------------------------------------------------------------

    async def start_controller(self, skew_s: float = 0.0) -> Process:
        self._born += 1
        process = Process(self, f"controller {self._born}", skew_s)
        self.processes = [one for one in self.processes if not one.dead]
        self.processes.append(process)
        self.say(f"{process.name} starts" + (f", its clock {skew_s:+.0f} s off" if skew_s else ""))
        await process.hold_lease()
        return process

    # Slurm -----------------------------------------------------------------------------------------------------

    async def listing(self) -> tuple[tuple[Job, ...], float]:
        """The queue, or a whole one of some seconds ago; and how old it is."""
        if self._listings and self.chance(self.risk.stale):
            at, jobs = (
                self._listings[0] if self.chance(self.risk.oldest) else self.random.choice(self._listings)
            )
            self.say(f"the listing is {self._age_s(at):.0f} s old")
            return jobs, self._age_s(at)
        return await self.slurm.list_jobs(), 0.0

    def late_by(self, name: str, seconds: float) -> None:
        """The request was on its way for so long; longer than Slurm's message time-out nothing bounds."""
        if seconds > LATE_MAX_S:
            self.rules.excuse(name)

    async def take(self, process: Process, submission: Submission) -> int:
        """What becomes of a submission that reached slurmctld, and of its reply."""
        if not self.chance(self.risk.submit):
            return await self._accept(submission)
        kind = self.random.choice(self.risk.submissions)
        self.say(f"the submission of {submission.name}: {kind}")
        if kind == "refused":
            process.refused.add(submission.name.rpartition("-")[2])
            raise SubmissionRefused("Job violates accounting/QOS policy (simulated)")
        if kind == "unsent":
            raise SlurmUnavailable("the bridge is not there (simulated)")
        if kind == "after":
            await self._accept(submission)
        if kind == "frozen":
            self.slurm_goes(up=False)
        if kind in ("late", "frozen"):
            at = self.now + timedelta(seconds=self.random.uniform(0.5, LATE_MAX_S))
            self._late.append((at, submission))
        raise SubmissionUnknown(f"sbatch: no reply ({kind}, simulated)")

    async def _accept(self, submission: Submission) -> int:
        self._taken.add(submission.name)
        job_id = await self.slurm.submit(submission)
        self.say(f"Slurm takes job {job_id} ({submission.name})")
        self.rules.jobs()
        return job_id

    def slurm_goes(self, *, up: bool) -> None:
        self.say(f"slurmctld is {'up' if up else 'down'}")
        self.slurm_down = not up
        if up:
            waited = [(at, one, self.random.uniform(0.5, LATE_MAX_S)) for at, one in self._late]
            self._late = [(max(at, self.now + timedelta(seconds=after)), one) for at, one, after in waited]

    async def _deliver(self) -> None:
        if self.slurm_down:
            return
        due = [one for one in self._late if one[0] <= self.now]
        self._late = [one for one in self._late if one[0] > self.now]
        for _, submission in due:
            with contextlib.suppress(SubmissionRefused):
                await self._accept(submission)

    @property
    def undelivered(self) -> bool:
        return bool(self._late)

    def reset_slurm(self, *, processes_live: bool) -> None:
        """slurmctld loses its state; processes may run on without it."""
        if processes_live:
            self.ghosts += [replace(agent, ghost=True) for agent in self.agents.values()]
        for job in self.slurm.jobs():
            self.rules.excuse(job.submission.name)
        self.slurm.reset_state()
        self._listings.clear()

    # Agents ----------------------------------------------------------------------------------------------------

    def _started(self, job: FakeJob) -> None:
        if job.submission.name not in self._taken:  # Somebody's script; no agent of ours is in it.
            return
        soon = self.random.uniform
        agent = Agent(
            token=job.submission.name.rpartition("-")[2],
            job_id=job.job_id,
            restarts=job.restarts,
            node=job.nodes[0],
            secret=self.secrets[job.submission.name.rpartition("-")[2]],
            register_at=self.now + timedelta(seconds=soon(0.5, 6)),
            ready_at=self.now + timedelta(seconds=soon(6, 25)),
        )
        if self.chance(self.risk.agent):
            kind = self.random.choice(self.risk.agents)
            later = self.now + timedelta(seconds=soon(1, 60))
            if kind in ("fails", "dies"):
                agent.ends_at, agent.exit_code = later, 1
                agent.says_so = kind == "fails"
            elif kind == "silent":
                agent.silent_from = later
            elif kind == "stuck":
                agent.ready_at = None
            else:
                agent.drain_s = None
        agent.next_at = agent.register_at
        self.agents[job.job_id] = agent

    def _ended(self, job: FakeJob) -> None:
        self.agents.pop(job.job_id, None)

    def _signalled(self, job: FakeJob, signal: str) -> bool:
        agent = self.agents.get(job.job_id)
        if agent is None:
            return False
        if agent.drain_s is not None and not agent.draining:
            agent.draining = True  # A second signal puts nothing off.
            agent.ends_at, agent.exit_code = self.now + timedelta(seconds=agent.drain_s), 0
        return True

    async def _agents_act(self) -> None:
        for agent in [*self.agents.values(), *self.ghosts]:
            if agent.ends_at is not None and agent.ends_at <= self.now:
                await self._end_agent(agent)
            elif agent.next_at <= self.now and not (agent.silent_from and agent.silent_from <= self.now):
                await self._speak(agent)

    async def _end_agent(self, agent: Agent) -> None:
        if agent.says_so and agent.phase is not Phase.NONE:
            await self._report(agent, Phase.FAILED, "the engine exited with 1")
        await self._leave(agent)

    async def _leave(self, agent: Agent) -> None:
        if agent.ghost:
            self.ghosts.remove(agent)
        elif agent.job_id in self.agents:
            if agent.exit_code:
                self.rules.failed.add(agent.token)
            self.say(f"job {agent.job_id} ends with exit code {agent.exit_code}")
            self.slurm.finish(agent.job_id, exit_code=agent.exit_code)

    async def _speak(self, agent: Agent) -> None:
        agent.next_at = self.now + timedelta(seconds=self.beat_s)
        if agent.phase is Phase.NONE:
            await self._register(agent)
        elif agent.ready_at is not None and agent.ready_at <= self.now:
            if agent.phase is not Phase.READY:
                self.say(f"the agent of job {agent.job_id} is ready")
            await self._report(agent, Phase.READY)
        else:
            await self._report(agent, Phase.STARTING)
            agent.next_at = self.now + timedelta(seconds=10)

    async def _register(self, agent: Agent) -> None:
        async def words(conn: AsyncConnection) -> None:
            known = await runtime.authenticate(conn, agent.token)
            if known is not None and known.secret_hash != hash_of(agent.secret):
                raise Violation(
                    "2", f"the agent of job {agent.job_id} is refused with its attempt's own secret"
                )
            await runtime.register(
                conn,
                agent.token,
                job_id=agent.job_id,
                restart_count=agent.restarts,
                host=agent.node,
                port=4000 + agent.job_id,
                now=self.clock(),
            )
            agent.phase = Phase.REGISTERED
            agent.next_at = self.now + timedelta(seconds=3)

        await self._tell(agent, words)

    async def _report(self, agent: Agent, phase: Phase, message: str = "") -> None:
        async def words(conn: AsyncConnection) -> None:
            known = await runtime.authenticate(conn, agent.token)
            if known is not None and known.attempt.registered_at is None:
                agent.phase = Phase.NONE  # As the control API answers: register first.
                return
            await runtime.report(
                conn,
                agent.token,
                phase=phase,
                message=message,
                load=Load(),
                exit_code=agent.exit_code or None,
                last_words="",
                now=self.clock(),
            )
            if phase is Phase.READY:
                agent.phase = phase

        await self._tell(agent, words)

    async def _tell(self, agent: Agent, words: Any) -> None:
        if self.database_down or self.control_down or self.risk.mute:
            return
        try:
            async with self.database.transaction() as conn:
                await words(conn)
        except (AttemptEnded, AttemptSuperseded) as error:
            self.say(f"the agent of job {agent.job_id} is told to leave: {error}")
            agent.exit_code = 0
            await self._leave(agent)
        except JobTaken:
            self.say(f"the agent of job {agent.job_id} is refused: its job runs another live attempt")

    # People and machines ---------------------------------------------------------------------------------------

    async def people(self, line: str, statements: Any) -> bool:
        """Somebody calls the control API. False: the answer was no."""
        if self.database_down:
            return False
        try:
            async with self.database.transaction() as conn:
                await statements(conn)
        except StoreError as error:
            self.say(f"{line}: {error}")
            return False
        self.say(line)
        return True

    def database_goes(self, *, up: bool) -> None:
        self.say(f"the database is {'up' if up else 'down'}")
        self._gateway_came |= up
        self.database_down = not up

    def control(self, *, up: bool) -> None:
        self.control_down = not up
        self._gateway_came |= up

    async def back_up(self) -> None:
        self.say("the database is backed up")
        self.backed_up = True
        await self.admin.execute("DROP SCHEMA IF EXISTS backup CASCADE; CREATE SCHEMA backup")
        for table in TABLES:
            await self.admin.execute(f"CREATE TABLE backup.{table} AS TABLE public.{table}".encode())

    async def restore(self) -> None:
        """The backup takes the database's place; whoever was connected is not any more.

        The gateway's row is as old as the rest, so that its next beat may find a gap: what the agents said meanwhile is
        lost, and is no silence.
        """
        self.say("the database is restored from its backup")
        self.rules.restored()
        statements = [f"TRUNCATE {', '.join(TABLES)} CASCADE"]
        statements += [
            f"INSERT INTO public.{table} OVERRIDING SYSTEM VALUE TABLE backup.{table}" for table in TABLES
        ]
        await self.admin.execute("; ".join(statements).encode())
        for process in self.running:
            process.controller.begin_term()

    def jobs(self, *states: JobState) -> Sequence[FakeJob]:
        """Our jobs in these states."""
        return [job for job in self.slurm.jobs() if job.state in states and self.is_ours(job)]

    def is_ours(self, job: FakeJob) -> bool:
        """By the mark's own rule, written down again: the comment is exactly the mark, and the name ends in its
        token behind a deployment's name."""
        token = job.submission.name.rpartition("-")[2]
        named = job.submission.name.startswith("penstock-") and job.submission.name.count("-") >= 2
        return named and job.submission.comment == f"penstock/1 {INSTALLATION} {token}"
