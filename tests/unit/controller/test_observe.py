"""What is asked of Slurm besides its queue."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from penstock.controller.observe import LOOK_AROUND_AGAIN_AFTER, UNWATCHED, Observer
from penstock.core.model import Listing
from penstock.testing.slurm import FakeSlurm


def now() -> datetime:
    return datetime(2026, 3, 1, 12, tzinfo=UTC)


async def test_the_message_timeout_is_what_slurm_said_last() -> None:
    slurm = FakeSlurm(clock=now)
    observer = Observer(slurm, now)
    said: list[int | None] = []
    for down, configured in (("is away", 60), ("", 60), ("is away", 60), ("", 100)):
        slurm.faults.down, slurm.message_timeout_s = down, configured  # As after `scontrol reconfigure`.
        await observer.look_around()
        said.append(observer.message_timeout_s)
    assert said == [None, 60, 60, 100]


async def test_a_tick_does_not_ask_again_and_again_for_nodes_that_are_not_said() -> None:
    slurm, moment = FakeSlurm(clock=now), [now()]
    observer = Observer(slurm, lambda: moment[0])
    slurm.faults.down = "slurmctld is away"
    for _ in range(5):
        assert await observer.cluster_if_it_says() is None
    assert slurm.calls["cluster"] == 1
    slurm.faults.down = ""
    moment[0] += LOOK_AROUND_AGAIN_AFTER
    assert await observer.cluster_if_it_says() is not None


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
