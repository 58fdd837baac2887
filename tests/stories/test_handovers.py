"""Handovers over time: by the clock, by hand, in a rollout, and from nodes that are to be given back."""

from __future__ import annotations

from penstock.core.model import Phase
from penstock.core.spec import Canary, Engine, Handover, Placement, Rollout, RolloutStrategy
from tests.stories.stage import Stage

HOUR = Placement(time_limit="1h", time_limit_s=3600)
COLD_S = 60
BAKED = Rollout(strategy=RolloutStrategy.CANARY, canary=Canary(percent=25, bake_s=1800))


async def serve(stage: Stage, count: int = 1, placement: Placement = HOUR) -> None:
    """`chat` is applied, and its replicas need a minute to become ready. No limit is staggered, for easy reckoning."""
    await stage.apply(replicas=count, placement=HOUR, handover=Handover(stagger_percent=0))
    await stage.tick()
    stage.pass_time(2)
    for number in range(1, count + 1):
        await stage.register(f"chat-{number}")
    await stage.tick()
    stage.pass_time(COLD_S)
    for number in range(1, count + 1):
        await stage.report(f"chat-{number}", Phase.READY)
    await stage.tick()
    stage.ready_at_least = count


async def leaves(stage: Stage, replica: str) -> None:
    """It has finished its requests."""
    await stage.finish(replica)
    await stage.tick(5)
    await stage.tick(1)


async def succeeds(stage: Stage, successor: str, predecessor: str) -> None:
    """The successor, which runs by now, becomes ready, and the one before it leaves."""
    stage.pass_time(2)
    await stage.becomes_ready(successor)
    await stage.tick()
    await leaves(stage, predecessor)
    await stage.quiet_tick()


async def test_handover_with_history(stage: Stage) -> None:
    stage.tell("""The cluster has become busy: the second generation waits ten minutes for its nodes, which is too
        long.
        So the third one is made ten minutes earlier.""")
    await serve(stage)
    stage.say("all nodes are taken")
    stage.slurm.drain_node("node1")
    stage.slurm.drain_node("node2")
    await stage.tick(3240)
    stage.ready_at_least = 0
    await stage.tick(1)
    stage.say("and free again")
    stage.pass_time(600)
    stage.slurm.restore_node("node2")
    stage.pass_time(0)
    await stage.tick()
    await stage.register("chat-2")
    stage.pass_time(COLD_S)
    await stage.report("chat-2", Phase.READY)
    await stage.tick()
    await stage.tick(1)
    await stage.quiet_tick(2500)
    await stage.tick(200)


async def test_handover_successor_is_late(stage: Stage) -> None:
    stage.tell("""No node is free for the successor. The old replica serves until its time limit ends it; nobody
        drains
        it
        before. Its successor takes its place when it can, and the old replica is not started again.""")
    await serve(stage)
    stage.slurm.drain_node("node1")
    stage.slurm.drain_node("node2")
    await stage.tick(3240)
    await stage.tick(1)
    await stage.quiet_tick(60)
    stage.ready_at_least = 0
    stage.tell("Ahead of the limit Slurm warns the agent, which finishes what it has.")
    stage.pass_time(180)
    await stage.report("chat-1", Phase.DRAINING, "the job's time is nearly up")
    await stage.tick()
    await stage.finish("chat-1")
    await stage.tick(10)
    await stage.tick(1)
    stage.slurm.restore_node("node1")
    await stage.tick(5)
    await stage.becomes_ready("chat-2")
    await stage.tick(1)
    await stage.quiet_tick()


async def test_handover_after_somebody_altered_the_limit(stage: Stage) -> None:
    stage.tell("""An administrator shortens the time limit of the running job to twenty minutes. The successor is
        due by
        the new limit, in the very tick that sees it where that is late.""")
    await serve(stage)
    await stage.quiet_tick(600)
    stage.alter_limit(1, 1200)
    await stage.tick(5)
    await stage.tick(1)
    await stage.tick(240)
    await succeeds(stage, "chat-2", "chat-1")


async def test_handover_of_two(stage: Stage) -> None:
    stage.tell("""Two replicas are handed over at once, and the younger one's job ends a minute earlier. So it is the
        one that goes when the first successor is ready; the other one has the time to wait for its own.""")
    await serve(stage, 2)
    stage.alter_limit(2, 3540)
    await stage.tick(5)
    await stage.tick(3235)
    await stage.tick(1)
    stage.pass_time(2)
    await stage.becomes_ready("chat-3")
    await stage.tick()
    await leaves(stage, "chat-2")
    await stage.becomes_ready("chat-4")
    await stage.tick()
    await leaves(stage, "chat-1")
    await stage.quiet_tick()


