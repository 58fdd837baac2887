"""What the rules must let pass: stories that were once taken for a violation, told without chance."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.core.spec import Burst, Canary, Engine, Rollout, RolloutStrategy, Spec
from penstock.store.queries import deployments
from tests.simulation import chaos
from tests.simulation.seeds import Ground
from tests.simulation.world import SPEC, Process, World


async def test_a_replica_whose_agent_fell_silent_goes_with_the_rollout(field: Ground) -> None:
    """Its silence alone would have its job cancelled, so no successor is waited for."""
    async with World.open(field.database, field.admin, "silent") as world:
        process = await serving(world, replace(SPEC, replicas=2))
        world.agents[1].silent_from = world.now
        await world.pass_time(SPEC.probes.report_timeout_s + 10)
        await change(world, replace(SPEC, replicas=2, engine=Engine(args=("1",))), new_revision=True)
        await process.tick()
        assert [one for one in world.lines if "Drain: job 1 is told to drain" in one]
        await chaos.settle(world)


async def test_a_canary_that_is_of_the_wrong_kind_has_successors_beside_it(field: Ground) -> None:
    """Its two replicas are guaranteed ones, and are to be burst replicas, as all of the deployment."""
    rollout = Rollout(RolloutStrategy.CANARY, "2", "0", canary=Canary(50, None))
    spec = replace(SPEC, replicas=3, rollout=rollout)
    async with World.open(field.database, field.admin, "canary") as world:
        process = await serving(world, spec)
        new = replace(spec, engine=Engine(args=("1",)))
        await change(world, new, new_revision=True)
        for _ in range(6):
            await process.tick()
            await world.pass_time(5)
        await change(world, replace(new, burst=Burst(0, (chaos.SPOT,))), new_revision=False)
        await process.tick()
        made = [one for one in world.lines if "RolloutCanary: the canary of revision 2: 0 of 2 ready" in one]
        assert [one for one in made if one.endswith("2 made")], "\n".join(world.lines)
        await chaos.settle(world)


async def serving(world: World, spec: Spec) -> Process:
    """A deployment all of whose replicas are ready, and the controller that made them."""

    async def create(conn: AsyncConnection) -> None:
        await deployments.create(conn, "chat", {}, spec, world.now)

    process = await world.start_controller()
    await world.people("someone creates chat", create)
    for _ in range(12):
        await process.tick()
        await world.pass_time(5)
        if not await world.rules.unsettled():
            await process.tick()  # It is known to be whole.
            return process
    raise AssertionError(await world.rules.unsettled())


async def change(world: World, spec: Spec, *, new_revision: bool) -> None:
    async def write(conn: AsyncConnection) -> None:
        await deployments.update_spec(
            conn, "chat", spec, None, world.now, new_revision=new_revision, expected_version=None
        )

    await world.people("someone edits chat", write)
