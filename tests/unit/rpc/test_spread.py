"""Sizes of an engine's parallelism that cannot be, each with the exact error that a person gets."""

from __future__ import annotations

import pytest

from penstock.core.parallel import added
from penstock.core.spec import Engine, Model, Resources, Spec
from penstock.rpc import spread


def spec(*args: str, gpus: int = 0, nodes: int = 1) -> Spec:
    return Spec(Model(path="/a"), Engine(args=args), resources=Resources(gpus=gpus, nodes=nodes))


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (spec(), ""),
        (spec(gpus=1), ""),
        (spec(gpus=4), "--tensor-parallel-size 4"),
        (spec(gpus=8, nodes=2), "--tensor-parallel-size 8 --pipeline-parallel-size 2"),
        (spec(gpus=1, nodes=2), "--pipeline-parallel-size 2"),
        (spec(nodes=2), "--pipeline-parallel-size 2"),
        (spec("--tensor-parallel-size=2", gpus=2), ""),
        (spec("-tp", "16", gpus=8, nodes=2), ""),
        (spec("--data_parallel_size", "2", gpus=2), ""),
        (spec("--dtype", "auto", gpus=2), "--tensor-parallel-size 2"),
    ],
)
def test_what_is_added(wanted: Spec, words: str) -> None:
    assert " ".join(added(wanted)) == words


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (spec("-tp", "2", gpus=2), []),
        (spec("-tp", "8", "-pp", "2", gpus=8, nodes=2), []),
        (spec("-tp", "2", "-pp", "3"), []),
        (
            spec("-tp", "4", gpus=2),
            [
                "spec.engine.args: --tensor-parallel-size 4 is 4 GPUs, but a replica has 2: 2 a node"
                " (spec.resources.gpus), on 1 (spec.resources.nodes)"
            ],
        ),
        (
            spec("-tp", "8", "-pp", "4", gpus=8, nodes=2),
            [
                "spec.engine.args: --tensor-parallel-size 8 times --pipeline-parallel-size 4 is 32 GPUs, but a replica"
                " has 16: 8 a node (spec.resources.gpus), on 2 (spec.resources.nodes)"
            ],
        ),
        (
            spec("-tp", "3", nodes=2),
            ["spec.engine.args: make 3 workers; 2 nodes (spec.resources.nodes) must have equally many"],
        ),
        (
            spec("-tp", "all", gpus=2),
            ["spec.engine.args: --tensor-parallel-size must be a number of at least 1"],
        ),
        (spec("-tp"), ["spec.engine.args: --tensor-parallel-size must be a number of at least 1"]),
        (
            spec("--distributed-executor-backend", "ray", nodes=2),
            [
                "spec.engine.args[0]: --distributed-executor-backend must be mp for a replica of 2 nodes, whose ranks"
                ' Penstock starts itself, not "ray"'
            ],
        ),
        (spec("--distributed-executor-backend=mp", nodes=2), []),
        (spec("--distributed-executor-backend", "ray"), []),
    ],
)
def test_what_cannot_be(wanted: Spec, says: list[str]) -> None:
    assert [str(violation) for violation in spread.check(wanted)] == says


def test_idle_gpus_are_told() -> None:
    assert spread.warnings(spec("-tp", "1", gpus=4)) == [
        "spec.engine.args: its parallelism uses 1 of the 4 GPUs that a replica has"
    ]
    assert spread.warnings(spec(gpus=4)) == []
