"""Batch scripts, and which nodes a job stays away from: ours and the deployment's own as one list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

import pytest

from penstock.core.spec import Apptainer, Environment, Module, Placement, Pyxis, Resources
from penstock.slurm.options import arguments
from penstock.slurm.script import JobPlan, render, script
from tests.worlds import SPEC

JOB = JobPlan("here", "chat", "chat-1", 1, "tok1", PurePosixPath("/shared/tok1"), "python3")


@pytest.mark.parametrize(
    ("own", "ours", "told"),
    [
        (None, (), []),
        (None, ("gpu1", "gpu2"), ["--exclude=gpu1,gpu2"]),
        ("gpu[7-8]", (), ["--exclude=gpu[7-8]"]),
        ("gpu[7-8]", ("gpu1", "gpu7"), ["--exclude=gpu7,gpu8,gpu1"]),
        ("./broken-nodes", ("gpu1",), ["--exclude=./broken-nodes"]),
        ("gpu[7", ("gpu1",), ["--exclude=gpu[7"]),
    ],
)
def test_both_lists_count(own: str | None, ours: tuple[str, ...], told: list[str]) -> None:
    options = {"licenses": "x:1", **({"exclude": own} if own is not None else {})}
    submission = render(JOB, replace(SPEC, placement=Placement(options=options)), ours)
    given = arguments(submission)
    assert [word for word in given if word.startswith("--exclude")] == told
    assert "--licenses=x:1" in given


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (Environment(), "from the job's PATH"),
        (Environment(venv="/opt/vllm"), "from the virtual environment /opt/vllm"),
        (Environment(module=Module(("cuda/12", "vllm/0.32"))), "with the modules cuda/12 vllm/0.32"),
        (
            Environment(module=Module(("cuda/12",), (), "/opt/vllm")),
            "with the modules cuda/12 and the virtual environment /opt/vllm",
        ),
        (Environment(apptainer=Apptainer("/images/vllm.sif")), "in Apptainer, image /images/vllm.sif"),
        (
            Environment(pyxis=Pyxis("nvcr.io#nvidia/vllm:25.09")),
            "as a step in Pyxis, image nvcr.io#nvidia/vllm:25.09",
        ),
    ],
)
def test_the_script_is_the_same_in_every_environment_and_says_which(
    environment: Environment, words: str
) -> None:
    assert script(JOB, replace(SPEC, environment=environment)) == (
        "#!/bin/bash\n"
        "# Penstock: replica chat-1, revision 1, attempt tok1.\n"
        f"# The agent starts the engine vllm {words}.\n"
        "# The agent takes this shell's place: Slurm's signals are for it, and its exit code is the job's.\n"
        "exec python3 -m penstock_runtime --folder /shared/tok1\n"
    )


def test_the_script_of_a_replica_over_two_nodes() -> None:
    spread = replace(SPEC, resources=Resources(gpus=8, nodes=2))
    assert script(JOB, spread) == (
        "#!/bin/bash\n"
        "# Penstock: replica chat-1, revision 1, attempt tok1.\n"
        "# The agent starts the engine vllm from the job's PATH.\n"
        "# It is the head, on the first of 2 nodes; with srun it starts the others' agents.\n"
        "# The engine's arguments say nothing about parallelism; added: --tensor-parallel-size 8"
        " --pipeline-parallel-size 2\n"
        "# The agent takes this shell's place: Slurm's signals are for it, and its exit code is the job's.\n"
        "exec python3 -m penstock_runtime --folder /shared/tok1\n"
    )
    assert "--nodes=2" in arguments(render(JOB, spread))
