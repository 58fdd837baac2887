"""What the controller does over time, told under a page each; the transcripts lie beside this file.

`PENSTOCK_UPDATE_STORIES=1 make test-fast PYTEST_ARGS='-k stories'` writes them anew.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from penstock.controller import execute
from penstock.core.jobs import JobState
from penstock.core.model import Phase
from penstock.core.spec import Burst, Engine, NodeSpread, OutsideChanges, Placement, Resources, RestartPolicy
from penstock.slurm.port import SlurmError
from penstock.testing.slurm import SubmitFault
from tests.stories.stage import INSTALLATION, Stage
from tests.worlds import drawn


async def serve(stage: Stage, count: int = 1, **changes: Any) -> list[str]:
    """Applies `chat` and lets its replicas become ready; returns their names."""
    names = [f"chat-{number}" for number in range(1, count + 1)]
    await stage.apply(replicas=count, **changes)
    await stage.tick()
    stage.pass_time(2)
    await stage.becomes_ready(*names)
    await stage.tick()
    return names


async def test_create(stage: Stage) -> None:
    stage.tell("""A deployment is declared. The tick that sees it makes its replica and submits the job at once; the
        job waits in Slurm's queue behind another one, which is no failure; then it runs, and its agent
        proves itself with a generated token. From then on a tick finds nothing to do, asks Slurm once, and
        writes nothing.""")
    stage.slurm.drain_node("node1")
    stage.slurm.drain_node("node2")
    await stage.apply()
    await stage.tick()
    await stage.tick(1)
    await stage.quiet_tick()
    stage.say("the nodes are free")
    stage.slurm.restore_node("node1")
    await stage.tick(5)
    await stage.register("chat-1")
    await stage.tick(1)
    await stage.report("chat-1", Phase.STARTING, "loading weights")
    await stage.tick(1)
    await stage.quiet_tick()
    await stage.report("chat-1", Phase.READY)
    await stage.tick(0.1)
    await stage.quiet_tick()
    await stage.quiet_tick(3600)


async def test_scale(stage: Stage) -> None:
    stage.tell(
        "Someone scales a deployment up, and then down: of equals the youngest goes, drained before it ends."
    )
    await serve(stage)
    await stage.scale(3)
    await stage.tick(10)
    stage.pass_time(2)
    await stage.becomes_ready("chat-2", "chat-3")
    await stage.tick()
    await stage.quiet_tick()
    await stage.scale(2)
    await stage.tick(10)
    await stage.tick(1)
    await stage.quiet_tick(1)
    await stage.report("chat-3", Phase.DRAINING, "2 requests to finish")
    await stage.finish("chat-3")
    await stage.tick(5)
    await stage.tick(1)
    await stage.quiet_tick()
    stage.tell("A replica that cannot finish its requests in time is cancelled.")
    await stage.scale(1)
    await stage.tick(5)
    await stage.tick(1)
    await stage.tick(89)
    await stage.tick(1)
    await stage.tick(30)
    await stage.tick(1)
    await stage.quiet_tick()


async def test_restart_with_back_off(stage: Stage) -> None:
    stage.tell("""The engine dies as soon as it is started. Each failure doubles the wait before the next attempt; the
        sentence says how the last one ended and when the next one comes.""")
    await stage.apply()
    await stage.tick()
    for wait_s in (10, 20, 40):
        stage.pass_time(2)
        await stage.register("chat-1")
        await stage.report("chat-1", Phase.FAILED, "the engine exited with 1: CUDA out of memory")
        await stage.finish("chat-1", exit_code=1)
        await stage.tick()
        await stage.tick(5)
        await stage.quiet_tick(1)
        await stage.tick(wait_s - 6)
    stage.tell("The fourth attempt becomes ready, and serves for longer than reset_after_s.")
    stage.pass_time(2)
    await stage.becomes_ready("chat-1")
    await stage.tick()
    await stage.quiet_tick(601)
    stage.tell("So when it dies then, that is the first failure of a new row.")
    await stage.finish("chat-1", exit_code=1)
    await stage.tick()
    await stage.tick(10)


async def test_refused_submission(stage: Stage) -> None:
    stage.tell(
        "Slurm says no to a submission. That is a failure with Slurm's own sentence, and is tried again."
    )
    stage.slurm.faults.submits.append("Job violates accounting/QOS policy")
    await stage.apply()
    await stage.tick()
    await stage.tick(1)
    await stage.tick(5)
    await stage.tick(5)
    stage.pass_time(2)
    await stage.becomes_ready("chat-1")
    await stage.tick()


async def test_full_disk(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.tell("""The shared file system is full for an hour. Slurm is not asked, so nothing was refused and nothing
        has failed: the attempt stays, says what is in its way and what helps, and is tried again.""")

    def full(*given: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", full)
        await stage.apply()
        await stage.tick()
        await stage.tick(5)
        assert await stage.long(720, 5) <= 5
    assert stage.slurm.calls["submit"] == 0
    stage.say("somebody makes room")
    await stage.long(60, 5)
    await stage.becomes_ready("chat-1")
    await stage.tick(1)
    await stage.quiet_tick()


async def test_lost_reply_of_an_accepted_submission(stage: Stage) -> None:
    stage.tell("""Slurm takes the job, and the reply is lost. Whether there is a job is not known then; nothing is
        submitted until it is. The next listing shows a job with the attempt's token, and it is taken over.""")
    stage.slurm.faults.submits.append(SubmitFault.LOST_AFTER)
    await stage.apply()
    await stage.tick()
    await stage.tick(1)
    await stage.tick(1)
    assert len(stage.slurm.jobs()) == 1
    await stage.becomes_ready("chat-1")
    await stage.tick()
    await stage.quiet_tick()


