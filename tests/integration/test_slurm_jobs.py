"""What a job on a real cluster gets from a submission: its script, its environment, its GPUs, its warning.

The contract's real lanes again, for what the fake cannot show because it runs no script.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from penstock.core.jobs import Job, JobState, Submission
from penstock.testing.slurm import anybody
from tests.contract import lanes
from tests.contract.lanes import RealLane, job_when, until


@pytest.fixture(params=["22.05-cli", "26.05-cli", "26.05-pyslurm"])
async def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RealLane]:
    # Before the backend is made: it takes its environment then.
    monkeypatch.setenv("PENSTOCK_DATABASE_URL", "postgresql://user:secret@host/db")
    monkeypatch.setenv("SBATCH_PARTITION", "nope")
    monkeypatch.setenv("SLURM_JOB_NAME", "nope")
    release, _, backend = request.param.partition("-")
    cluster = request.getfixturevalue("slurm_cluster" if release == "22.05" else "slurm_26_cluster")
    made = lanes.pyslurm(cluster) if backend == "pyslurm" else lanes.commands(cluster)
    yield made
    await made.close()


def folder(wanted: Submission) -> Path:
    return Path(wanted.work_dir)


async def ran(lane: RealLane, wanted: Submission) -> Job:
    await lane.slurm.submit(wanted, may=anybody)
    return await job_when(lane, wanted.name, lambda job: job.ended, "has ended")


async def test_the_script_arrives_as_it_was_written(lane: RealLane) -> None:
    odd = "'single' \"double\" `back` $HOME \\n %j \t tab  two  spaces é ✓ #SBATCH\n\n\nlast"
    script = f"#!/bin/sh\ncat > copy <<'END'\n{odd}\nEND\n#SBATCH --partition=nope\n"
    wanted = lane.submission("exit 0", script=script)
    assert (await ran(lane, wanted)).state is JobState.COMPLETED
    assert (folder(wanted) / "copy").read_text() == odd + "\n"


async def test_a_directive_in_the_script_changes_nothing_that_was_asked_for(lane: RealLane) -> None:
    wanted = lane.submission("exit 0", script="#!/bin/sh\n#SBATCH --job-name=other --comment=other\nexit 0\n")
    ended = await ran(lane, wanted)
    assert (ended.name, ended.comment, ended.partition) == (wanted.name, "a comment", "gpu")


async def test_the_environment_of_a_job(lane: RealLane) -> None:
    wanted = lane.submission("exit 0", script="#!/bin/sh\nenv > environment\n", gres="gpu:2", cpus_per_task=2)
    ended = await ran(lane, wanted)
    assert ended.state is JobState.COMPLETED
    lines = (folder(wanted) / "environment").read_text().splitlines()
    there = {name: value for name, _, value in (line.partition("=") for line in lines)}
    assert not {"PENSTOCK_DATABASE_URL", "SBATCH_PARTITION", "TZ"} & set(there)
    assert there["SLURM_JOB_ID"] == str(ended.job_id)
    assert there["SLURM_JOB_NAME"] == wanted.name
    assert there["SLURM_CONF"] == str(lane.cluster.conf)
    assert there["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert there["PWD"] == wanted.work_dir
    assert {"HOME", "PATH"} <= set(there)


async def test_output_and_errors_go_to_one_file(lane: RealLane) -> None:
    wanted = lane.submission("exit 0", script="#!/bin/sh\necho out\necho err >&2\n")
    await ran(lane, wanted)
    assert Path(wanted.output).read_text().split() == ["out", "err"]


@pytest.mark.parametrize("lane", ["22.05-cli", "26.05-pyslurm"], indirect=True)
async def test_a_warning_before_the_time_limit_reaches_the_batch_shell_alone(lane: RealLane) -> None:
    # Slurm looks at limits every half minute: asked for 100 s ahead, the warning comes 20 to 50 s after the start,
    # when the script has long set its trap and the limit is still far.
    wanted = lane.submission("stay", time_limit_s=120, warn_signal_s=100)
    await lane.slurm.submit(wanted, may=anybody)

    async def noted() -> list[str]:
        return lane.signals(wanted)

    assert await until("the warning", noted, bool) == ["TERM"]
    (job,) = await lane.slurm.find(wanted.name)
    assert job.state is JobState.RUNNING
    assert job.ends_at is not None
    assert job.ends_at > datetime.now(UTC)


async def test_a_preempted_job_is_told_and_queued_again(lane: RealLane) -> None:
    low = lane.submission("obey", partition="preempt", nodes=2, exclusive=True)
    job_id = await lane.slurm.submit(low, may=anybody)
    await lane.ready(low)
    high = lane.submission("stay", partition="gpu", nodes=2, exclusive=True)
    await lane.slurm.submit(high, may=anybody)
    again = await job_when(lane, low.name, lambda job: job.restarts == 1, "was queued again")
    assert again.job_id == job_id

    async def noted() -> list[str]:
        return lane.signals(low)

    assert (await until("the signal", noted, bool))[:1] == ["TERM"]
    await lane.ready(high)
