"""What is asked of Slurm besides its queue."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from penstock.controller.observe import UNWATCHED, Observer
from penstock.core.model import Listing
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


async def test_since_when_slurm_answers() -> None:
    """Anew after it was silent, and after nobody asked for so long that it may have been."""
    times = [now()]
    slurm = FakeSlurm(clock=lambda: times[-1])
    observer = Observer(slurm, lambda: times[-1])

    async def answers_since(after: timedelta) -> datetime | None:
        times.append(times[-1] + after)
        seen = await observer.look()
        return seen.answers_since if isinstance(seen, Listing) else None

    five = timedelta(seconds=5)
    first = await answers_since(five)
    assert first == now() + five
    assert await answers_since(five) == first
    assert await answers_since(UNWATCHED) == first
    slurm.faults.down = "slurmctld hangs"
    assert await answers_since(five) is None
    slurm.faults.down = ""
    again = await answers_since(five)
    assert again == times[-1]
    assert await answers_since(five) == again
    assert await answers_since(UNWATCHED + five) == times[-1]
