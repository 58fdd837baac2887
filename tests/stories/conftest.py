"""A stage for each story, and its golden transcript."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from penstock.controller import execute
from penstock.core import backoff
from penstock.store.database import Database
from tests.stories.stage import Stage

UPDATE = "PENSTOCK_UPDATE_STORIES"
"""Set to 1, the transcripts are rewritten; read what git shows of them before you commit."""


@pytest_asyncio.fixture
async def stage(
    database: Database, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    """A stage with a controller. After the story its transcript is compared with the golden file of its name."""
    # One effect at a time, so that Slurm numbers the jobs in the order of the decisions.
    monkeypatch.setattr(execute, "CONCURRENCY", 1)
    monkeypatch.setattr(execute, "LANES", 1)
    # Whole waits: a reader checks the doubling in his head.
    monkeypatch.setattr(backoff, "JITTER", 0.0)
    made = Stage(database, tmp_path)
    await made.start_controller()
    yield made
    await made.stop_controller()
    names = [job.submission.name for job in made.slurm.jobs()]
    assert len(set(names)) == len(names), "no attempt was submitted twice (rule 1)"
    path = Path(__file__).parent / f"{request.node.name.removeprefix('test_')}.txt"
    if os.environ.get(UPDATE) == "1":
        path.write_text(made.transcript)
    golden = path.read_text() if path.exists() else ""
    assert made.transcript == golden, f"the story is told otherwise now; if that is meant: {UPDATE}=1"
