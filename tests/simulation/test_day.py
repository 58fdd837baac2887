"""A day of 50 deployments on a cluster that takes its nodes back: time limits of hours, drained nodes, a maintenance,
and preemptions.

There is room: so not one replica may be missing at any time through an act of ours, once all were ready. A preempted
one may be, until it can be back. What `Rules` asserts of each pass is asserted as well.

Time passes in steps of two minutes, and the agents report seldom, so that a day takes minutes. To add what a
cluster does to jobs: write an `Event`, a coroutine that is given the day at each step and acts on `day.world.slurm`,
and hand it to `Day.play`; for each job of ours that it takes, let it call `day.excuse(deployment)`: one replica less
must be ready for a while.

make sim-day           the whole day; the tests play a morning of 20 deployments
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.controller import lease
from penstock.core import handover, rollout
from penstock.core.jobs import JobState, Maintenance, Node
from penstock.core.model import Replica, ReplicaState
from penstock.core.spec import Handover, Placement, Probes, Spec
from penstock.store.queries import deployments
from tests.simulation.rules import Violation
from tests.simulation.seeds import Ground
from tests.simulation.world import CALM, SPEC, Process, World

DEPLOYMENTS = 50
REPLICAS = 2
NODES = tuple(
    Node(f"node{number}", "IDLE", cpus=8, memory_mib=64_000, gpus={}, partitions=("gpu",))
    for number in range(1, 21)
)
"""160 places for 100 replicas: room for successors, and for a node or four that are away."""
STEP_MIN = 2
"""Minutes that pass at once. What is due is seen, begun and seen again up to a step late, each time, and the margin
must cover that."""
MARGIN_S = 3 * 60 * STEP_MIN
DAY_MIN = 24 * 60
MORNING, MORNING_MIN, MORNING_NODES = 20, 4 * 60, 12
LIMITS_H = (2, 3, 4, 6)
WHOLE_WITHIN = 15
"""Minutes until all replicas are ready for the first time."""
BACK_WITHIN = 20
"""The same for one that was preempted: its pace or Slurm's, and a start."""
FREED_WITHIN = 30
"""Minutes from a drain until the node has no job: the wait, the start and the drain of its successors."""
TAKEN = 3
"""Nodes that the maintenance takes."""
PREEMPTED_EVERY = 40
"""Minutes. Two jobs go each time: one is requeued, one is ended."""

ON_REQUEST = "PENSTOCK_DAY"

READY = """
SELECT d.name, count(*) FILTER (WHERE a.phase = 'ready' AND a.drain_at IS NULL AND NOT r.leaving) AS ready
FROM deployments d JOIN replicas r ON r.deployment_uid = d.uid JOIN attempts a ON a.replica_uid = r.uid
WHERE a.ended_at IS NULL GROUP BY d.name
"""
HANDOVERS = "SELECT count(*) AS n FROM attempts WHERE handover_at IS NOT NULL"


