"""Rule 11 over weeks: rows, and what the controller remembers, do not grow with time."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.core.spec import RestartPolicy
from penstock.store.queries import deployments
from tests.simulation.seeds import Ground
from tests.simulation.world import CALM, SPEC, World

ROUNDS = 42
"""Each about eight simulated hours, with a deployment that comes, fails and goes."""
ROUND_S = 8 * 3600.0

COUNT = """
SELECT (SELECT count(*) FROM decisions) AS d, (SELECT count(*) FROM attempts) AS a, (SELECT count(*) FROM replicas) AS r
"""


async def rows(world: World) -> tuple[int, ...]:
    found = await (await world.admin.execute(COUNT)).fetchone()
    return tuple(found or ())


async def test_weeks(field: Ground) -> None:
    spec = replace(SPEC, restart=RestartPolicy(backoff_initial_s=4, backoff_max_s=32, reset_after_s=60))
    async with World.open(field.database, field.admin, "weeks") as world:
        process = await world.start_controller()
        world.risk = replace(CALM, agent=0.5, agents=("fails", "dies"))
        seen: list[tuple[int, ...]] = []
        for number in range(ROUNDS):
            name = f"model{number}"

            async def create(conn: AsyncConnection, name: str = name) -> None:
                await deployments.create(conn, name, {}, spec, world.now)

            async def delete(conn: AsyncConnection, name: str = name) -> None:
                await deployments.mark_deleted(conn, name, True, world.now)

            await world.people(f"someone creates {name}", create)
            for _ in range(12):
                await world.pass_time(5)
                await process.tick()
            await world.people(f"someone deletes {name}", delete)
            for _ in range(6):
                await world.pass_time(5)
                await process.tick()
            await world.leap(ROUND_S)
            await process.tick()
            await process.housekeeping.run()
            seen.append((*await rows(world), len(process.recorder._standing)))
            world.lines.clear()
    # Retention is one day: what the second week holds at most is what the first did, give or take a failure more.
    half = len(seen) // 2
    for early, late in zip(zip(*seen[:half], strict=True), zip(*seen[half:], strict=True), strict=True):
        assert max(late) <= 1.5 * max(early) + 5, seen
