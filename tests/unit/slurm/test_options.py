"""What sbatch is told."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.core.jobs import Submission
from penstock.slurm import options

PLAIN = Submission(name="n-1", comment="c", script="#!/bin/sh\n", work_dir="/w", output="/w/out")


def with_extra(**extra: str) -> Submission:
    return Submission(
        name="n-1",
        comment="c",
        script="#!/bin/sh\n",
        work_dir="/w",
        output="/w/out",
        extra_options={name.replace("_", "-"): value for name, value in extra.items()},
    )


def test_a_plain_submission() -> None:
    assert options.arguments(PLAIN) == [
        "--dependency=singleton",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--job-name=n-1",
        "--comment=c",
        "--chdir=/w",
        "--output=/w/out",
    ]
    assert options.problems(PLAIN) == []


def test_a_full_submission() -> None:
    full = Submission(
        name="n-1",
        comment="c",
        script="#!/bin/sh\n",
        work_dir="/w",
        output="/w/out",
        partition="gpu",
        account="a",
        qos="q",
        constraint="fast",
        reservation="r",
        exclude_nodes=("n1", "n2"),
        require_nodes=("n3", "n4"),
        time_limit_s=61,
        nodes=2,
        tasks_per_node=3,
        cpus_per_task=4,
        memory_per_node_mib=500,
        gres="gpu:a100:2",
        exclusive=True,
        warn_signal_s=90,
        singleton=False,
        extra_options={"nice": "5", "no-requeue": ""},
    )
    assert (
        options.arguments(full)
        == (
            "--nice=5 --no-requeue --partition=gpu --account=a --qos=q --constraint=fast --reservation=r"
            " --exclude=n1,n2 --nodelist=n3,n4"
            " --time=2 --cpus-per-task=4 --mem=500M --gres=gpu:a100:2 --signal=B:TERM@90 --exclusive"
            " --nodes=2 --ntasks-per-node=3 --job-name=n-1 --comment=c --chdir=/w --output=/w/out"
        ).split()
    )


@pytest.mark.parametrize(("seconds", "minutes"), [(1, 1), (60, 1), (61, 2), (3600, 60)])
def test_minutes_are_rounded_up(seconds: int, minutes: int) -> None:
    assert options.minutes(seconds) == minutes


@pytest.mark.parametrize("name", sorted(options.RESERVED_OPTIONS))
def test_a_reserved_option_is_refused_with_its_reason(name: str) -> None:
    (problem,) = options.problems(with_extra(**{name: "x"}))
    assert problem == f"extra option {name!r} cannot be set: {options.RESERVED_OPTIONS[name]}"


def test_a_prefix_of_a_reserved_option_is_refused_too() -> None:
    assert options.problems(with_extra(job_n="x")) != []


def test_no_known_option_is_caught_as_a_prefix_of_a_reserved_one() -> None:
    caught = [name for name in sorted(options.KNOWN_OPTIONS) if options.problems(with_extra(**{name: "x"}))]
    assert caught == []
    assert not options.KNOWN_OPTIONS & set(options.RESERVED_OPTIONS)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"name": ""}, "the job's name is empty"),
        ({"name": "x" * 257}, "the job's name has 257 bytes; Slurm takes 256"),
        ({"comment": "é" * 513}, "the job's comment has 1026 bytes; Slurm takes 1024"),
        ({"script": "echo"}, "the script does not begin with #! and an interpreter"),
        ({"script": "#!/bin/sh\n\0"}, "a NUL byte stands in the script or in an option"),
        ({"partition": "a\0b"}, "a NUL byte stands in the script or in an option"),
    ],
)
def test_what_is_wrong_is_said(changed: dict[str, str], sentence: str) -> None:
    plain: dict[str, Any] = {
        "name": "n-1",
        "comment": "c",
        "script": "#!/bin/sh\n",
        "work_dir": "/w",
        "output": "/w/out",
    }
    assert options.problems(Submission(**{**plain, **changed})) == [sentence]
