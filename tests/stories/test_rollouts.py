"""What becomes of a changed spec, told under a page each: canaries, failures, pauses, and a spec that flaps.

The plain rolling update is in `rollout.txt`.
"""

from __future__ import annotations

from penstock.core.model import Phase
from penstock.core.spec import Canary, Engine, RestartPolicy, Rollout, RolloutStrategy
from tests.stories.stage import Stage
from tests.stories.test_stories import serve

CANARY = Rollout(strategy=RolloutStrategy.CANARY, canary=Canary(percent=25))
BUDGET = RestartPolicy(backoff_initial_s=10, max_failures_per_hour=2)
BAKED = Rollout(strategy=RolloutStrategy.CANARY, canary=Canary(percent=25, bake_s=600))


async def starts(stage: Stage, *names: str) -> None:
    """The jobs run, and each replica proves itself; two passes see it."""
    stage.pass_time(2)
    await stage.becomes_ready(*names)
    await stage.tick(1)


async def ends(stage: Stage, *names: str) -> None:
    """Drained replicas end."""
    for name in names:
        await stage.finish(name)
    await stage.tick(5)


async def loads(stage: Stage, *names: str) -> None:
    """The jobs run, and their engines are not ready yet."""
    for name in names:
        await stage.register(name)
        await stage.report(name, Phase.STARTING, "loading weights")
    await stage.tick(1)


async def canary(stage: Stage, rollout: Rollout) -> None:
    """`chat` with two replicas, and a third that is the canary of revision 2, ready beside one of them."""
    await serve(stage, 2)
    stage.ready_at_least = 2
    await stage.edit(rollout=rollout)
    await stage.edit(engine=Engine(args=("--new",)))
    await stage.tick(5)
    await starts(stage, "chat-3")
    await ends(stage, "chat-2")
    await stage.tick(1)


async def test_canary_promoted_by_hand(stage: Stage) -> None:
    stage.tell("""A quarter of two replicas is one: the canary. It takes the place of one of the old ones, which goes
        only when the canary is ready, and then nothing happens until somebody has looked at it and promotes it.""")
    await canary(stage, CANARY)
    await stage.quiet_tick(3600)
    await stage.promote()
    await stage.tick(1)
    await starts(stage, "chat-4")
    await ends(stage, "chat-1")
    await stage.tick(1)
    await stage.quiet_tick()


async def test_canary_baked(stage: Stage) -> None:
    stage.tell("""With a bake time nobody need promote: ten minutes after the whole canary is ready the rest follows. A
        canary that dies meanwhile is started again, and bakes anew.""")
    await canary(stage, BAKED)
    await stage.quiet_tick(300)
    stage.ready_at_least = 1
    await stage.finish("chat-3", exit_code=1)
    await stage.tick(1)
    await stage.tick(10)
    await starts(stage, "chat-3")
    await stage.quiet_tick(598)
    await stage.tick(2)
    await starts(stage, "chat-4")
    await ends(stage, "chat-1")
    await stage.tick(1)
    await stage.quiet_tick()


async def test_canary_undone(stage: Stage) -> None:
    stage.tell("""The canary answers badly, and somebody undoes the rollout. Revision 3 is the spec of revision 1 again,
        so the replica that runs it already is not touched: it belongs to revision 3 now. There is nothing to compare,
        so no canary is made of it either.""")
    await canary(stage, CANARY)
    await stage.undo()
    await stage.tick(5)
    await starts(stage, "chat-4")
    await ends(stage, "chat-3")
    await stage.tick(1)
    await stage.quiet_tick()


async def test_undo_to_what_ran_before(stage: Stage) -> None:
    stage.tell("""A canary is promoted and runs everywhere, and only then it shows that it answers badly. Revision 1 ran
        everywhere before, so going back to it is no canary in its turn: the replica goes as soon as its successor is
        ready, and nobody need promote. What the revisions went through is kept.""")
    await serve(stage, 1)
    stage.ready_at_least = 1
    await stage.edit(rollout=CANARY)
    await stage.edit(engine=Engine(args=("--new",)))
    await stage.tick(5)
    await starts(stage, "chat-2")
    await stage.promote()
    await stage.tick(1)
    await ends(stage, "chat-1")
    await stage.tick(1)
    await stage.undo()
    await stage.tick(5)
    await starts(stage, "chat-3")
    await ends(stage, "chat-2")
    await stage.tick(1)
    await stage.quiet_tick()
    await stage.history()


