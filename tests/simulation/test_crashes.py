"""A crash at every place of a pass, and a database that breaks at every place: enumerated, not drawn.

Each scenario leads up to one pass that acts. A dry run counts the places of that pass (before and after each call of
Slurm, before each transaction, before and after each commit); then the world is led up to it again, once for each place
and each fate, and must come out as wanted under another controller, with every rule kept on the way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.core.jobs import JobState, Submission
from penstock.core.model import job_comment, job_name
from penstock.core.spec import Engine
from penstock.store.queries import deployments
from tests.simulation import chaos
from tests.simulation.seeds import Ground, failed
from tests.simulation.world import CALM, EXECUTOR, INSTALLATION, SPEC, Fate, Process, World

Scenario = Callable[[World, Process], Awaitable[None]]

SILENT = {"SILENT_AFTER": 3}
EXECUTORS = {
    "five_at_once": {**EXECUTOR, **SILENT, "LANES": 2, "CONCURRENCY": 2},
    "silent": {**EXECUTOR, **SILENT},
}
"""Where the executor is set otherwise. At once: which of the calls is at the place is the machine's choice."""

DATABASE_PLACES = ("begin", "commit", "committed", "read")


async def declared(world: World, process: Process, count: int = 1) -> None:
    """The next pass makes replicas and submits them."""

    async def create(conn: AsyncConnection) -> None:
        await deployments.create(conn, "chat", {}, replace(SPEC, replicas=count), world.now)

    await world.people("someone creates chat", create)


async def three(world: World, process: Process) -> None:
    """The next pass submits three jobs, in two groups, one after the other."""
    await declared(world, process, 3)


async def five_at_once(world: World, process: Process) -> None:
    """The next pass submits five jobs, two groups and two calls at a time; the third group waits."""
    await declared(world, process, 5)


async def silent(world: World, process: Process) -> None:
    """The next pass submits three of five jobs, is not answered, and does not try the others."""
    await declared(world, process, 5)
    world.risk = replace(CALM, submit=1.0, submissions=("before", "after"))


async def serving(world: World, process: Process, count: int = 1) -> None:
    """Nothing is due: all replicas are ready."""
    await declared(world, process, count)
    for _ in range(12):
        await process.tick()
        await world.pass_time(5)
        if not await world.rules.unsettled():
            return
    raise AssertionError(await world.rules.unsettled())


async def lost(world: World, process: Process, *fates: str) -> None:
    await declared(world, process)
    world.risk = replace(CALM, submit=1.0, submissions=fates, mute=True)
    await process.tick()
    world.risk = CALM


async def lost_submission(world: World, process: Process) -> None:
    """The next pass submits the same attempt again."""
    await lost(world, process, "before")
    await world.pass_time(15)
    await process.tick()
    await world.pass_time(16)


async def lost_reply(world: World, process: Process) -> None:
    """The next pass finds the job by its token."""
    await lost(world, process, "after")
    await world.pass_time(0.1)


async def refused(world: World, process: Process) -> None:
    """The next pass ends an attempt that Slurm refused."""
    await lost(world, process, "refused")


async def scaled_down(world: World, process: Process) -> None:
    """The next pass drains a replica."""
    await serving(world, process, 2)

    async def change(conn: AsyncConnection) -> None:
        await deployments.scale(conn, "chat", 1, world.now)

    await world.people("someone scales chat to 1", change)


async def edited(world: World, process: Process) -> None:
    """The next pass makes a replica of the new revision."""
    await serving(world, process)

    async def change(conn: AsyncConnection) -> None:
        new = replace((await deployments.get(conn, "chat")).spec, engine=Engine(args=("1",)))
        await deployments.update_spec(
            conn, "chat", new, None, world.now, new_revision=True, expected_version=None
        )

    await world.people("someone edits chat", change)


async def deleted_by_force(world: World, process: Process) -> None:
    """The next pass cancels two jobs."""
    await serving(world, process, 2)

    async def change(conn: AsyncConnection) -> None:
        await deployments.mark_deleted(conn, "chat", True, world.now)

    await world.people("someone deletes chat by force", change)


async def died(world: World, process: Process) -> None:
    """The next pass ends the attempt of a job that died."""
    await serving(world, process)
    (job,) = world.jobs(JobState.RUNNING)
    world.slurm.finish(job.job_id, exit_code=1)
    world.rules.failed.add(job.submission.name.rpartition("-")[2])


async def orphaned(world: World, process: Process) -> None:
    """The next pass cancels a job that bears our mark and is nobody's."""
    await serving(world, process)
    token = world.new_token()
    await world.slurm.submit(
        Submission(
            job_name("chat", token), job_comment(INSTALLATION, token), "#!/bin/bash\n", "/tmp", "/tmp/o"
        )
    )
    await process.tick()
    await world.pass_time(61)


SCENARIOS: tuple[Scenario, ...] = (
    declared, three, five_at_once, silent, lost_submission, lost_reply, refused, scaled_down, edited, deleted_by_force,
    died, orphaned,
)  # fmt: skip


def opened(field: Ground, scenario: Scenario) -> AbstractAsyncContextManager[World]:
    name = scenario.__name__
    return World.open(field.database, field.admin, name, executor=EXECUTORS.get(name, EXECUTOR))


async def play(field: Ground, scenario: Scenario, fated: tuple[int, Fate]) -> None:
    """Leads up to the pass, lets it happen, and then everything must become as wanted."""
    async with opened(field, scenario) as world:
        try:
            process = await world.start_controller()
            await scenario(world, process)
            process.fated = fated
            await process.tick()
            process.fated = None
            await chaos.settle(world)
        except Exception as error:
            raise failed(world, error) from error


async def places_of(field: Ground, scenario: Scenario) -> list[str]:
    async with opened(field, scenario) as world:
        process = await world.start_controller()
        await scenario(world, process)
        await process.tick()
        return list(process.passed)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_crash_at_every_place(field: Ground, scenario: Scenario) -> None:
    places = await places_of(field, scenario)
    assert "list_jobs" in places
    assert "commit" in places, "the pass was to act"
    for number in range(1, len(places) + 1):
        await play(field, scenario, (number, Fate.CRASH))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_database_lost_at_every_place(field: Ground, scenario: Scenario) -> None:
    """A commit that failed, and one that was done though nobody was told."""
    places = await places_of(field, scenario)
    for number, place in enumerate(places, start=1):
        if place in DATABASE_PLACES:
            await play(field, scenario, (number, Fate.OUTAGE))