async def test_lost_submission(stage: Stage) -> None:
    stage.tell("""The submission never arrives, and nobody says so. Three of Slurm's message time-outs later it is
        certain that there is no job, and the same attempt is submitted again, under the same token, after
        one more look.""")
    stage.slurm.faults.submits.append(SubmitFault.LOST_BEFORE)
    await stage.apply()
    await stage.tick()
    await stage.tick(1)
    await stage.quiet_tick(14)
    await stage.quiet_tick(14)
    await stage.tick(1)
    assert len(stage.slurm.jobs()) == 1
    stage.pass_time(2)
    await stage.becomes_ready("chat-1")
    await stage.tick()
    await stage.quiet_tick()


async def test_slurm_falls_silent_while_many_start(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.tell("""Slurm answers no submission any more. After two of them (eight, outside of this story) the rest of
        the tick is not tried, so that the controller goes on looking. All are submitted again, under the same
        tokens, when it is certain that there are no jobs.""")
    monkeypatch.setattr(execute, "SILENT_AFTER", 2)
    stage.slurm.faults.submits.extend([SubmitFault.LOST_AFTER, SubmitFault.LOST_BEFORE])
    await stage.apply(replicas=4)
    await stage.tick()
    assert len(stage.slurm.jobs()) == 1
    await stage.tick(1)
    await stage.tick(15)
    await stage.tick(14)
    assert len(stage.slurm.jobs()) == 4
    await stage.tick(1)
    await stage.quiet_tick()


async def test_controller_restarted(stage: Stage) -> None:
    stage.tell("""The controller is killed while one replica is ready and another one is queued. Its successor finds
        both jobs in Slurm by their tokens, doubles nothing and says nothing new.""")
    await serve(stage)
    stage.slurm.drain_node("node1")
    stage.slurm.drain_node("node2")
    await stage.scale(2)
    await stage.tick(5)
    await stage.tick(1)
    stage.say("the controller is killed")
    await stage.restart_controller()
    await stage.quiet_tick()
    stage.tell("This time it is killed after Slurm took a job, and before that was written down.")
    stage.slurm.restore_node("node1")
    stage.slurm.restore_node("node2")
    stage.pass_time(2)
    await stage.becomes_ready("chat-2")
    await stage.tick()

    async def killed(call: str) -> None:
        if call == "submit":
            raise ProcessDied

    stage.slurm.after_call = killed
    await stage.scale(3)
    try:
        await stage.tick(5)
    except ProcessDied:
        stage.say("the controller is killed")
    stage.slurm.after_call = None
    await stage.restart_controller()
    await stage.tick(2)
    await stage.tick(1)
    assert len(stage.slurm.jobs()) == 3
    await stage.becomes_ready("chat-3")
    await stage.tick()
    await stage.quiet_tick()


class ProcessDied(BaseException):
    """Stands for kill -9: no handler of the code under test sees it as an error of Slurm's."""


async def test_slurmctld_down_and_back(stage: Stage) -> None:
    stage.tell("""slurmctld stops answering. Nothing is started and nothing is stopped, whatever is wanted meanwhile:
        that a job is not seen does not mean that it is gone.""")
    await serve(stage)
    stage.slurm.faults.down = (
        "squeue: error: slurm_load_jobs: Unable to contact slurm controller (connect failure)"
    )
    await stage.tick(5)
    await stage.quiet_tick()
    await stage.scale(2)
    await stage.tick(5)
    await stage.quiet_tick(600)
    stage.slurm.faults.down = ""
    stage.say("slurmctld answers again")
    await stage.report("chat-1", Phase.READY, silently=True)
    await stage.tick(5)
    await stage.tick(2)
    stage.tell("""slurmctld lost its state while it was down, and does not know our jobs any more, though they run on:
        as long as an agent reports, its job is left alone.""")
    await stage.becomes_ready("chat-2")
    await stage.tick()
    await stage.quiet_tick()
    job_id = await stage.job_of("chat-2")
    stage.slurm.lose(job_id)
    stage.say(f"Slurm forgets job {job_id}")
    await stage.tick(1)
    await stage.tick(25)
    await stage.tick(5)
    await stage.tick(10)


async def test_delete(stage: Stage) -> None:
    stage.tell("A deployment is deleted: its replicas drain, and when the last job has ended, it is gone.")
    await serve(stage, 2)
    await stage.delete()
    await stage.tick(5)
    await stage.tick(1)
    await stage.finish("chat-1")
    await stage.tick(5)
    await stage.finish("chat-2")
    await stage.tick(5)
    await stage.tick(5)
    await stage.quiet_tick()
    stage.tell("By force nothing is drained.")
    await stage.apply("batch")
    await stage.tick()
    stage.pass_time(2)
    await stage.becomes_ready("batch-1")
    await stage.tick()
    await stage.delete("batch", force=True)
    await stage.tick(5)
    await stage.finish("batch-1")
    await stage.tick(5)
    await stage.tick(5)
    await stage.quiet_tick()


async def test_rollout(stage: Stage) -> None:
    stage.tell("""The spec changes. A replica of the new revision is made above the wanted number; only when it is
        ready an old one is drained, and so on. At no time are fewer than two ready.""")
    await serve(stage, 2)
    stage.ready_at_least = 2
    await stage.change(engine=Engine(args=("--max-model-len", "4096")))
    await stage.tick(5)
    stage.pass_time(2)
    await stage.tick()
    await stage.becomes_ready("chat-3")
    await stage.tick(1)
    stage.pass_time(2)
    await stage.finish("chat-2")
    await stage.tick()
    await stage.becomes_ready("chat-4")
    await stage.tick(1)
    await stage.finish("chat-1")
    await stage.tick(5)
    await stage.tick(1)
    await stage.quiet_tick()
    stage.tell(
        "The next change does not start. The old replicas stay as long as that is so, and a rollback ends it."
    )
    await stage.change(engine=Engine(args=("--no-such-option",)))
    await stage.tick(5)
    stage.pass_time(2)
    await stage.register("chat-5")
    await stage.report(
        "chat-5", Phase.FAILED, "the engine exited with 2: unrecognized arguments: --no-such-option"
    )
    await stage.finish("chat-5", exit_code=2)
    await stage.tick()
    await stage.tick(5)
    await stage.change(engine=Engine(args=("--max-model-len", "4096")))
    await stage.tick(1)


async def test_drained_replica_is_replaced(stage: Stage) -> None:
    stage.tell("Someone drains a replica by hand. Another one is made at once, because it is still wanted.")
    await serve(stage)
    await stage.drain("chat-1")
    await stage.tick(5)
    stage.pass_time(2)
    await stage.becomes_ready("chat-2")
    await stage.tick()
    await stage.finish("chat-1")
    await stage.tick(5)
    await stage.tick(1)
    await stage.quiet_tick()


async def test_pause(stage: Stage) -> None:
    stage.tell(
        "Someone pauses a deployment: its replica's end is written down, and nothing follows until it is resumed."
    )
    await serve(stage)
    await stage.pause(True)
    await stage.tick(5)
    await stage.scale(2)
    await stage.tick(5)
    await stage.finish("chat-1", exit_code=1)
    await stage.tick(5)
    await stage.tick(60)
    await stage.quiet_tick()
    await stage.pause(False)
    await stage.tick(5)


async def test_requeued(stage: Stage) -> None:
    stage.tell("""Slurm preempts the job and queues it again under the same id. That is a wait, not a failure; and
        when it runs again, what its agent said in the first run counts no more.""")
    await serve(stage)
    job_id = await stage.job_of("chat-1")
    stage.slurm.requeue(job_id)
    stage.say(f"Slurm requeues job {job_id}")
    await stage.tick(1)
    await stage.quiet_tick(1)
    await stage.tick(10)
    await stage.becomes_ready("chat-1")
    await stage.tick(5)
    await stage.quiet_tick()


async def test_orphans_and_strangers(stage: Stage) -> None:
    stage.tell("""Of the same user's jobs some are nobody's: one bears our mark, but no attempt has its token (a
        database restored from an old backup, say). It is given a minute, then cancelled. Jobs without our
        mark, or with another installation's, are not even mentioned; those with a copy of ours under a name of
        their own, or one that is not quite as we write it, are told of and left alone.""")
    await serve(stage)
    await stage.submit_foreign("training-run")
    await stage.submit_foreign(f"penstock-chat-{drawn(1)}", f"penstock/1 elsewhere {drawn(1)}")
    await stage.submit_foreign("resumed-run", f"penstock/1 {INSTALLATION} {drawn(2)}")
    await stage.submit_foreign(f"penstock-chat-{drawn(2)}", f"penstock/1 {INSTALLATION} {drawn(2)}")
    mark = f"penstock/1 {INSTALLATION} {drawn(3)}"
    await stage.submit_foreign(f"penstock-chat-{drawn(3)}", f"{mark}\n{mark}")
    await stage.submit_foreign(f"penstock-chat,chat-{drawn(3)}", mark)
    await stage.tick(5)
    await stage.quiet_tick(5)
    stage.drains_on_term = False
    await stage.tick(55)
    await stage.tick(5)
    await stage.quiet_tick()
    assert stage.running() == [
        "penstock-chat-<token 1>",
        "training-run",
        f"penstock-chat-{drawn(1)}",
        "resumed-run",
        f"penstock-chat-{drawn(3)}",
        f"penstock-chat,chat-{drawn(3)}",
    ]


async def test_cancellations_refused(stage: Stage) -> None:
    stage.tell("""Slurm answers, and for an hour refuses to cancel or to signal any job: one that waits, one that
        serves, and one that is nobody's. Each is tried again, more and more seldom, at last every five minutes; the log
        says why in a handful of rows with counts.""")
    await serve(stage)
    stage.slurm.drain_node("node1")
    stage.slurm.drain_node("node2")
    await stage.submit_foreign(f"penstock-chat-{drawn(2)}", f"penstock/1 {INSTALLATION} {drawn(2)}")
    await stage.scale(2)
    await stage.tick(5)
    await stage.tick(5)

    async def refuse(call: str) -> None:
        if call in ("cancel", "signal"):
            raise SlurmError(f"s{call}: error: Access/permission denied")

    stage.slurm.before_call = refuse
    await stage.delete()
    calls = stage.slurm.calls.copy()
    assert await stage.long(720, 5) <= 20
    assert stage.answered == 0, "what comes to nothing wakes nobody"
    asked = stage.slurm.calls - calls
    assert asked["cancel"] <= 3 * 20
    assert asked["signal"] <= 6
    stage.slurm.before_call = None
    stage.say("Slurm does as it is told again")
    stage.drains_on_term = False
    await stage.long(120, 5)
    assert stage.running() == []


async def test_suspended_while_it_leaves(stage: Stage) -> None:
    stage.tell("""Replicas are to go, and Slurm has suspended their jobs: they hear no signal, and are sent no more.
        One that is let go on drains; one that is not is cancelled when its time to drain is over.""")
    await serve(stage, 2)
    first, second = await stage.job_of("chat-1"), await stage.job_of("chat-2")

    async def deaf(call: str) -> None:
        if call == "signal":
            raise SlurmError("scancel: error: Job is suspended")

    for job_id in (first, second):
        stage.say(f"job {job_id} is suspended")
        stage.slurm.show(job_id, JobState.SUSPENDED)
    await stage.tick(1)
    stage.slurm.before_call = deaf
    await stage.delete()
    await stage.tick(1)
    await stage.tick(5)
    await stage.quiet_tick()
    stage.say(f"job {first} is let go on")
    stage.slurm.before_call = None
    stage.slurm.show(first, None)
    await stage.tick(5)
    await stage.long(20, 5)
    await stage.long(40, 5)
    assert stage.running() == []


async def test_slurm_lost_its_state(stage: Stage) -> None:
    stage.tell("""slurmctld comes back without its state: it knows no job and counts from 1 again, while our first
        job's processes run on. The next submission gets that job's id. Nothing is believed before it is certain:
        the old attempt ends because its id is another job's, and only then the new one takes it.""")
    await serve(stage)
    stage.slurm.reset_state()
    stage.say("slurmctld has lost its state")
    await stage.tick(5)
    await stage.scale(2)
    await stage.tick(1)
    await stage.tick(1)
    await stage.tick(1)
    await stage.becomes_ready("chat-2")
    await stage.tick(10)
    stage.pass_time(2)
    await stage.becomes_ready("chat-1")
    await stage.tick()
    await stage.quiet_tick()


async def test_paused_leader_wakes_up(stage: Stage) -> None:
    stage.tell("""The leader sleeps in the middle of a tick, after the first of its two submissions, for so long that
        another controller takes the lease. When it wakes up it believes that the lease is its own, asks the
        database before the second submission, and leaves it. Its successor finds the intent, waits until it is
        certain that Slurm has no such job, and submits it.""")

    async def sleep(call: str) -> None:
        if call == "submit":
            stage.slurm.after_call = None
            stage.say("the leader sleeps, another controller takes the lease, the leader wakes up")
            await stage.pause_until_succeeded()

    stage.slurm.after_call = sleep
    await stage.apply(replicas=2)
    await stage.tick()
    assert len(stage.slurm.jobs()) == 1
    await stage.end_successor()
    await stage.restart_controller()
    await stage.tick(2)
    await stage.tick(16)
    assert len(stage.slurm.jobs()) == 2


async def dies(stage: Stage, name: str = "chat-1") -> None:
    """The replica's job starts, and its engine dies."""
    stage.pass_time(2)
    await stage.register(name)
    words = "Traceback (most recent call last):\nRuntimeError: no such layer: model.layers.80"
    await stage.report(
        name, Phase.FAILED, "the engine exited with 1", exit_code=1, last_words=words, silently=True
    )
    await stage.finish(name, exit_code=1)


async def test_broken_model_spends_its_budget(stage: Stage) -> None:
    stage.tell("""A model that never starts. After three failures in a row the deployment is said to be crash looping,
        with the exit code and the engine's last lines. It may lose four attempts an hour; then nothing more is
        tried until the first of them is an hour old, or someone mends the spec.""")
    await stage.apply(
        restart=RestartPolicy(backoff_initial_s=10, backoff_max_s=10, max_failures_per_hour=4),
    )
    await stage.tick()
    for number in range(4):
        await dies(stage)
        await stage.tick()
        if number >= 2:
            await stage.show("CrashLooping")
        await stage.tick(10)
    await stage.quiet_tick()
    await stage.quiet_tick(600)
    stage.tell("Someone thinks that four is too few, and gets one more try; then the budget is spent again.")
    await stage.change_policy(RestartPolicy(backoff_initial_s=10, backoff_max_s=10, max_failures_per_hour=5))
    await stage.tick(5)
    await dies(stage)
    await stage.tick()
    await stage.tick(10)
    stage.tell("Someone mends the spec: that is a new revision, with a whole budget.")
    await stage.change(engine=Engine(args=("--num-layers", "80")))
    await stage.tick(5)
    stage.pass_time(2)
    await stage.becomes_ready("chat-2")
    await stage.tick()
    await stage.show("CrashLooping")


async def test_node_that_fails_replicas_is_avoided(stage: Stage) -> None:
    stage.tell("""Whatever runs on node1 dies there. The third failure makes the node suspect: the next submission stays
        away from it, and says so. When the failures are an hour old, the node is tried again.""")
    await stage.apply(restart=RestartPolicy(backoff_initial_s=10, backoff_max_s=10))
    await stage.tick()
    for _ in range(3):
        await dies(stage)
        await stage.tick()
        await stage.tick(10)
    stage.pass_time(2)
    await stage.becomes_ready("chat-1")
    await stage.tick()
    await stage.quiet_tick(1800)
    await stage.scale(2)
    await stage.tick(5)
    stage.pass_time(2)
    await stage.becomes_ready("chat-2")
    await stage.tick()
    await stage.scale(3)
    await stage.tick(2400)
    assert [job.submission.exclude_nodes for job in stage.slurm.jobs()][-3:] == [("node1",), ("node1",), ()]


async def test_suspended_and_resumed(stage: Stage) -> None:
    stage.tell("""Slurm halts the job for longer than an agent may be silent. That is no silence: when the job goes on,
        its agent has its whole time to be heard again.""")
    await serve(stage)
    job_id = await stage.job_of("chat-1")
    stage.slurm.show(job_id, JobState.SUSPENDED)
    stage.say(f"Slurm suspends job {job_id}")
    await stage.tick(1)
    await stage.quiet_tick(240)
    stage.slurm.show(job_id, None)
    stage.say(f"Slurm lets job {job_id} go on")
    await stage.tick(1)
    await stage.report("chat-1", Phase.READY, silently=True)
    await stage.quiet_tick(59)


async def test_database_restored_from_a_backup(stage: Stage) -> None:
    stage.tell("""The database is restored from yesterday's backup while jobs run. What it says of yesterday's job is
        found out to be over, and the replica is made anew under a token that nobody had. The jobs that were
        submitted since bear our mark, and nobody knows them: that is said, with what a human can still do, and
        after a minute they are cancelled.""")
    await serve(stage)
    await stage.back_up()
    await stage.finish("chat-1", exit_code=1)
    await stage.scale(2)
    await stage.tick()
    await stage.tick(10)
    stage.pass_time(2)
    await stage.becomes_ready("chat-1", "chat-2")
    await stage.tick()
    await stage.stop_controller()
    await stage.restore()
    await stage.start_controller()
    stage.drains_on_term = False
    await stage.tick(5)
    await stage.tick(10)
    stage.pass_time(2)
    await stage.becomes_ready("chat-1")
    await stage.tick()
    await stage.tick(48)
    await stage.tick(5)
    await stage.quiet_tick()
    assert stage.running() == ["penstock-chat-<token 4>"]


async def test_forgotten_job_is_looked_up(stage: Stage) -> None:
    stage.tell("""The controller is away for longer than Slurm remembers an ended job. Where the site keeps accounting,
        the second listing without the job makes it ask there, once: then the end is known at once, with its
        exit code, and nobody waits until a job that is only missing counts as gone.""")
    stage.slurm.keeps_history = True
    await serve(stage)
    await stage.finish("chat-1", exit_code=137)
    stage.pass_time(400)
    stage.say("Slurm forgets job 1")
    await stage.tick()
    await stage.tick(5)
    assert stage.slurm.calls["history"] == 1
    await stage.tick(10)
    stage.pass_time(2)
    await stage.becomes_ready("chat-1")
    await stage.tick()
    await stage.quiet_tick()


async def test_handover(stage: Stage) -> None:
    stage.tell("""A job may run for an hour. What its successor takes is known from this deployment's own starts: the
        wait in the queue, and the time to the first token. With the margin of 120 s, that is when the successor
        is made, beside the old replica, which goes on serving until the new one is ready and only then drains.""")
    hour = Placement(time_limit="1h", time_limit_s=3600)
    await stage.apply(placement=hour)
    await stage.tick()
    stage.pass_time(2)
    await stage.register("chat-1")
    await stage.tick()
    stage.pass_time(90)
    await stage.report("chat-1", Phase.READY)
    await stage.tick()
    stage.ready_at_least = 1
    await stage.quiet_tick(60)
    await stage.quiet_tick(2820)
    await stage.tick(60)
    await stage.tick(1)
    await stage.register("chat-2")
    await stage.tick()
    await stage.quiet_tick(80)
    await stage.report("chat-2", Phase.READY)
    await stage.tick()
    await stage.tick(1)
    await stage.report("chat-1", Phase.DRAINING, "1 request to finish")
    await stage.finish("chat-1")
    await stage.tick(5)
    await stage.tick(1)
    await stage.quiet_tick()


async def test_preempted_by_cancel(stage: Stage) -> None:
    stage.tell("""Slurm ends a replica's job to make room for another one. That is nobody's failure: the next attempt
        follows at once. A partition that preempts each job as soon as it runs gets one a minute.""")
    await serve(stage)
    stage.pass_time(120)
    await stage.report("chat-1", Phase.READY, silently=True)
    await stage.ended("chat-1", JobState.PREEMPTED)
    await stage.tick()
    await stage.tick(1)
    stage.pass_time(2)
    await stage.becomes_ready("chat-1")
    await stage.tick()
    await stage.ended("chat-1", JobState.PREEMPTED)
    await stage.tick(1)
    await stage.tick(1)
    await stage.quiet_tick(30)
    await stage.tick(30)


async def test_suspended_for_too_long(stage: Stage) -> None:
    stage.tell("""Slurm suspends a job, and nobody says for how long. After five minutes the replica gets another job,
        which is nobody's failure.""")
    await serve(stage)
    job_id = await stage.job_of("chat-1")
    stage.slurm.show(job_id, JobState.SUSPENDED)
    stage.say(f"Slurm suspends job {job_id}")
    await stage.tick(1)
    await stage.quiet_tick(290)
    stage.drains_on_term = False
    await stage.tick(11)
    await stage.tick(1)
    await stage.tick(1)


async def test_out_of_memory(stage: Stage) -> None:
    stage.tell("Slurm kills a job that uses more memory than it asked for: that is the revision's failure.")
    await serve(stage)
    await stage.ended("chat-1", JobState.OUT_OF_MEMORY, "OutOfMemory")
    await stage.tick(5)
    await stage.tick(10)


async def test_node_fails(stage: Stage) -> None:
    stage.tell("""A node dies. A job that may be requeued goes back to the queue under its id; one that may not ends as
        NODE_FAIL, which is counted against the node alone: the next attempt follows without a back-off.""")
    await serve(stage, 2)
    stage.pass_time(120)
    for name in ("chat-1", "chat-2"):
        await stage.report(name, Phase.READY, silently=True)
    stage.slurm.requeue(await stage.job_of("chat-1"))
    stage.say("the node of chat-1 dies, and its job is requeued")
    await stage.ended("chat-2", JobState.NODE_FAIL, "NodeDown")
    await stage.tick()
    await stage.tick(1)


async def test_held_by_its_user(stage: Stage) -> None:
    stage.tell("""Someone holds a queued job with scontrol. Where outside changes are repaired, the job is replaced;
        what an administrator holds is his to release.""")
    stage.slurm.drain_node("node1")
    stage.slurm.drain_node("node2")
    await stage.apply()
    await stage.tick()
    await stage.tick(100)
    stage.slurm.hold(1, "JobHeldUser")
    stage.say("someone holds job 1")
    await stage.tick(1)
    await stage.tick(1)
    await stage.tick(1)
    await stage.tick(1)
    stage.slurm.hold(2, "JobHeldAdmin")
    stage.say("an administrator holds job 2")
    await stage.tick(1)
    await stage.quiet_tick()
    await stage.show("Blocked")
    stage.tell("Where they are respected it stays held, and a condition says so, until somebody releases it.")
    await stage.apply("code", outside_changes=OutsideChanges.RESPECT)
    await stage.tick()
    await stage.tick(5)
    stage.slurm.hold(3, "JobHeldUser")
    stage.say("someone holds job 3")
    await stage.tick(1)
    await stage.show("Blocked", "code")
    await stage.quiet_tick(3600)
    stage.slurm.release(3)
    stage.say("someone releases job 3")
    await stage.tick(1)


async def test_cancelled_by_hand(stage: Stage) -> None:
    stage.tell("""Someone cancels a replica's job. Where outside changes are repaired, which is so unless the
        deployment says otherwise, another one is submitted at once; a script that goes on cancelling gets one a
        minute.""")
    await serve(stage)
    stage.pass_time(120)
    await stage.report("chat-1", Phase.READY, silently=True)
    stage.drains_on_term = False
    await stage.cancelled("chat-1")
    await stage.tick()
    await stage.tick(1)
    await stage.tick(1)
    await stage.cancelled("chat-1")
    await stage.tick(1)
    await stage.tick(1)
    await stage.quiet_tick(30)
    await stage.tick(30)
    stage.tell("Where they are respected, it stays cancelled, until someone restarts the deployment.")
    await stage.apply("code", outside_changes=OutsideChanges.RESPECT)
    await stage.tick()
    stage.pass_time(2)
    await stage.becomes_ready("code-1")
    await stage.tick()
    await stage.cancelled("code-1")
    await stage.tick()
    await stage.tick(1)
    await stage.show("Blocked", "code")
    await stage.tick(5)
    await stage.quiet_tick()
    await stage.change("code")
    await stage.tick(1)


async def test_a_job_that_never_starts(stage: Stage) -> None:
    stage.tell("""An administrator shortens the partition's limit below the job's own. Slurm queues it all the same, and
        would for ever; so the deployment says that somebody must act.""")
    stage.slurm.drain_node("node1")
    stage.slurm.drain_node("node2")
    await stage.apply()
    await stage.tick()
    stage.slurm.hold(1, "PartitionTimeLimit")
    await stage.tick(1)
    await stage.show("Blocked")
    await stage.quiet_tick(3600)


async def test_altered_in_slurm(stage: Stage) -> None:
    stage.tell("Someone changes the time limit of a running job. It is said once, and the job is left so.")
    await serve(stage)
    stage.slurm.job(await stage.job_of("chat-1")).time_limit_s = 7200
    stage.say("someone gives job 1 a time limit of 2 hours")
    await stage.tick(1)
    await stage.tick(1)
    await stage.quiet_tick()


GPU, LONG = Placement(partition="gpu", patience_s=300), Placement(partition="cpu", qos="long", patience_s=120)


async def test_placements_in_order(stage: Stage) -> None:
    stage.tell("""A deployment has two placements. The first one is full; when its job has waited there for five
        minutes, it is withdrawn, and the next attempt goes to the second one, where it waits for good. Waiting is
        no failure: nothing is counted, and nothing backs off.""")
    stage.slurm.drain_node("node1")
    stage.slurm.drain_node("node2")
    await stage.apply(placement=GPU, fallbacks=(LONG,))
    await stage.tick()
    await stage.tick(1)
    await stage.quiet_tick(299)
    await stage.tick(1)
    await stage.tick(1)
    await stage.tick(1)
    await stage.tick(1)
    await stage.quiet_tick(7200)
    stage.tell("It becomes ready there; so when its job ends, the first placement is tried again.")
    stage.slurm.restore_node("node1")
    stage.pass_time(2)
    await stage.becomes_ready("chat-1")
    await stage.tick()
    await stage.ended("chat-1", JobState.PREEMPTED)
    await stage.tick()
    await stage.tick(1)
    assert [job.submission.partition for job in stage.slurm.jobs()][-2:] == ["cpu", "gpu"]
    stage.tell("A job that starts in the moment of its withdrawal is left alone.")
    stage.slurm.drain_node("node1")
    await stage.apply("code", placement=GPU, fallbacks=(LONG,))
    await stage.tick()
    await stage.tick(1)

    async def start(call: str) -> None:
        if call == "cancel":
            stage.slurm.restore_node("node1")
            stage.pass_time(2)

    stage.slurm.before_call = start
    await stage.tick(301)
    stage.slurm.before_call = None
    await stage.tick(1)
    await stage.becomes_ready("code-1")
    await stage.tick()


async def test_base_and_burst(stage: Stage) -> None:
    stage.tell("""Two guaranteed replicas, and whatever is beyond them in a partition where it may be preempted. Scaled
        down, the burst replicas go first.""")
    burst = Burst(base=2, placements=(Placement(partition="short"),))
    await stage.apply(replicas=3, burst=burst, placement=Placement(partition="gpu"))
    await stage.tick()
    assert [job.submission.partition for job in stage.slurm.jobs()] == ["gpu", "gpu", "short"]
    stage.pass_time(2)
    await stage.becomes_ready("chat-1", "chat-2", "chat-3")
    await stage.tick()
    stage.ready_at_least = 2
    await stage.scale(2)
    await stage.tick(1)
    await stage.finish("chat-3")
    await stage.tick(1)
    await stage.tick(1)
    await stage.quiet_tick()
    stage.tell(
        "A guaranteed replica is drained by hand while there are three: a guaranteed one takes its place."
    )
    await stage.scale(3)
    await stage.tick(1)
    stage.pass_time(2)
    await stage.becomes_ready("chat-4")
    await stage.tick()
    await stage.drain("chat-1")
    await stage.tick(1)
    stage.pass_time(2)
    await stage.becomes_ready("chat-5")
    await stage.finish("chat-1")
    await stage.tick()
    await stage.tick(1)
    stage.tell(
        "The base grows to three: the new one is made, and only when it is ready the burst replica goes."
    )
    stage.ready_at_least = 3
    await stage.change_unrevised(burst=Burst(base=3, placements=burst.placements))
    await stage.tick(1)
    stage.pass_time(2)
    await stage.tick(1)
    await stage.becomes_ready("chat-6")
    await stage.tick(1)
    await stage.finish("chat-4")
    await stage.tick(1)
    await stage.tick(1)
    await stage.quiet_tick()
    live = [job.submission.partition for job in stage.slurm.jobs() if not job.ended]
    assert live == ["gpu", "gpu", "gpu"]


async def test_comment_rewritten(stage: Stage) -> None:
    stage.tell("""Someone rewrites the comment of a running job. It does not bear the mark any more, so it is not
    touched; it is there, so no other takes its place.""")
    await serve(stage)
    number = await stage.job_of("chat-1")
    stage.slurm.comment(number, "an analysis")
    stage.say(f"someone writes another comment to job {number}")
    await stage.tick(1)
    await stage.show("Blocked")
    await stage.quiet_tick(3600)
    stage.slurm.comment(number, None)
    stage.say(f"someone puts the comment of job {number} back")
    await stage.tick(1)
    await stage.quiet_tick()


async def test_packed_on_nodes(stage: Stage) -> None:
    stage.tell("""Slurm would begin with the first node again, but the second replica asks for the node that runs the
        first one. Somebody else fills that node after the last look at it, so the third replica asks in vain: it is
        withdrawn, and goes anywhere.""")
    stage.slurm.drain_node("node1")
    await stage.look_around()
    await stage.apply(node_spread=NodeSpread.PACK, resources=Resources(cpus=2))
    await stage.tick()
    await stage.tick(2)
    stage.slurm.restore_node("node1")
    await stage.look_around()
    await stage.scale(2)
    await stage.tick(1)
    await stage.tick(2)
    await stage.take("node2", 4)
    await stage.scale(3)
    await stage.tick(1)
    await stage.tick(5)
    await stage.tick(15)
    await stage.tick(1)
    await stage.tick(1)
    await stage.tick(2)
    nodes = [(job.nodes, job.submission.require_nodes) for job in stage.slurm.jobs() if job.active]
    assert nodes == [
        (("node2",), ()),
        (("node2",), ("node2",)),
        (("node2",), ("node2",)),
        (("node1",), ()),
    ]


async def test_spread_and_requeued(stage: Stage) -> None:
    stage.tell("""Two replicas lie on two nodes, the second away from the node of the first. Then its node dies, and
        Slurm queues its job again, with all that it was told when it was submitted: not to run on the only node that is
        left. It is withdrawn, and the next one shares that node.""")
    await stage.look_around()
    await stage.apply(replicas=2, node_spread=NodeSpread.SPREAD)
    await stage.tick()
    await stage.tick(1)
    await stage.tick(2)
    await stage.becomes_ready("chat-1", "chat-2")
    await stage.tick(1)
    stage.slurm.drain_node("node2")
    job_id = await stage.job_of("chat-2")
    stage.say(f"node2 dies, and Slurm requeues job {job_id}")
    stage.slurm.requeue(job_id)
    await stage.tick(1)
    await stage.tick(150)
    await stage.tick(5)
    await stage.tick(1)
    await stage.tick(1)
    await stage.tick(2)
    await stage.becomes_ready("chat-2")
    await stage.tick(1)
    await stage.quiet_tick()
    nodes = [(job.nodes, job.submission.exclude_nodes) for job in stage.slurm.jobs() if job.active]
    assert nodes == [(("node1",), ()), (("node1",), ())]


async def test_spread_over_nodes(stage: Stage) -> None:
    stage.tell("""Three replicas on two nodes, to be spread. They are submitted one after the other, each away from the
        nodes that run one already; the third finds none without, and shares one.""")
    await stage.look_around()
    await stage.apply(replicas=3, node_spread=NodeSpread.SPREAD)
    await stage.tick()
    await stage.tick(1)
    await stage.tick(1)
    await stage.tick(2)
    await stage.quiet_tick(2)
    nodes = [job.nodes for job in stage.slurm.jobs()]
    assert sorted(nodes) == [("node1",), ("node1",), ("node2",)]
    stage.tell(
        "A queue is not waited for: after a quarter of a minute the next one is submitted all the same."
    )
    stage.slurm.drain_node("node1")
    stage.slurm.drain_node("node2")
    await stage.apply("code", replicas=2, node_spread=NodeSpread.SPREAD)
    await stage.tick()
    await stage.tick(5)
    await stage.tick(10)
