"""Rule 11 over weeks, and over a year: rows, and what the controller remembers, do not grow with time.

One controller process lives through all of it. A round is some minutes of everything that `chaos` does (people, Slurm,
nodes, the database; what is lost, late or refused), to deployments with names that nobody used before and to one that
stays for ever, until nothing is wrong any more and all is as wanted; then its size is taken. After that hours pass at
once, and what retention has ended is pruned.

make sim-year          the whole year, with a line a month; the tests play two weeks
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

import psutil
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.controller.record import Recorder
from penstock.core.plan import Plan
from penstock.core.spec import Engine
from penstock.store.queries import deployments
from penstock.store.queries.attempts import ATTEMPTS_KEPT
from penstock.store.queries.revisions import REVISIONS_KEPT
from tests.heap import Heap, measure
from tests.simulation import chaos
from tests.simulation.seeds import Ground, failed
from tests.simulation.world import SPEC, STORMY, Process, World

WEEKS_ROUNDS, WEEKS_ROUND_S = 28, 12 * 3600.0
YEAR_ROUNDS, YEAR_ROUND_S = 365, 24 * 3600.0
LEAKING_ROUNDS = 10
"""Between the rounds before them and their later half lies what lies between two thirds of the weeks, or less."""
STEPS = 6
"""Drawn steps of chaos in a round; about twenty decisions are written in it."""
WEATHER = replace(
    STORMY,
    crash=0.0,
    steps={
        "kill": 0,
        "another_controller": 0,
        "back_up": 0,
        "restore": 0,
        "delete": 0,
        "tick": 30,
        "apply": 6,
    },
)
"""All that the one process and the one deployment survive."""
STAYS = "steady"

MAY_DIFFER = Heap(objects=100, size=24 * 1024, alive=40)
"""Between two parts of a run that held the same: no two rounds end alike. Measured over a year: 34 and 63 objects.
Rounds that remember the status of each deployment that there was differ by more."""
KEPT = {"attempts": ATTEMPTS_KEPT, "revisions": REVISIONS_KEPT, "events": 3 * REVISIONS_KEPT}
"""What stays of the deployment that stays, however old; of all else a day is kept."""

ON_REQUEST = "PENSTOCK_YEAR"

COUNT = """
SELECT (SELECT count(*) FROM decisions) AS decisions, (SELECT count(*) FROM attempts) AS attempts,
       (SELECT count(*) FROM replicas) AS replicas, (SELECT count(*) FROM revisions) AS revisions,
       (SELECT count(*) FROM revision_events) AS events, (SELECT count(*) FROM deployments) AS deployments
"""
MADE = "SELECT coalesce(max(id), 0) AS made FROM decisions"


@dataclass(frozen=True)
class Seen:
    """The sizes at a round's end, when all rests."""

    rows: Mapping[str, int]
    made: int
    """Decisions, ever."""
    heap: Heap


