"""The short form of `make chaos`: eight controllers killed, and one fault of every other kind."""

from __future__ import annotations

import pytest

from tests.chaos.run import run

pytestmark = pytest.mark.xdist_group("end-to-end")


@pytest.mark.timeout(600)
def test_whatever_dies_no_job_is_doubled_or_lost_and_no_stream_is_cut() -> None:
    report = run(kills=8, seed=8, at_most_s=180, each_once=True)
    print(report.table())
    assert not report.violated, report.table()
    assert report.faults["controller killed with -9"] >= 8
    assert report.streams["streams"] > 0
    assert report.jobs > 0
