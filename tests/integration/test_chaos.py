"""The short form of `make chaos`: eight controllers killed, and one fault of every other kind."""

from __future__ import annotations

import pytest

from tests.chaos.controllers import KILL
from tests.chaos.run import longest_s, run

pytestmark = pytest.mark.xdist_group("end-to-end")


KILLS = 8
FAIL_OVER_WITHIN_S = 40.0
"""Beside other tests, each start and each poll may take seconds; `make chaos` judges by what is promised."""


# What keeps a slow machine busy for long: the faults, then what is wished last, then convergence.
@pytest.mark.timeout(1000)
def test_whatever_dies_no_job_is_doubled_or_lost_and_no_stream_is_cut() -> None:
    report = run(
        kills=KILLS, seed=8, at_most_s=longest_s(KILLS), each_once=True, fail_over_within_s=FAIL_OVER_WITHIN_S
    )
    print(report.table())
    assert not report.violated, report.problem()
    assert report.faults.get(KILL, 0) >= KILLS, report.problem()
    assert report.streams["streams"] > 0, report.problem()
    assert report.jobs > 0, report.problem()
