"""Waits without their share of chance, so that the tables read as round numbers; what the share is has its own test."""

from __future__ import annotations

import pytest

from penstock.core import backoff


@pytest.fixture(autouse=True)
def whole_waits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "with_jitter" not in request.fixturenames:
        monkeypatch.setattr(backoff, "JITTER", 0.0)


@pytest.fixture
def with_jitter() -> None:
    """Asked for by a test that is about the share."""
