"""Which nodes a replica's job stays away from: ours and the deployment's own as one list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

import pytest

from penstock.core.spec import Placement
from penstock.slurm.options import arguments
from penstock.slurm.script import JobPlan, render
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
