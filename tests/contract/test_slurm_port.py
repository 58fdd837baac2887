"""Slurm's contract (`penstock.slurm.port`), on the fake and on real clusters: Debian 12's Slurm 22.05 through its
commands, Slurm 26.05 through its commands and through pyslurm.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from penstock.core.jobs import Job, JobState
from penstock.slurm.port import (
    May,
    NoAccounting,
    NoSuchJob,
    Slurm,
    SlurmUnavailable,
    SubmissionRefused,
    SubmissionUnknown,
)
from penstock.testing.slurm import anybody
from tests.contract import lanes
from tests.contract.lanes import FakeLane, Lane, job_when, until


@pytest.fixture(params=["fake", "22.05-slurmdbd"])
async def accounted(request: pytest.FixtureRequest) -> AsyncIterator[Lane]:
    """Those of the lanes that keep accounts."""
    fake = request.param == "fake"
    made = FakeLane() if fake else lanes.accounted(request.getfixturevalue("accounted_cluster"))
    yield made
    await made.close()


@pytest.fixture(params=["fake", "22.05-cli", "26.05-cli", "26.05-pyslurm"])
async def lane(request: pytest.FixtureRequest) -> AsyncIterator[Lane]:
    made: Lane
    match request.param:
        case "fake":
            made = FakeLane()
        case "22.05-cli":
            made = lanes.commands(request.getfixturevalue("slurm_cluster"))
        case "26.05-cli":
            made = lanes.commands(request.getfixturevalue("slurm_26_cluster"))
        case _:
            made = lanes.pyslurm(request.getfixturevalue("slurm_26_cluster"))
    yield made
    await made.close()


async def test_a_job_from_submission_to_its_end(lane: Lane) -> None:
    wanted = lane.submission(
        "stay", time_limit_s=601, partition="cpu", cpus_per_task=2, memory_per_node_mib=500
    )
    before = datetime.now(UTC) - timedelta(seconds=2)
    job_id = await lane.slurm.submit(wanted, may=anybody)

    (seen,) = await lane.slurm.find(wanted.name)
    assert (seen.job_id, seen.name, seen.comment, seen.partition) == (job_id, wanted.name, "a comment", "cpu")
    assert seen.time_limit_s == 660, "Slurm rounds up to whole minutes"
    assert seen.submitted_at is not None
    assert before < seen.submitted_at < datetime.now(UTC) + timedelta(seconds=2)
    assert (seen.exit_code, seen.exit_signal, seen.restarts) == (None, None, 0)

    running = await job_when(lane, wanted.name, lambda job: job.state is JobState.RUNNING, "runs")
    assert running.nodes == "node1"
    assert running.reason == ""
    assert running.started_at is not None
    assert running.ends_at == running.started_at + timedelta(seconds=660)
    assert not running.waiting
    assert not running.ended

    await lane.ready(wanted)
    lane.leave(wanted)
    ended = await job_when(lane, wanted.name, lambda job: job.ended, "has ended")
    assert (ended.state, ended.exit_code, ended.exit_signal) == (JobState.COMPLETED, 0, None)
    assert ended.ends_at is not None
    assert ended.ends_at < running.ends_at
    assert ended in await lane.slurm.list_jobs()


@pytest.mark.parametrize(
    ("behaviour", "exit_code", "exit_signal"), [("exit 3", 3, None), ("killed", None, 9)]
)
async def test_how_a_failed_job_ended(
    lane: Lane, behaviour: str, exit_code: int | None, exit_signal: int | None
) -> None:
    wanted = lane.submission(behaviour)
    await lane.slurm.submit(wanted, may=anybody)
    ended = await job_when(lane, wanted.name, lambda job: job.ended, "has ended")
    assert (ended.state, ended.exit_code, ended.exit_signal) == (JobState.FAILED, exit_code, exit_signal)


async def test_no_job_of_that_name(lane: Lane) -> None:
    assert await lane.slurm.find("no-job-of-this-name") == ()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"partition": "nope"}, "Invalid partition name specified"),
        ({"gres": "gpu:9"}, "Requested node configuration is not available"),
        ({"cpus_per_task": 9}, "Requested node configuration is not available"),
        ({"gres": "shoes:1"}, "Invalid generic resource"),
        ({"memory_per_node_mib": 10_000_000}, "Requested node configuration is not available"),
        ({"constraint": "nope"}, "Invalid feature specification"),
        ({"reservation": "nope"}, "Requested reservation is invalid"),
        ({"exclude_nodes": ("nope",)}, "Invalid node name specified"),
        ({"require_nodes": ("nope",)}, "Invalid node name specified"),
        ({"extra_options": {"nope": "1"}}, "unrecognized option '--nope"),
        ({"extra_options": {"arr": "1-3"}}, "a replica is one job"),
        ({"extra_options": {"Bad Name": ""}}, "not the name of a long option"),
        ({"comment": "x" * 1025}, "1025 bytes; Slurm takes 1024"),
        ({"script": "echo no interpreter\n"}, "does not begin with #!"),
    ],
)
async def test_what_cannot_be_is_refused_with_a_sentence(
    lane: Lane, options: dict[str, Any], sentence: str
) -> None:
    wanted = lane.submission("stay", **options)
    with pytest.raises(SubmissionRefused, match=sentence) as refusal:
        await lane.slurm.submit(wanted, may=anybody)
    assert refusal.value.reason == str(refusal.value)
    left = await lane.slurm.find(wanted.name)
    assert all(job.ended for job in left), "a refused submission may leave a failed job, never a live one"


async def test_a_plugin_of_the_site_that_says_no_has_refused(lane: Lane) -> None:
    wanted, words = lane.submission("stay"), "GPU jobs need an account: connect to the network portal"
    lane.say_no(words)
    with pytest.raises(SubmissionRefused) as refusal:
        await lane.slurm.submit(wanted, may=anybody)
    # libslurm prints what the plugin said, and pyslurm knows of no words.
    assert refusal.value.reason == words or (
        lane.slurm.backend == "pyslurm" and "Unspecified error" in refusal.value.reason
    )
    lane.heal_controller()
    assert await lane.slurm.find(wanted.name) == ()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"partition": "short", "time_limit_s": 3600}, "PartitionTimeLimit"),
        ({"nodes": 3}, "PartitionConfig"),
        ({"cpus_per_task": 17}, "PartitionConfig"),
    ],
)
async def test_what_slurm_takes_and_never_starts_waits_with_its_reason(
    lane: Lane, options: dict[str, Any], reason: str
) -> None:
    wanted = lane.submission("stay", **options)
    await lane.slurm.submit(wanted, may=anybody)
    job = await job_when(lane, wanted.name, lambda job: job.reason == reason, f"waits for {reason}")
    assert job.state is JobState.PENDING
    assert job.waiting
    assert job.nodes == ""


async def test_of_two_jobs_with_one_name_only_one_runs(lane: Lane) -> None:
    first = lane.submission("stay")
    second = lane.submission("stay", name=first.name)
    ids = [await lane.slurm.submit(first, may=anybody), await lane.slurm.submit(second, may=anybody)]
    assert ids[0] < ids[1]
    await lane.ready(first)
    jobs = await until(
        "the second waits for the first",
        lambda: lane.slurm.find(first.name),
        lambda jobs: len(jobs) == 2 and jobs[1].reason == "Dependency",
    )
    assert [job.job_id for job in jobs] == ids
    assert [job.state for job in jobs] == [JobState.RUNNING, JobState.PENDING]
    lane.leave(first)
    await until(
        "the second runs",
        lambda: lane.slurm.find(first.name),
        lambda jobs: [job.state for job in jobs] == [JobState.COMPLETED, JobState.RUNNING],
    )


async def test_a_job_waits_for_gpus_and_takes_freed_ones(lane: Lane) -> None:
    wanted = [lane.submission("obey", gres="gpu:2") for _ in range(3)]
    ids = [await lane.slurm.submit(submission, may=anybody) for submission in wanted]
    for submission in wanted[:2]:
        await lane.ready(submission)
    waiting = await job_when(
        lane, wanted[2].name, lambda job: job.reason == "Resources", "waits for resources"
    )
    assert waiting.state is JobState.PENDING
    used = {node.name: node.gpus_allocated for node in (await lane.slurm.cluster()).nodes}
    assert used == {"node1": 2, "node2": 2}
    await lane.slurm.cancel(ids[0], name=wanted[0].name, may=anybody)
    await job_when(lane, wanted[2].name, lambda job: job.state is JobState.RUNNING, "runs")


async def test_cancelling_a_running_job(lane: Lane) -> None:
    wanted = lane.submission("obey")
    job_id = await lane.slurm.submit(wanted, may=anybody)
    await lane.ready(wanted)
    await lane.slurm.cancel(job_id, name=wanted.name, may=anybody)
    ended = await job_when(lane, wanted.name, lambda job: job.ended, "has ended")
    assert ended.state is JobState.CANCELLED
    assert lane.signals(wanted) == ["TERM"]
    await lane.slurm.cancel(job_id, name=wanted.name, may=anybody)
    (still,) = await lane.slurm.find(wanted.name)
    assert still == ended


async def test_cancelling_a_job_that_will_not_go(lane: Lane) -> None:
    wanted = lane.submission("stay")
    job_id = await lane.slurm.submit(wanted, may=anybody)
    await lane.ready(wanted)
    asked_at = datetime.now(UTC)
    await lane.slurm.cancel(job_id, name=wanted.name, may=anybody)
    going = await job_when(lane, wanted.name, lambda job: job.state is not JobState.RUNNING, "is told to go")
    quick = datetime.now(UTC) - asked_at < timedelta(seconds=lane.kill_wait_s)
    if quick:  # Else it may be killed by now.
        assert going.state is JobState.COMPLETING
        assert not going.ended
        assert not going.waiting
    await lane.slurm.cancel(job_id, name=wanted.name, may=anybody)
    ended = await job_when(lane, wanted.name, lambda job: job.ended, "has ended")
    assert ended.state is JobState.CANCELLED
    # Slurm counts whole seconds and may begin in the middle of one.
    assert datetime.now(UTC) - asked_at > timedelta(seconds=lane.kill_wait_s - 1)
    assert "TERM" in lane.signals(wanted)
    if not quick:
        pytest.skip(f"how it goes was not seen: looking took longer than KillWait, {lane.kill_wait_s} s")


async def test_cancelling_a_waiting_job(lane: Lane) -> None:
    wanted = lane.submission("stay", partition="short", time_limit_s=3600)
    job_id = await lane.slurm.submit(wanted, may=anybody)
    await lane.slurm.cancel(job_id, name=wanted.name, may=anybody)
    ended = await job_when(lane, wanted.name, lambda job: job.ended, "has ended")
    assert ended.state is JobState.CANCELLED
    assert lane.signals(wanted) == []


async def test_withdrawing_spares_what_has_nodes(lane: Lane) -> None:
    running = lane.submission("obey")
    job_id = await lane.slurm.submit(running, may=anybody)
    await lane.ready(running)
    await lane.slurm.cancel(job_id, name=running.name, only_waiting=True, may=anybody)
    waiting = lane.submission("stay", partition="short", time_limit_s=3600)
    waits_as = await lane.slurm.submit(waiting, may=anybody)
    await lane.slurm.cancel(waits_as, name=waiting.name, only_waiting=True, may=anybody)
    ended = await job_when(lane, waiting.name, lambda job: job.ended, "has ended")
    assert ended.state is JobState.CANCELLED
    (still,) = await lane.slurm.find(running.name)
    assert still.state is JobState.RUNNING
    assert lane.signals(running) == []


async def test_a_job_of_another_name_is_left_alone(lane: Lane) -> None:
    wanted = lane.submission("stay")
    job_id = await lane.slurm.submit(wanted, may=anybody)
    await lane.ready(wanted)
    with pytest.raises(NoSuchJob, match=f"job {job_id} is named '{wanted.name}', not another"):
        await lane.slurm.cancel(job_id, name="another", may=anybody)
    with pytest.raises(NoSuchJob, match=f"job {job_id} is named '{wanted.name}', not another"):
        await lane.slurm.signal(job_id, "TERM", name="another", may=anybody)
    with pytest.raises(NoSuchJob, match="Slurm knows no job 99999"):
        await lane.slurm.cancel(99999, name=wanted.name, may=anybody)
    (job,) = await lane.slurm.find(wanted.name)
    assert job.state is JobState.RUNNING
    assert lane.signals(wanted) == []


async def test_a_signal_reaches_the_script_and_ends_nothing(lane: Lane) -> None:
    wanted = lane.submission("stay")
    job_id = await lane.slurm.submit(wanted, may=anybody)
    await lane.ready(wanted)
    await lane.slurm.signal(job_id, "TERM", name=wanted.name, may=anybody)

    async def noted() -> list[str]:
        return lane.signals(wanted)

    assert await until("the script has the signal", noted, bool) == ["TERM"]
    (job,) = await lane.slurm.find(wanted.name)
    assert job.state is JobState.RUNNING
    lane.leave(wanted)
    ended = await job_when(lane, wanted.name, lambda job: job.ended, "has ended")
    assert ended.state is JobState.COMPLETED
    with pytest.raises(NoSuchJob, match="cannot be sent TERM"):
        await lane.slurm.signal(job_id, "TERM", name=wanted.name, may=anybody)


async def test_a_waiting_job_takes_no_signal(lane: Lane) -> None:
    wanted = lane.submission("stay", partition="short", time_limit_s=3600)
    job_id = await lane.slurm.submit(wanted, may=anybody)
    with pytest.raises(NoSuchJob, match="is PENDING, so it cannot be sent TERM"):
        await lane.slurm.signal(job_id, "TERM", name=wanted.name, may=anybody)


class Lost(Exception):
    """The lease is."""


def lost() -> None:
    raise Lost


async def test_who_may_not_sends_nothing(lane: Lane) -> None:
    """And whoever may is served as before."""
    running, other = lane.submission("stay"), lane.submission("exit 0")
    job_id = await lane.slurm.submit(running, may=anybody)
    await lane.ready(running)
    waiting = lane.submission("stay", partition="short", time_limit_s=3600)
    waits_as = await lane.slurm.submit(waiting, may=anybody)
    backend = lane.process
    with pytest.raises(Lost):
        await lane.slurm.submit(other, may=lost)
    with pytest.raises(Lost):
        await lane.slurm.cancel(job_id, name=running.name, may=lost)
    with pytest.raises(Lost):
        await lane.slurm.cancel(waits_as, name=waiting.name, may=lost, only_waiting=True)
    with pytest.raises(Lost):
        await lane.slurm.signal(job_id, "TERM", name=running.name, may=lost)
    assert await lane.slurm.find(other.name) == ()
    assert [job.state for job in await lane.slurm.find(running.name)] == [JobState.RUNNING]
    assert [job.state for job in await lane.slurm.find(waiting.name)] == [JobState.PENDING]
    assert lane.signals(running) == []
    assert lane.process == backend


@pytest.mark.parametrize(
    "call",
    [
        lambda slurm, job_id, name, may: slurm.cancel(job_id, name=name, may=may),
        lambda slurm, job_id, name, may: slurm.signal(job_id, "TERM", name=name, may=may),
    ],
    ids=["cancel", "signal"],
)
async def test_a_lease_that_is_lost_while_a_call_waits(
    lane: Lane, call: Callable[[Slurm, int, str, May], Awaitable[None]]
) -> None:
    """It waits for its turn behind another, or for its own look at the job."""
    wanted = lane.submission("stay")
    job_id = await lane.slurm.submit(wanted, may=anybody)
    await lane.ready(wanted)
    backend, held = lane.process, True

    def may() -> None:
        if not held:
            raise Lost

    before = asyncio.create_task(lane.slurm.list_jobs())
    waits = asyncio.ensure_future(call(lane.slurm, job_id, wanted.name, may))
    await asyncio.sleep(0)  # Both have begun.
    held = False
    with pytest.raises(Lost):
        await waits
    assert job_id in [job.job_id for job in await before]
    (job,) = await lane.slurm.find(wanted.name)
    assert job.state is JobState.RUNNING
    assert lane.signals(wanted) == []
    assert lane.process == backend


HOSTILE = [
    "two\nlines\n\n",
    "1|2|RUNNING|None|gpu",
    "\x1f\x1e\x1f",
    "1\x1fRUNNING\x1fNone\x1e\n2\x1fRUNNING",
    "%j %k %N \\n \\x1f",
    '\'; scancel --user=root; echo "$HOME" `id` #',
    "JobID:,Name:,Comment:",
    "Größe ✓ \N{ROCKET}",
    '{"id": 1, "value": []}\n{"id": 2}',
    "-J --comment=other",
    " leading and trailing ",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
async def test_no_name_or_comment_breaks_the_listing(lane: Lane, text: str) -> None:
    ours = lane.submission("stay", partition="short", time_limit_s=3600)
    hostile = lane.submission("stay", name=text, comment=text, partition="short", time_limit_s=3600)
    ids = {await lane.slurm.submit(hostile, may=anybody), await lane.slurm.submit(ours, may=anybody)}
    rows = {job.job_id: job for job in await lane.slurm.list_jobs() if job.job_id in ids}
    assert [(job.name, job.comment) for _, job in sorted(rows.items())] == [
        (text, text),
        (ours.name, "a comment"),
    ]
    # On one cluster two lanes give this name, one after the other.
    assert {job.job_id for job in await lane.slurm.find(text) if not job.ended} == {min(ids)}
    await lane.slurm.cancel(min(ids), name=text, may=anybody)
    await until(
        f"{text!r} has ended", lambda: lane.slurm.find(text), lambda jobs: all(job.ended for job in jobs)
    )


async def test_jobs_are_listed_by_id(lane: Lane) -> None:
    for _ in range(5):
        await lane.slurm.submit(lane.submission("exit 0"), may=anybody)
    ids = [job.job_id for job in await lane.slurm.list_jobs()]
    assert ids == sorted(ids)
    assert len(ids) >= 5


async def test_the_cluster(lane: Lane) -> None:
    cluster = await lane.slurm.cluster()
    partitions = {partition.name: partition for partition in cluster.partitions}
    assert {"gpu", "cpu", "short"} <= set(partitions)
    assert [name for name, partition in partitions.items() if partition.is_default] == ["gpu"]
    assert partitions["gpu"].max_time_s is None
    assert partitions["gpu"].default_time_s == 3600
    assert (partitions["short"].max_time_s, partitions["short"].default_time_s) == (600, 300)
    for partition in partitions.values():
        assert partition.up
        assert partition.nodes == ("node1", "node2")
        assert (partition.total_nodes, partition.total_cpus, partition.max_nodes) == (2, 16, None)
        assert (partition.allowed_accounts, partition.allowed_qos) == (None, None)
    assert [node.name for node in cluster.nodes] == ["node1", "node2"]
    for node in cluster.nodes:
        assert (node.cpus, node.memory_mib, dict(node.gpus)) == (8, 16000, {"": 2})
        assert {"gpu", "cpu", "short"} <= set(node.partitions)
        assert node.usable
    assert cluster.accounts is None, "no accounting here"
    assert cluster.slurm_version.split(".")[0].isdigit()
    assert cluster.name
    assert cluster.message_timeout_s >= 1


async def test_what_jobs_take_from_nodes(lane: Lane) -> None:
    wanted = lane.submission("stay", gres="gpu:1", cpus_per_task=3, memory_per_node_mib=1234)
    await lane.slurm.submit(wanted, may=anybody)
    await lane.ready(wanted)
    node = next(node for node in (await lane.slurm.cluster()).nodes if node.name == "node1")
    assert (node.cpus_allocated, node.memory_allocated_mib, node.gpus_allocated) == (3, 1234, 1)
    assert node.state == "MIXED"


async def test_an_exclusive_job_has_its_node_alone(lane: Lane) -> None:
    alone = lane.submission("stay", exclusive=True)
    await lane.slurm.submit(alone, may=anybody)
    await lane.ready(alone)
    other = lane.submission("stay")
    await lane.slurm.submit(other, may=anybody)
    await lane.ready(other)
    (first,), (second,) = await lane.slurm.find(alone.name), await lane.slurm.find(other.name)
    assert first.nodes != second.nodes


async def test_a_job_on_two_nodes(lane: Lane) -> None:
    wanted = lane.submission("stay", nodes=2, gres="gpu:1")
    await lane.slurm.submit(wanted, may=anybody)
    job = await job_when(lane, wanted.name, lambda job: job.state is JobState.RUNNING, "runs")
    assert job.nodes in ("node[1-2]", "node[1,2]")


async def test_excluded_nodes_are_not_used(lane: Lane) -> None:
    wanted = lane.submission("stay", exclude_nodes=("node1",))
    await lane.slurm.submit(wanted, may=anybody)
    job = await job_when(lane, wanted.name, lambda job: job.state is JobState.RUNNING, "runs")
    assert job.nodes == "node2"


async def test_required_nodes_are_used_and_waited_for(lane: Lane) -> None:
    lane.drain_node("node2", "away")
    wanted = lane.submission("stay", require_nodes=("node2",))
    await lane.slurm.submit(wanted, may=anybody)
    job = await job_when(lane, wanted.name, lambda job: bool(job.waiting and job.reason), "waits")
    assert job.nodes == ""
    lane.restore_node("node2")
    job = await job_when(lane, wanted.name, lambda job: job.state is JobState.RUNNING, "runs")
    assert job.nodes == "node2"


async def test_a_drained_node_is_not_usable(lane: Lane) -> None:
    lane.drain_node("node2", "disk | of 'node2', broken")
    node = (await lane.slurm.cluster()).nodes[1]
    assert not node.usable
    assert node.state in ("IDLE+DRAIN", "DRAINED")
    assert node.reason.startswith("disk | of 'node2', broken")
    lane.restore_node("node2")
    await until("node2 is usable", lane.slurm.cluster, lambda cluster: cluster.nodes[1].usable)


async def test_nothing_is_started_that_would_run_into_maintenance(lane: Lane) -> None:
    """What asks for too long waits until it is over; what asks for less, or may be shortened, runs before."""
    assert (await lane.slurm.cluster()).maintenance == ()
    lane.announce("firmware", 600, "node1", "node2")
    (found,) = (await lane.slurm.cluster()).maintenance
    assert (found.name, found.nodes) == ("firmware", ("node1", "node2"))
    assert abs((found.begins_at - datetime.now(UTC)).total_seconds() - 600) < 60
    assert found.ends_at - found.begins_at == timedelta(hours=1)
    long = lane.submission("obey", time_limit_s=1200)
    job_id = await lane.slurm.submit(long, may=anybody)
    waiting = await job_when(lane, long.name, lambda job: "maintenance" in job.reason, "waits for it")
    assert waiting.waiting
    await lane.slurm.cancel(job_id, name=long.name, may=anybody)
    short = lane.submission("obey", time_limit_s=300)
    await lane.slurm.submit(short, may=anybody)
    runs = await job_when(lane, short.name, lambda job: job.state is JobState.RUNNING, "runs")
    assert runs.time_limit_s == 300
    bends = lane.submission("obey", time_limit_s=1200, time_min_s=60)
    await lane.slurm.submit(bends, may=anybody)
    runs = await job_when(lane, bends.name, lambda job: job.state is JobState.RUNNING, "runs, shortened")
    assert runs.time_limit_s is not None
    assert 60 <= runs.time_limit_s <= 600


async def test_a_requeued_job_keeps_its_id(lane: Lane) -> None:
    wanted = lane.submission("stay")
    job_id = await lane.slurm.submit(wanted, may=anybody)
    await lane.ready(wanted)
    before = await job_when(lane, wanted.name, lambda job: job.state is JobState.RUNNING, "runs")
    lane.requeue(job_id)
    waiting = await job_when(lane, wanted.name, lambda job: job.waiting, "waits again")
    assert before.submitted_at is not None
    assert waiting.submitted_at is not None
    assert waiting.submitted_at > before.submitted_at
    assert (waiting.job_id, waiting.restarts, waiting.nodes) == (job_id, 1, "")
    again = await job_when(lane, wanted.name, lambda job: job.state is JobState.RUNNING, "runs again")
    assert (again.job_id, again.restarts) == (job_id, 1)


@pytest.mark.parametrize("requeue", [True, False])
async def test_a_node_fails_under_a_job(lane: Lane, requeue: bool) -> None:
    wanted = lane.submission("stay", extra_options={} if requeue else {"no-requeue": ""})
    job_id = await lane.slurm.submit(wanted, may=anybody)
    await lane.ready(wanted)
    lane.fail_node("node1")
    node = (await lane.slurm.cluster()).nodes[0]
    assert not node.usable
    if requeue:
        job = await job_when(lane, wanted.name, lambda job: job.restarts == 1, "was requeued")
        assert job.job_id == job_id
    else:
        job = await job_when(lane, wanted.name, lambda job: job.ended, "has ended")
        assert job.state is JobState.NODE_FAIL


async def test_a_controller_that_is_down_is_not_an_empty_queue(lane: Lane) -> None:
    wanted = lane.submission("stay")
    job_id = await lane.slurm.submit(wanted, may=anybody)
    await lane.ready(wanted)
    lane.stop_controller()
    with pytest.raises(SlurmUnavailable):
        await lane.slurm.list_jobs()
    with pytest.raises(SlurmUnavailable):
        await lane.slurm.cluster()
    with pytest.raises(SlurmUnavailable):
        await lane.slurm.cancel(job_id, name=wanted.name, may=anybody)
    with pytest.raises(SubmissionUnknown):
        await lane.slurm.submit(lane.submission("stay"), may=anybody)
    lane.heal_controller()
    (job,) = await lane.slurm.find(wanted.name)
    assert job.state is JobState.RUNNING


async def test_a_submission_without_an_answer_may_have_made_a_job(lane: Lane) -> None:
    wanted = lane.submission("stay")
    lane.freeze_controller()
    with pytest.raises(SubmissionUnknown):
        await lane.slurm.submit(wanted, may=anybody)
    with pytest.raises(SlurmUnavailable):
        await lane.slurm.list_jobs()
    lane.heal_controller()
    # The request was waiting at slurmctld's door all the time.
    await job_when(
        lane, wanted.name, lambda job: job.state is JobState.RUNNING, "runs although nobody was told"
    )


async def test_a_site_without_accounting_says_so(lane: Lane) -> None:
    wanted = lane.submission("exit 3")
    job_id = await lane.slurm.submit(wanted, may=anybody)
    if lane.accounting:
        assert (await past_job(lane, wanted.name, job_id)).exit_code == 3
    else:
        with pytest.raises(NoAccounting):
            await lane.slurm.history([job_id])


async def test_how_a_job_ended_is_in_the_history(accounted: Lane) -> None:
    """And nothing of an id that was never given."""
    wanted = accounted.submission("exit 3")
    job_id = await accounted.slurm.submit(wanted, may=anybody)
    job = await past_job(accounted, wanted.name, job_id)
    assert (job.job_id, job.name, job.state) == (job_id, wanted.name, JobState.FAILED)
    assert (job.exit_code, job.exit_signal) == (3, None)
    assert (job.partition, job.nodes) == ("gpu", "node1")
    assert job.submitted_at is not None
    assert job.started_at is not None
    assert job.ends_at is not None
    assert job.submitted_at <= job.started_at <= job.ends_at


async def test_each_run_of_a_requeued_job_is_in_its_history(accounted: Lane) -> None:
    wanted = accounted.submission("stay")
    job_id = await accounted.slurm.submit(wanted, may=anybody)
    await accounted.ready(wanted)
    accounted.requeue(job_id)
    await job_when(
        accounted, wanted.name, lambda job: job.restarts == 1 and job.state is JobState.RUNNING, "runs again"
    )
    await accounted.slurm.cancel(job_id, name=wanted.name, may=anybody)
    await job_when(accounted, wanted.name, lambda job: job.ended, "has ended")
    await past_job(accounted, wanted.name, job_id)
    first, second = await accounted.slurm.history([job_id])
    assert first.state is JobState.REQUEUED
    assert second.state is JobState.CANCELLED
    assert second.submitted_at is not None
    assert first.submitted_at is not None
    assert first.submitted_at <= second.submitted_at


async def past_job(lane: Lane, name: str, job_id: int) -> Job:
    """The last run of the job as accounting has it, once it knows that it has ended: slurmctld tells it later, and of
    a job that it has just taken over the name comes last."""

    async def ask() -> tuple[Job, ...]:
        return await lane.slurm.history([job_id, 4_000_000])

    def told(jobs: tuple[Job, ...]) -> bool:
        return bool(jobs) and jobs[-1].ended and jobs[-1].name == name

    return (await until(f"accounting knows how {name} ended", ask, told))[-1]
