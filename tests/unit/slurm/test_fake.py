"""The fake's own promises, beyond the contract that it shares with real clusters: time, hooks and faults."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from penstock.core.jobs import Job, JobState, Node, Submission
from penstock.slurm.port import NoSuchJob, SlurmUnavailable, SubmissionRefused, SubmissionUnknown
from penstock.testing.jobs import FakeJob
from penstock.testing.slurm import DEFAULT_NODES, FakeSlurm, SubmitFault

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fake(clock: Clock) -> FakeSlurm:
    return FakeSlurm(clock=clock)


def job(name: str = "a", **options: Any) -> Submission:
    return Submission(name=name, comment="c", script="#!/bin/sh\n", work_dir="/w", output="/w/out", **options)


async def only(fake: FakeSlurm) -> Job:
    (found,) = await fake.list_jobs()
    return found


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


async def test_a_job_starts_after_the_delay_and_not_before(fake: FakeSlurm, clock: Clock) -> None:
    await fake.submit(job())
    clock.advance(0.9)
    assert (await only(fake)).state is JobState.PENDING
    clock.advance(60)
    started = await only(fake)
    assert (started.state, started.started_at) == (JobState.RUNNING, at(1)), (
        "at its own time, not at the asking's"
    )


async def test_what_happened_meanwhile_happens_in_order(clock: Clock) -> None:
    history: list[tuple[str, str, datetime]] = []
    fake = FakeSlurm(clock=clock, kill_wait_s=5)
    fake.on_start = lambda job: history.append(("start", job.submission.name, job.started_at or NOON))
    fake.on_end = lambda job: history.append(("end", job.submission.name, job.ended_at or NOON))
    for name in "ab":
        await fake.submit(job(name, exclusive=True, time_limit_s=60, exclude_nodes=("node2",)))
    clock.advance(1000)
    await fake.list_jobs()
    assert history == [
        ("start", "a", at(1)),
        ("end", "a", at(61)),
        ("start", "b", at(61)),
        ("end", "b", at(121)),
    ]


async def test_the_same_calls_at_the_same_times_give_the_same_history() -> None:
    async def run() -> list[tuple[Job, ...]]:
        clock = Clock()
        fake = FakeSlurm(clock=clock)
        seen = []
        for number in range(12):
            await fake.submit(job(f"j{number}", gres="gpu:1", time_limit_s=60 * (number % 3 + 1)))
            clock.advance(17)
            seen.append(await fake.list_jobs())
        return seen

    assert await run() == await run()


async def test_a_time_limit_warns_then_terms_then_kills(clock: Clock) -> None:
    signals: list[tuple[str, datetime]] = []

    def note(job: FakeJob, signal: str) -> bool:
        signals.append((signal, fake_now()))
        return True

    fake = FakeSlurm(clock=clock, on_signal=note, kill_wait_s=30)

    def fake_now() -> datetime:
        return fake._now

    await fake.submit(job(time_limit_s=120, warn_signal_s=45))
    clock.advance(121)
    assert (await only(fake)).state is JobState.COMPLETING
    clock.advance(30)
    ended = await only(fake)
    assert signals == [("TERM", at(76)), ("TERM", at(121))]
    assert (ended.state, ended.exit_signal, ended.reason) == (JobState.TIMEOUT, 9, "TimeLimit")
    assert ended.ends_at == at(151)


async def test_a_job_that_drains_in_time_keeps_its_ending(clock: Clock) -> None:
    fake = FakeSlurm(clock=clock, on_signal=lambda job, signal: True)
    job_id = await fake.submit(job())
    clock.advance(2)
    await fake.cancel(job_id, name="a")
    clock.advance(3)
    fake.finish(job_id)
    ended = await only(fake)
    assert (ended.state, ended.exit_code, ended.ends_at) == (JobState.CANCELLED, 0, at(5))


async def test_an_ended_job_is_forgotten(fake: FakeSlurm, clock: Clock) -> None:
    job_id = await fake.submit(job())
    clock.advance(2)
    fake.finish(job_id, exit_code=3)
    clock.advance(299)
    assert (await only(fake)).state is JobState.FAILED
    clock.advance(1)
    assert await fake.list_jobs() == ()
    with pytest.raises(NoSuchJob):
        await fake.cancel(job_id, name="a")


async def test_an_estimated_start(fake: FakeSlurm, clock: Clock) -> None:
    for name in ("a", "b", "c", "d"):
        await fake.submit(job(name, gres="gpu:2", time_limit_s=600))
    clock.advance(5)
    waiting = (await fake.list_jobs())[2:]
    assert [(row.reason, row.started_at) for row in waiting] == [("Resources", at(601)), ("Priority", None)]


async def test_typed_gpus(clock: Clock) -> None:
    nodes = [
        Node(
            name="n1",
            state="IDLE",
            cpus=8,
            memory_mib=16000,
            gpus={"a100": 2, "h200": 1},
            partitions=("gpu",),
        ),
    ]
    fake = FakeSlurm(clock=clock, nodes=nodes, limits={"gpu": (None, 3600)})
    await fake.submit(job("any", gres="gpu:2"))
    await fake.submit(job("one", gres="gpu:h200:1"))
    await fake.submit(job("late", gres="gpu:a100:1"))
    clock.advance(2)
    assert [row.state.value for row in await fake.list_jobs()] == ["RUNNING", "RUNNING", "PENDING"]
    with pytest.raises(SubmissionRefused):
        await fake.submit(job("much", gres="gpu:h200:2"))


async def test_an_account_that_is_not_ours(clock: Clock) -> None:
    fake = FakeSlurm(clock=clock, accounts=("physics",))
    with pytest.raises(SubmissionRefused, match="Invalid account"):
        await fake.submit(job(account="chemistry"))
    await fake.submit(job(account="physics"))
    assert (await fake.cluster()).accounts == ("physics",)


async def test_a_hold_and_its_release(fake: FakeSlurm, clock: Clock) -> None:
    job_id = await fake.submit(job())
    fake.hold(job_id)
    clock.advance(100)
    assert (await only(fake)).reason == "JobHeldAdmin"
    fake.release(job_id)
    assert (await only(fake)).state is JobState.RUNNING


async def test_hooks_may_end_and_lose_jobs(clock: Clock) -> None:
    fake = FakeSlurm(clock=clock)
    fake.on_start = lambda job: (
        fake.finish(job.job_id) if job.submission.name == "a" else fake.lose(job.job_id)
    )
    await fake.submit(job("a"))
    await fake.submit(job("b"))
    clock.advance(5)
    assert [(row.name, row.state) for row in await fake.list_jobs()] == [("a", JobState.COMPLETED)]


async def test_a_requeued_job_starts_again_and_its_hooks_run_again(clock: Clock) -> None:
    events: list[str] = []
    fake = FakeSlurm(clock=clock, requeue_delay_s=6)
    fake.on_start = lambda job: events.append(f"start {job.restarts}")
    fake.on_end = lambda job: events.append(f"end {job.restarts}")
    job_id = await fake.submit(job())
    clock.advance(10)
    fake.requeue(job_id)
    waiting = await only(fake)
    assert (waiting.reason, waiting.restarts, waiting.job_id) == ("BeginTime", 1, job_id)
    clock.advance(6)
    assert (await only(fake)).state is JobState.RUNNING
    assert events == ["start 0", "end 0", "start 1"]


async def test_jobs_leave_a_failed_node_and_none_goes_there(fake: FakeSlurm, clock: Clock) -> None:
    await fake.submit(job("a"))
    clock.advance(2)
    fake.fail_node("node1")
    clock.advance(10)
    assert (await only(fake)).nodes == "node2"
    fake.restore_node("node1")
    assert all(node.usable for node in (await fake.cluster()).nodes)


# Faults ------------------------------------------------------------------------------------------------------


async def test_a_cluster_that_is_down(fake: FakeSlurm) -> None:
    job_id = await fake.submit(job("a"))
    fake.faults.down = "slurmctld is gone"
    for call in (fake.list_jobs(), fake.find("a"), fake.cluster(), fake.cancel(job_id, name="a")):
        with pytest.raises(SlurmUnavailable, match="slurmctld is gone"):
            await call
    with pytest.raises(SubmissionUnknown, match="submitting job b: slurmctld is gone"):
        await fake.submit(job("b"))
    fake.faults.down = ""
    assert [row.name for row in await fake.list_jobs()] == ["a"], "the submission never arrived"


async def test_faults_of_submissions_are_used_up_in_order(fake: FakeSlurm) -> None:
    fake.faults.submits.extend([SubmitFault.LOST_AFTER, None, "no more today", SubmitFault.LOST_BEFORE])
    with pytest.raises(SubmissionUnknown, match="reply was lost"):
        await fake.submit(job("after"))
    await fake.submit(job("fine"))
    with pytest.raises(SubmissionRefused, match="no more today"):
        await fake.submit(job("refused"))
    with pytest.raises(SubmissionUnknown, match="request was lost"):
        await fake.submit(job("before"))
    assert [row.name for row in await fake.list_jobs()] == ["after", "fine"]


async def test_a_call_that_fails_a_number_of_times(fake: FakeSlurm) -> None:
    fake.faults.failing["list_jobs"] = 2
    for _ in range(2):
        with pytest.raises(SlurmUnavailable, match="list_jobs failed"):
            await fake.list_jobs()
    assert await fake.list_jobs() == ()
    assert fake.calls["list_jobs"] == 3


async def test_ids_are_used_again_after_a_state_reset(fake: FakeSlurm) -> None:
    old = await fake.submit(job("old"))
    fake.reset_state()
    assert await fake.list_jobs() == ()
    assert await fake.submit(job("new")) == old
    with pytest.raises(NoSuchJob, match="is named 'new', not old"):
        await fake.cancel(old, name="old")


async def test_a_crash_just_before_and_just_after_a_call(fake: FakeSlurm) -> None:
    async def crash(call: str) -> None:
        raise RuntimeError(call)

    fake.before_call = crash
    with pytest.raises(RuntimeError, match="submit"):
        await fake.submit(job("before"))
    fake.before_call, fake.after_call = None, crash
    with pytest.raises(RuntimeError, match="submit"):
        await fake.submit(job("after"))
    fake.after_call = None
    assert [row.name for row in await fake.list_jobs()] == ["after"]


async def test_only_a_running_job_can_finish_or_be_requeued(fake: FakeSlurm) -> None:
    job_id = await fake.submit(job())
    with pytest.raises(ValueError, match="job 1 is PENDING; only a running job can finish"):
        fake.finish(job_id)
    with pytest.raises(ValueError, match="only a running job can be requeued"):
        fake.requeue(job_id)


def test_the_default_nodes_are_idle_and_usable() -> None:
    assert all(node.usable for node in DEFAULT_NODES)
    assert not replace(DEFAULT_NODES[0], state="IDLE+DRAIN").usable
