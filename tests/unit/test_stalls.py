"""What the tests' measure of a machine that stood still counts."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from tests import stalls


def test_no_stall_counts_as_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(stalls, "time", SimpleNamespace(monotonic=lambda: now))
    with stalls.Stalls() as seen:
        assert seen.total_s == 0, "woken early, too"
        now += stalls.EVERY_S + stalls.FREELY_S - 0.01
        assert seen.total_s == 0, "late, as is usual"
    assert seen.total_s == 0


def test_a_clock_that_jumps_is_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    jumped_s = 0.0
    monkeypatch.setattr(stalls, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + jumped_s))
    with stalls.Stalls() as seen:
        jumped_s = 1000.0
        assert seen.total_s > 990, "before its thread has woken, too"
    assert 990 < seen.total_s < 1100, "once"