@dataclass
class Day:
    """A world in which a day passes."""

    world: World
    process: Process
    names: tuple[str, ...]
    minute: int = 0
    ended: Counter[JobState] = field(default_factory=Counter)
    """How the jobs ended, each by its id once."""
    preempted: int = 0
    least: int = REPLICAS
    """So few replicas of a deployment were ready at some time."""
    _excused: list[tuple[int, str]] = field(default_factory=list)
    """In which minute which deployment lost a job."""
    _seen: set[int] = field(default_factory=set)

    def excuse(self, name: str) -> None:
        """The deployment has lost a job through no act of ours: one replica less must be ready for BACK_WITHIN."""
        self._excused.append((self.minute, name))

    async def play(self, minutes: int, *events: Event) -> None:
        for _ in range(minutes // STEP_MIN):
            self.minute += STEP_MIN
            await self.world.pass_time(60.0 * STEP_MIN)
            for event in events:
                await event(self)
            await self.process.tick()
            self._note_ends()
            await self._nobody_misses()

    async def handovers(self) -> int:
        (row,) = await (await self.world.admin.execute(HANDOVERS)).fetchall()
        return int(row[0])

    def running_on(self, node: str) -> list[int]:
        return [job.job_id for job in self.world.jobs(JobState.RUNNING) if node in job.nodes]

    def busy(self) -> list[str]:
        """Nodes that run jobs."""
        return sorted({node for job in self.world.jobs(JobState.RUNNING) for node in job.nodes})

    def _note_ends(self) -> None:
        for job in self.world.slurm.jobs():
            if job.ended and job.job_id not in self._seen:
                self._seen.add(job.job_id)
                self.ended[job.state] += 1

    async def _nobody_misses(self) -> None:
        if self.minute <= WHOLE_WITHIN:
            return
        found = await (await self.world.admin.execute(READY)).fetchall()
        ready = {str(row[0]): int(row[1]) for row in found}
        self._excused = [one for one in self._excused if self.minute - one[0] <= BACK_WITHIN]
        lost = Counter(name for _, name in self._excused)
        for name in self.names:
            there = ready.get(name, 0)
            self.least = min(self.least, there)
            if there < REPLICAS - lost[name]:
                story = "\n".join(
                    line for line in self.world.lines if f"{name}-" in line or f"{name}:" in line
                )
                what = f"minute {self.minute}: {there} of {REPLICAS} of {name} are ready"
                what += f", and {lost[name]} were taken lately" * (lost[name] > 0)
                raise Violation("5", f"{what}\n{story}")


Event = Callable[[Day], Awaitable[None]]


class Drains:
    """Every two hours somebody drains a node, and has it to himself for half an hour as soon as it is free."""

    def __init__(self) -> None:
        self._node = ""

    async def __call__(self, day: Day) -> None:
        hour, minute = divmod(day.minute, 60)
        if hour % 2 == 0:
            return
        if minute == 0:
            self._node = day.world.random.choice(day.busy())
            day.world.say(f"somebody drains {self._node}")
            day.world.slurm.drain_node(self._node)
        if minute >= FREED_WITHIN and (left := day.running_on(self._node)):
            raise Violation("drain", f"{self._node} was drained {minute} min ago, and jobs {left} run there")
        if minute == 58:
            day.world.slurm.restore_node(self._node)


class Firmware:
    """Some busy nodes are taken by a maintenance, which is said `said_min` minutes before `begins_min`."""

    def __init__(self, begins_min: int, said_min: int) -> None:
        self._begins_min = begins_min
        self._said_min = said_min
        self._nodes: tuple[str, ...] = ()

    async def __call__(self, day: Day) -> None:
        if day.minute == self._begins_min - self._said_min:
            begins_at = day.world.now + timedelta(minutes=self._said_min)
            self._nodes = tuple(day.busy()[-TAKEN:])
            day.world.say(f"maintenance of {', '.join(self._nodes)} is announced")
            ends_at = begins_at + timedelta(hours=2)
            day.world.slurm.reserve(Maintenance("firmware", begins_at, ends_at, self._nodes))
        if day.minute == self._begins_min:
            for node in self._nodes:
                if left := day.running_on(node):
                    raise Violation("maintenance", f"it begins on {node}, and jobs {left} run there")


async def preemptions(day: Day) -> None:
    """Somebody more important comes: one job is requeued and one ended, of those that serve and those that start."""
    if day.minute <= WHOLE_WITHIN or day.minute % PREEMPTED_EVERY:
        return
    world = day.world
    running = [job for job in world.jobs(JobState.RUNNING) if not world.agents[job.job_id].draining]
    for number, job in enumerate(world.random.sample(running, 2)):
        day.excuse(job.submission.name.removeprefix("penstock-").rpartition("-")[0])
        world.say(
            f"job {job.job_id} ({job.submission.name}) is preempted, {('requeued', 'for good')[number]}"
        )
        if number:
            world.slurm.end(job.job_id, JobState.PREEMPTED)
        else:
            world.slurm.requeue(job.job_id)
        day.preempted += 1


async def begin(world: World, count: int) -> Day:
    names = tuple(f"model{number}" for number in range(count))
    world.risk, world.slice_s, world.beat_s = CALM, 60.0 * STEP_MIN, 1800.0
    for number, name in enumerate(names):
        hours = LIMITS_H[number % len(LIMITS_H)]
        spec: Spec = replace(
            SPEC,
            replicas=REPLICAS,
            placement=Placement(time_limit=f"{hours}h", time_limit_s=hours * 3600),
            handover=Handover(margin_s=MARGIN_S),
            probes=Probes(startup_timeout_s=900, report_timeout_s=3600),
        )

        async def create(conn: AsyncConnection, name: str = name, spec: Spec = spec) -> None:
            await deployments.create(conn, name, {}, spec, world.now)

        await world.people(f"someone creates {name}", create)
    return Day(world, await world.start_controller(), names)


@pytest_asyncio.fixture
async def small(field: Ground, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Day]:
    """Three deployments only."""
    monkeypatch.setattr(lease, "TTL_S", 600.0)  # It is renewed once a step here.
    async with World.open(field.database, field.admin, "a small day", NODES[:3]) as world:
        yield await begin(world, 3)


def ended_well(day: Day) -> None:
    """Cut by its limit was only what lost its successor, and cancelled what waited again, after a preemption each."""
    expected = {JobState.COMPLETED, JobState.PREEMPTED, JobState.CANCELLED, JobState.TIMEOUT}
    assert day.ended.keys() <= expected, day.ended
    assert day.ended[JobState.CANCELLED] + day.ended[JobState.TIMEOUT] <= day.preempted // 4, day.ended


async def test_a_morning(field: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "TTL_S", 600.0)
    async with World.open(field.database, field.admin, "a morning", NODES[:MORNING_NODES]) as world:
        day = await begin(world, MORNING)
        await day.play(MORNING_MIN, Drains(), Firmware(150, said_min=60), preemptions)
        ended_well(day)
        assert await day.handovers() >= MORNING
        assert day.preempted >= 8


@pytest.mark.skipif(os.environ.get(ON_REQUEST) != "1", reason=f"it takes minutes: {ON_REQUEST}=1 plays it")
async def test_a_day(field: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "TTL_S", 600.0)
    async with World.open(field.database, field.admin, "a day", NODES) as world:
        day = await begin(world, DEPLOYMENTS)
        await day.play(DAY_MIN, Drains(), Firmware(12 * 60, said_min=180), preemptions)
        ended_well(day)
        handovers = await day.handovers()
        least = (
            sum(REPLICAS * 24 // LIMITS_H[number % len(LIMITS_H)] for number in range(DEPLOYMENTS)) * 3 // 4
        )
        assert handovers >= least
        print(f"\n{handovers} handovers and {day.preempted} preemptions in a day, at least {day.least} ready")
        print(f"{sum(day.ended.values())} jobs ended: {dict(day.ended)}")


async def test_it_notices_that_nothing_is_handed_over(small: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "due", lambda *given: None)
    with pytest.raises(Violation, match="are ready"):
        await small.play(5 * 60)


async def test_it_notices_that_the_old_one_goes_first(small: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(fleet: rollout._Fleet, but: Sequence[Replica] = ()) -> list[Replica]:
        return [one for one in fleet.ending if one.state is ReplicaState.READY]

    monkeypatch.setattr(rollout._Fleet, "relieved", at_once)
    with pytest.raises(Violation, match="rule 5"):
        await small.play(5 * 60)


async def test_and_nothing_of_the_code_as_it_is(small: Day) -> None:
    await small.play(5 * 60)
    assert await small.handovers() >= 4