async def test_handover_in_a_rollout(stage: Stage) -> None:
    stage.tell("""The spec is changed while a replica is handed over. Its successor, which was never ready, goes, and
        takes up room until its job has ended. The replica that ends anyway is the first old one to go that serves;
        ready replicas are never fewer than wanted.""")
    await serve(stage, 2)
    stage.alter_limit(1, 600)
    await stage.tick(300)
    await stage.tick(1)
    await stage.change(drain_timeout_s=90)
    await stage.tick(1)
    await stage.finish("chat-3")
    await stage.tick(2)
    await stage.becomes_ready("chat-4")
    await stage.tick(1)
    await leaves(stage, "chat-1")
    stage.pass_time(2)
    await stage.becomes_ready("chat-5")
    await stage.tick(1)
    await leaves(stage, "chat-2")
    await stage.quiet_tick()


async def begin_canary(stage: Stage) -> None:
    """`chat` with two replicas of revision 1, of which chat-2 makes room for chat-3, the canary of revision 2."""
    await serve(stage, 2)
    await stage.edit(rollout=BAKED)
    await stage.edit(engine=Engine(args=("--new",)))
    await stage.tick(5)
    stage.pass_time(2)
    await stage.becomes_ready("chat-3")
    await stage.tick()
    await leaves(stage, "chat-2")


async def test_handover_beside_a_canary(stage: Stage) -> None:
    stage.tell("""A canary of revision 2 bakes for half an hour. Meanwhile the stable replica beside it comes near to
        its time limit. Its successor is made of revision 1, whatever the newest spec says, and the canary goes on
        baking: it is promoted when it was to be.""")
    await begin_canary(stage)
    stage.alter_limit(1, 1200)
    await stage.tick(5)
    await stage.tick(820)
    await stage.tick(1)
    await succeeds(stage, "chat-4", "chat-1")
    stage.tell("The half hour is over. What was made of revision 1 a moment ago is replaced as any other.")
    await stage.tick(960)
    await stage.tick(1)
    await succeeds(stage, "chat-5", "chat-4")


async def test_handover_of_a_canary(stage: Stage) -> None:
    stage.tell("""The canary itself comes near to its time limit while it bakes. Its successor is of revision 2, and
        takes its requests over; there was no moment without a whole canary, so the half hour counts from its
        beginning.""")
    await begin_canary(stage)
    stage.alter_limit(3, 1200)
    await stage.tick(5)
    await stage.tick(900)
    await stage.tick(1)
    await succeeds(stage, "chat-4", "chat-3")
    await stage.tick(900)
    await stage.tick(1)
    await succeeds(stage, "chat-5", "chat-1")


async def test_drained_node(stage: Stage) -> None:
    stage.tell("""An administrator drains a node under a replica. Its job may go on, so nothing is lost by patience: a
        successor is made, which Slurm puts on the other node, and then the old replica leaves. The node is his.""")
    await serve(stage)
    await stage.look_around()
    await stage.quiet_tick()
    stage.say("an administrator drains node1")
    stage.slurm.drain_node("node1", "bad disk")
    await stage.quiet_tick()
    await stage.look_around()
    await stage.tick(5)
    await stage.tick(2)
    await stage.becomes_ready("chat-2")
    await stage.tick()
    await leaves(stage, "chat-1")
    await stage.look_around()
    await stage.quiet_tick()


async def test_maintenance_of_one_node(stage: Stage) -> None:
    stage.tell("""Maintenance is announced for the node that a replica runs on, long before its own time limit. It is
        handed over to the other node in time; the successor's limit is whole, because Slurm finds room outside.""")
    await serve(stage)
    stage.reserve("firmware", 1800, "node1")
    await stage.look_around()
    await stage.quiet_tick(1500)
    await stage.look_around()
    await stage.tick(130)
    await stage.tick(2)
    await stage.becomes_ready("chat-2")
    await stage.tick()
    await leaves(stage, "chat-1")
    await stage.quiet_tick()


async def test_maintenance_of_all_nodes(stage: Stage) -> None:
    stage.tell("""Maintenance of every node begins in 50 minutes. A job of an hour would wait until it is over, and so
        would one without a limit; so it is asked for less, and serves until then.""")
    stage.reserve("move", 3000, "node1", "node2")
    await stage.look_around()
    await serve(stage)
    stage.tell("""Of what is submitted shortly before, nothing would become ready in time. It waits in Slurm's
        queue, and
        starts when the maintenance is over.""")
    stage.pass_time(2700)
    await stage.look_around()
    await stage.scale(2)
    await stage.tick()
    await stage.tick(2)
    await stage.quiet_tick()


async def test_maintenance_announced_behind_a_waiting_job(stage: Stage) -> None:
    stage.tell("""A job waits for nodes. Before they are free, maintenance is announced: now the job would wait out
        that,
        too, for it asks for an hour. Another one that asks for less takes its place.""")
    stage.slurm.drain_node("node1")
    stage.slurm.drain_node("node2")
    await stage.apply(placement=HOUR)
    await stage.tick()
    await stage.tick(2)
    stage.reserve("move", 3000, "node1", "node2")
    stage.slurm.restore_node("node1")
    stage.slurm.restore_node("node2")
    await stage.tick(5)
    await stage.look_around()
    await stage.tick(5)
    await stage.tick(5)
    await stage.tick(60)
    await stage.tick(5)
    await stage.becomes_ready("chat-1")
    await stage.tick()
    await stage.quiet_tick()