async def test_rollout_failed(stage: Stage) -> None:
    stage.tell("""A new revision waits in the queue for ten minutes, which is no failure. Then its job runs, and has not
        generated a token within the progress deadline: the rollout is stopped, its replica goes, and the old ones are
        not touched.""")
    await serve(stage, 2)
    stage.ready_at_least = 2
    await stage.edit(rollout=Rollout(progress_deadline_s=120))
    stage.slurm.drain_node("node2")
    await stage.edit(engine=Engine(args=("--new",)))
    await stage.tick(5)
    await stage.tick(600)
    stage.slurm.restore_node("node2")
    stage.pass_time(5)
    await stage.register("chat-3")
    await stage.report("chat-3", Phase.STARTING, "loading weights", last_words="Loading shards: 0/4\n")
    await stage.tick(1)
    await stage.quiet_tick(60)
    await stage.tick(60)
    await stage.show("Progressing")
    await stage.finish("chat-3", exit_code=1)
    await stage.tick(5)
    await stage.quiet_tick(600)


async def test_rollout_failed_and_none_was_ever_whole(stage: Stage) -> None:
    stage.tell("""Somebody edits a deployment of which one replica serves and the other one still loads, and the new
        revision never generates a token. None was ever ready on all replicas; but one serves, so it is what to fall
        back on: what is missing is made like it. When the time limit of the first one is near, so is its successor.""")
    await stage.apply(replicas=2, rollout=Rollout(progress_deadline_s=120))
    await stage.tick()
    stage.pass_time(2)
    await stage.becomes_ready("chat-1")
    await loads(stage, "chat-2")
    stage.ready_at_least = 1
    await stage.edit(engine=Engine(args=("--new",)))
    await stage.tick(5)
    await ends(stage, "chat-2")
    await stage.tick(1)
    stage.pass_time(2)
    await loads(stage, "chat-3", "chat-4")
    await stage.tick(120)
    await ends(stage, "chat-3", "chat-4")
    await stage.tick(1)
    await starts(stage, "chat-5")
    stage.ready_at_least = 2
    await stage.quiet_tick()
    stage.alter_limit(await stage.job_of("chat-1"), 300)
    await stage.tick(1)
    await starts(stage, "chat-6")
    await ends(stage, "chat-1")
    await stage.quiet_tick()


async def test_rollout_goes_back(stage: Stage) -> None:
    stage.tell("""A deployment that asks for it goes back by itself. The engine of the new revision dies at once, and
        again; when its budget of failures is spent the deployment wants the spec of revision 1 again, and no replica
        of that is touched.""")
    await serve(stage, 2)
    stage.ready_at_least = 2
    await stage.edit(rollout=Rollout(rollback_on_failure=True), restart=BUDGET)
    await stage.edit(engine=Engine(args=("--no-such-option",)))
    await stage.tick(5)
    for wait_s in (10, 1):
        stage.pass_time(2)
        await stage.register("chat-3")
        words = "vllm: error: unrecognized arguments: --no-such-option\n"
        await stage.report(
            "chat-3", Phase.FAILED, "the engine exited with 2", exit_code=2, last_words=words, silently=True
        )
        await stage.finish("chat-3", exit_code=2)
        await stage.tick(1)
        await stage.tick(wait_s)
    await stage.tick(19)
    await stage.ticks(2, 1)
    await stage.quiet_tick()
    await stage.history()


async def test_rollout_paused(stage: Stage) -> None:
    stage.tell("""A rollout is paused half-way, with replicas of either revision. What dies is replaced, what is
        edited waits, and when it is resumed the newest spec is rolled out.""")
    await serve(stage, 2)
    stage.ready_at_least = 1
    await stage.edit(engine=Engine(args=("--one",)))
    await stage.tick(5)
    await starts(stage, "chat-3")
    await stage.pause_rollout(True)
    await stage.tick(1)
    await ends(stage, "chat-2")
    await stage.finish("chat-1", exit_code=1)
    await stage.tick(1)
    await stage.tick(10)
    await starts(stage, "chat-1", "chat-4")
    await stage.edit(engine=Engine(args=("--two",)))
    await stage.tick(5)
    await stage.quiet_tick(3600)
    await stage.pause_rollout(False)
    await stage.tick(1)


async def test_flapping_spec(stage: Stage) -> None:
    stage.tell("""A script edits the spec each second. The replica of a revision that another one has taken the place of
        goes first; but its job is not gone at once, and counts until it is: there are never more jobs than two wanted
        and one above.""")
    await serve(stage, 2)
    stage.ready_at_least = 2
    for number in range(5):
        await stage.edit(engine=Engine(args=(f"--number={number}",)))
        await stage.tick(1)
        assert len(stage.running()) <= 3
    stage.tell("An edit that takes the last one back restarts nothing: the first two run that spec already.")
    await stage.edit(engine=Engine())
    await stage.ticks(4, 1)
    await stage.quiet_tick()
