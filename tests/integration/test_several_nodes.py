"""Replicas over two nodes on real Slurm: one job, an agent a node, one engine of two processes (the stand-in's ranks).

What only real Slurm can show: the step with the other node's agent, whose death is whose, and that nothing stays.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.patience import JOB_PATIENCE_S
from tests.penstocks import COMMAND, Penstock, standin, wait_until

NAME = "wide"


@pytest.fixture(scope="module")
def wide(penstock: Penstock) -> Iterator[str]:
    """A deployment of one replica over both nodes of the cluster, at 20 tokens a second."""
    manifest = standin(NAME, gpus=2, args=["--tokens-per-second", "20", "--answer-tokens", "100"]).replace(
        "resources: {", "resources: {nodes: 2, "
    )
    shown = penstock.cli("apply", "-f", "-", "--dry-run", stdin=manifest).stdout
    assert "It is the head, on the first of 2 nodes" in shown
    assert "--tensor-parallel-size 2 --pipeline-parallel-size 2" in shown
    penstock.apply(manifest)
    penstock.wait_ready(NAME, 1)
    yield NAME
    penstock.cli("delete", NAME, "--wait")


def attempt(penstock: Penstock) -> dict[str, Any]:
    """The replica's current attempt."""
    found: dict[str, Any] = penstock.get("replicas", f"{NAME}-1")["attempt"]
    return found


def of_attempt(token: str, *words: str) -> list[psutil.Process]:
    """The live processes of an attempt that have all of these words on their command line. An engine is known by its
    agent."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if any(token in word for word in line) and "srun" not in line[0] and set(words) <= set(line):
            found.append(process)
    return found


def rank_agent(token: str) -> psutil.Process:
    """The agent of the second node."""
    (process,) = of_attempt(token, "penstock_runtime", "--head")
    return process


def engine_of(agent: psutil.Process) -> psutil.Process:
    """The engine that an agent has started."""
    (engine,) = [child for child in agent.children() if "penstock_runtime.standin" in child.cmdline()]
    return engine


def head_agent(token: str) -> psutil.Process:
    """The agent that serves."""
    (process,) = [each for each in of_attempt(token, "penstock_runtime") if "--head" not in each.cmdline()]
    return process


def numbers(text: str) -> list[int]:
    """The stand-in numbers its words."""
    return [int(number) for number in re.findall(r":(\d+)", text)]


def ask(penstock: Penstock, tokens: int = 5) -> list[int]:
    done = penstock.cli("chat", NAME, "one two", "--max-tokens", str(tokens))
    return numbers(done.stdout)


def test_one_job_serves_from_two_nodes(penstock: Penstock, wide: str) -> None:
    token = attempt(penstock)["token"]
    listed = penstock.cluster.run("squeue", "-h", "-o", "%D %N %T").split()
    assert listed == ["2", "node[1-2]", "RUNNING"]
    assert ask(penstock) == [0, 1, 2, 3, 4]
    head, rank = engine_of(head_agent(token)), engine_of(rank_agent(token))
    said = head.cmdline()
    assert said[said.index("--nnodes") :][:4] == ["--nnodes", "2", "--node-rank", "0"]
    said = rank.cmdline()
    assert said[said.index("--nnodes") :][:4] == ["--nnodes", "2", "--node-rank", "1"]
    assert "--headless" in said
    assert "--port" not in said
    assert {head.environ()["CUDA_VISIBLE_DEVICES"], rank.environ()["CUDA_VISIBLE_DEVICES"]} == {"0,1"}
    assert {each.environ()["SLURMD_NODENAME"] for each in (head, rank)} == {"node1", "node2"}
    folder = penstock.folder / "state" / "attempts"
    (secret,) = folder.glob(f"*/{token}/secret")
    everything = [word for each in psutil.process_iter(["cmdline"]) for word in each.info["cmdline"] or []]
    assert not [word for word in everything if secret.read_text().strip() in word]


@pytest.mark.parametrize("victim", ["the rank's engine", "the rank's agent", "the head's engine", "the step"])
def test_any_death_replaces_the_whole_replica(penstock: Penstock, wide: str, victim: str) -> None:
    penstock.wait_ready(wide, 1)
    old = attempt(penstock)
    token = old["token"]
    head, rank = head_agent(token), rank_agent(token)
    everyone = [head, rank, engine_of(head), engine_of(rank)]
    killed = {
        "the rank's engine": engine_of(rank),
        "the rank's agent": rank,
        "the head's engine": engine_of(head),
        "the step": next(child for child in head.children() if child.name() == "srun"),
    }[victim]
    os.kill(killed.pid, signal.SIGKILL)
    wait_until(
        lambda: attempt(penstock)["token"] != token,
        JOB_PATIENCE_S,
        f"{victim} is dead and a new attempt is there",
    )
    penstock.wait_ready(wide, 1)
    assert ask(penstock) == [0, 1, 2, 3, 4]
    _, alive = psutil.wait_procs(everyone, timeout=JOB_PATIENCE_S)
    assert not alive
    events = penstock.cli("events", wide).stdout
    said = {
        "the rank's engine": "rank 1 of the engine (on node2): the engine was killed by SIGKILL",
        "the rank's agent": "rank 1 of the engine (on node2) is gone without a word",
        "the head's engine": "the engine was killed by SIGKILL",
        "the step": "rank 1 of the engine (on node2) is gone without a word",
    }[victim]
    assert said in events, events


def test_a_drain_cuts_no_stream_and_ends_both_nodes(penstock: Penstock, wide: str) -> None:
    penstock.wait_ready(wide, 1)
    token = attempt(penstock)["token"]
    everyone = [head_agent(token), rank_agent(token)]
    everyone += [engine_of(agent) for agent in everyone]
    stream = subprocess.Popen(
        [COMMAND, "chat", wide, "one two", "--max-tokens", "100"],
        env={**os.environ, "PENSTOCK_SERVER": penstock.server},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert stream.stdout is not None
    begun = stream.stdout.read(1)
    penstock.cli("scale", wide, "--replicas", "0")
    said = begun + stream.stdout.read()
    assert stream.wait(60) == 0
    assert numbers(said) == list(range(100))
    _, alive = psutil.wait_procs(everyone, timeout=JOB_PATIENCE_S)
    assert not alive
    wait_until(lambda: not penstock.cluster.run("squeue", "-h"), JOB_PATIENCE_S, "the job has ended")
    penstock.cli("scale", wide, "--replicas", "1")
    penstock.wait_ready(wide, 1)


def test_more_nodes_than_the_partition_has_are_refused(penstock: Penstock) -> None:
    manifest = standin("wider").replace("resources: {", "resources: {nodes: 3, ")
    done = penstock.cli("apply", "-f", "-", stdin=manifest, check=False)
    assert done.returncode != 0
    assert "spec.resources.nodes: a job in partition gpu may have at most 2, not 3" in done.stderr
