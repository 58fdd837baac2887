"""Which fail-overs `make chaos` judges, and how."""

from __future__ import annotations

import time

from tests.chaos import verdict
from tests.chaos.outages import RECOVERED_AFTER_S, Outages


def test_an_outage_excuses_what_overlaps_it_or_follows_at_once() -> None:
    outages, before = Outages(), time.monotonic()
    assert not outages.since(before)
    with outages.outage():
        with outages.outage():
            assert outages.since(before)
        assert outages.since(time.monotonic() + 3600), "one goes on"
    ended = time.monotonic()
    assert outages.since(ended + RECOVERED_AFTER_S - 1)
    assert not outages.since(ended + RECOVERED_AFTER_S)


def test_a_fail_over_that_takes_too_long_is_a_violation() -> None:
    assert verdict.slow([9.8, 15.0], 15.0) == []
    assert verdict.slow([9.8, 21.3], 15.0) == [
        "no new leader for 21.3 s after a kill, with a standby, PostgreSQL and Slurm there"
    ]