class Long:
    """A world in which rounds are played."""

    def __init__(self, world: World, process: Process) -> None:
        self.seen: list[Seen] = []
        self._world = world
        self._process = process
        self._began = time.monotonic()

    async def play(self, rounds: int, round_s: float, lines: int) -> None:
        """So many rounds, and in them so many lines of how it is."""
        for number in range(rounds):
            try:
                await self._round()
            except Exception as error:
                raise failed(self._world, error) from error
            self.seen.append(await self._look())
            if (line := (number + 1) * lines // rounds) > number * lines // rounds:
                print(self._line(line), flush=True)
            await self._leap(round_s)

    async def _round(self) -> None:
        world, number = self._world, len(self.seen)
        world.names = (f"chat{number}", f"code{number}", STAYS)
        world.risk = WEATHER
        if not self.seen:
            await self._begin()
        await world.people(f"someone edits {STAYS}", self._edit)
        await chaos.apply(world)
        for _ in range(STEPS):
            world.steps += 1
            await chaos.step(world)
        assert await chaos.calm(world) is self._process
        for name in await chaos.names(world, "deleted_at IS NULL"):
            await world.people(f"someone ends with {name}", self._end_of(name))
        await chaos.settle(world)
        world.forget()

    async def _begin(self) -> None:
        """What is remembered for ever once it was done, statements above all, is so from here on."""
        world = self._world

        async def create(conn: AsyncConnection) -> None:
            await deployments.create(conn, STAYS, {}, SPEC, world.now)

        await world.people(f"someone creates {STAYS}", create)
        for each, usual in chaos.STEPS.items():
            if WEATHER.steps.get(each.__name__, usual):
                await each(world)

    async def _edit(self, conn: AsyncConnection) -> None:
        spec = (await deployments.get(conn, STAYS)).spec
        new = replace(spec, engine=Engine(args=(f"--seed={len(self.seen)}",)))
        await deployments.update_spec(
            conn, STAYS, new, None, self._world.now, new_revision=True, expected_version=None
        )

    def _end_of(self, name: str) -> Callable[[AsyncConnection], Awaitable[object]]:
        world = self._world
        if name == STAYS:
            return lambda conn: deployments.scale(conn, name, 1, world.now)
        force = world.chance(0.3)
        return lambda conn: deployments.mark_deleted(conn, name, force, world.now)

    async def _look(self) -> Seen:
        (rows,) = await (await self._world.admin.execute(COUNT)).fetchall()
        (newest,) = await (await self._world.admin.execute(MADE)).fetchall()
        heap = measure(self._process.controller, self._world.database)
        return Seen(rows._asdict(), newest.made, heap)

    async def _leap(self, seconds: float) -> None:
        """And what the controller does each hour."""
        await self._world.leap(seconds)
        await self._process.tick()
        async with self._world.database.transaction() as connection:
            await self._process.recorder.flush(connection)
        await self._process.housekeeping.run()

    def _line(self, number: int) -> str:
        last = self.seen[-1]
        rows = ", ".join(f"{count} {name}" for name, count in last.rows.items())
        return (
            f"{number:2}: day {self._world.elapsed_s / 86400:3.0f}: {rows}; {last.made} decisions made,"
            f" {last.made - last.rows['decisions']} pruned; the controller holds {last.heap.objects} objects"
            f" of {last.heap.size / 1024:.0f} KiB; the process {psutil.Process().memory_info().rss / 2**20:.0f} MiB;"
            f" {time.monotonic() - self._began:.0f} s"
        )


def thirds(seen: Sequence[Seen]) -> tuple[Sequence[Seen], Sequence[Seen]]:
    """The second and the last third: in the first everything was new once."""
    third = len(seen) // 3
    return seen[-2 * third : -third], seen[-third:]


def growth(early: Sequence[Seen], late: Sequence[Seen]) -> Heap:
    """By how much a usual round of the one holds more than one of the other."""

    def usual(seen: Sequence[Seen]) -> list[int]:
        return [
            int(statistics.median(each)) for each in zip(*(astuple(one.heap) for one in seen), strict=True)
        ]

    return Heap(*(after - before for before, after in zip(usual(early), usual(late), strict=True)))


def grew(by: Heap) -> bool:
    return any(grown > most for grown, most in zip(astuple(by), astuple(MAY_DIFFER), strict=True))


def did_not_grow(seen: Sequence[Seen]) -> None:
    early, late = thirds(seen)
    assert not grew(growth(early, late)), (growth(early, late), [one.heap for one in seen])
    for name in seen[0].rows:
        before, after = (max(one.rows[name] for one in part) for part in (early, late))
        assert after <= 1.5 * before + KEPT.get(name, 5), (name, [one.rows[name] for one in seen])
    assert seen[-1].rows["decisions"] < seen[-1].made / 4, "hardly anything was pruned"


async def test_weeks(field: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    async with World.open(field.database, field.admin, "weeks") as world:
        long = Long(world, await world.start_controller())
        await long.play(WEEKS_ROUNDS, WEEKS_ROUND_S, lines=2)
        did_not_grow(long.seen)

        # And the measure is one: the same process, which now forgets no deployment.
        leak(monkeypatch)
        before = thirds(long.seen)[1]
        await long.play(LEAKING_ROUNDS, WEEKS_ROUND_S, lines=1)
        by = growth(before, long.seen[-LEAKING_ROUNDS // 2 :])
        print(f"with a leak: {by}")
        assert grew(by), by


def leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorder keeps an entry of each deployment: how it was shown last."""
    has_nothing_new = Recorder.has_nothing_new

    def keeps(self: Recorder, plan: Plan) -> bool:
        kept = vars(self).setdefault("kept", {})
        kept.update({status.deployment_uid: status for status in plan.deployment_statuses})
        return has_nothing_new(self, plan)

    monkeypatch.setattr(Recorder, "has_nothing_new", keeps)


@pytest.mark.timeout(3600)
@pytest.mark.skipif(os.environ.get(ON_REQUEST) != "1", reason=f"it takes minutes: {ON_REQUEST}=1 plays it")
async def test_a_year(field: Ground) -> None:
    async with World.open(field.database, field.admin, "a year") as world:
        long = Long(world, await world.start_controller())
        print()
        await long.play(YEAR_ROUNDS, YEAR_ROUND_S, lines=12)
        early, late = thirds(long.seen)
        print(f"from the second third of the year to the last one: {growth(early, late)}")
        did_not_grow(long.seen)
