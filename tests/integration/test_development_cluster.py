"""The development cluster: quick to start, alone on the machine or not, and gone without a trace."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.cluster import files, saved
from deploy.cluster.cluster import Cluster
from deploy.cluster.daemons import DAEMON_MARK
from deploy.cluster.processes import environ_of, processes, start_time, wait_for
from deploy.cluster.settings import ClusterError, Settings


@pytest.fixture(scope="module", autouse=True)
def _slurm_is_here(slurm_cluster: Cluster) -> None:
    """These tests make clusters of their own; where the shared one cannot be made, neither can they."""


@pytest.fixture
def root() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="penstock-test-"))
    yield folder
    Cluster(folder).down()
    shutil.rmtree(folder)


def left_over(root: Path) -> set[int]:
    """Living processes that name this root or its cluster in their environment."""
    name = Cluster(root).name
    return {
        pid
        for pid in processes()
        if (environ := environ_of(pid))
        and (environ.get(DAEMON_MARK) == str(root) or environ.get("SLURM_CLUSTER_NAME") == name)
        and start_time(pid) is not None
    }


def program(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.cluster", *words], capture_output=True, text=True, timeout=120
    )


def test_up_twice_down_twice(root: Path) -> None:
    first = program("up", "--root", str(root))
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"export SLURM_CONF={root}/slurm.conf\n"
    started = saved.load(root).daemons
    second = program("up", "--root", str(root))
    assert second.stdout == first.stdout
    assert saved.load(root).daemons == started, "what runs is left alone"
    assert program("status", "--root", str(root)).stdout.count("running") == 4
    assert program("down", "--root", str(root)).returncode == 0
    assert program("down", "--root", str(root)).returncode == 0
    assert program("status", "--root", str(root)).returncode == 3
    assert left_over(root) == set()


def test_other_settings_need_down_first(root: Path) -> None:
    Cluster(root).up()
    with pytest.raises(ClusterError, match="runs with other settings \\(nodes=2, asked 3\\): run down first"):
        Cluster(root, Settings(nodes=3)).up()


def test_down_ends_jobs_that_will_not_go_and_their_children(root: Path) -> None:
    cluster = Cluster(root)
    cluster.up()
    script = "#!/bin/sh\ntrap '' TERM\nsetsid sleep 1000 &\nsleep 1000\n"
    cluster.run("sbatch", f"--chdir={root}", "--output=/dev/null", stdin=script)
    assert wait_for(lambda: len(cluster.daemons.job_processes()) >= 3, 30)
    cluster.down()
    assert left_over(root) == set()


def test_up_brings_back_what_died(root: Path) -> None:
    cluster = Cluster(root)
    cluster.up()
    cluster.stop_controller(kill=True)
    cluster.stop_node("node2", kill=True)
    assert sorted(name for name, alive in cluster.status().items() if not alive) == ["node2", "slurmctld"]
    Cluster(root).up()
    assert all(cluster.status().values())


def test_job_ids_go_on_after_down_and_up(root: Path) -> None:
    cluster = Cluster(root)

    def submit() -> int:
        cluster.up()
        answer = cluster.run(
            "sbatch", "--parsable", f"--chdir={root}", "--output=/dev/null", stdin="#!/bin/sh\n"
        )
        cluster.down()
        return int(answer)

    assert submit() < submit()


def test_a_process_that_has_taken_over_a_pid_is_not_touched(root: Path) -> None:
    cluster = Cluster(root)
    cluster.up()
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        state = json.loads((root / "cluster.json").read_text())
        real = state["daemons"]["munged"]["pid"]
        state["daemons"]["munged"]["pid"] = bystander.pid
        (root / "cluster.json").write_text(json.dumps(state))
        assert not cluster.status()["munged"]
        cluster.down()
        assert bystander.poll() is None
        assert start_time(real) is None, "the stray was found by its environment"
    finally:
        bystander.kill()
        bystander.wait()


def test_two_clusters_share_nothing(root: Path, slurm_cluster: Cluster) -> None:
    other = Cluster(root, Settings(nodes=3, gpus=1, gpu_type="a100", preempt=False))
    other.up()
    assert other.name != slurm_cluster.name
    assert other.run("sinfo", "-h", "-o", "%D %G", "-p", "cpu").split() == ["3", "gpu:a100:1"]
    assert "preempt" not in other.run("sinfo", "-h", "-o", "%R")
    other.down()
    assert all(slurm_cluster.status().values())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (Settings(nodes=0), "--nodes is 0; 1 to 64 are possible"),
        (Settings(gpus=-1), "--gpus must be 0 or more"),
        (Settings(slurm="/nowhere"), "missing munged, slurmctld"),
        (
            Settings(slurm="/nowhere", accounting=True),
            "accounting takes the machine's own MariaDB: use --slurm system",
        ),
    ],
)
def test_bad_settings(root: Path, settings: Settings, sentence: str) -> None:
    with pytest.raises(ClusterError, match=sentence):
        Cluster(root, settings).up()
    assert left_over(root) == set()


def test_a_root_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="longer than 70 characters"):
        Cluster(tmp_path / ("x" * 80)).up()


def test_a_broken_configuration_is_told_with_slurms_own_words(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = files.slurm_conf
    monkeypatch.setattr(
        files, "slurm_conf", lambda *given, **named: original(*given, **named) + "SelectType=select/nothing\n"
    )
    with pytest.raises(ClusterError, match="slurmctld ended at once: .*select/nothing"):
        Cluster(root).up()
    assert left_over(root) == set()


def test_a_frozen_controller_can_be_ended(root: Path) -> None:
    cluster = Cluster(root, Settings(message_timeout_s=2))
    cluster.up()
    cluster.freeze_controller()
    began = time.monotonic()
    cluster.down()
    assert time.monotonic() - began < 30
    assert left_over(root) == set()


def test_the_caller_being_interrupted_leaves_the_cluster_alone(root: Path) -> None:
    cluster = Cluster(root)
    cluster.up()
    pid = json.loads((root / "cluster.json").read_text())["daemons"]["slurmctld"]["pid"]
    assert os.getsid(pid) == pid
    assert os.getpgid(pid) != os.getpgid(0)
    with pytest.raises(ClusterError, match="node2 of the cluster in .* does not run"):
        cluster.stop_node("node2")
        cluster.daemons.signal("node2", signal.SIGSTOP)
