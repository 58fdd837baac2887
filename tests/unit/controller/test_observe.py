"""What is asked of Slurm besides its queue."""

from __future__ import annotations

from datetime import UTC, datetime

from penstock.controller.observe import Observer
from penstock.testing.slurm import FakeSlurm


def now() -> datetime:
    return datetime(2026, 3, 1, 12, tzinfo=UTC)


async def test_the_message_timeout_is_known_as_soon_as_slurm_answers() -> None:
    slurm = FakeSlurm(clock=now, message_timeout_s=60)
    observer = Observer(slurm, now)
    slurm.faults.down = "slurmctld is away"
    assert await observer.message_timeout_s() is None
    slurm.faults.down = ""
    assert await observer.message_timeout_s() == 60
