"""Frames that no client of good will sends, at the gRPC port of a whole Penstock on real servers.

A failure names its seed and number, and gives the bytes. One case again: PENSTOCK_FUZZ_SEED=... PENSTOCK_FUZZ_CASE=...
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest

from deploy.cluster.cluster import Cluster
from tests.fuzz.frames import case, stalling
from tests.fuzz.listen import play
from tests.fuzz.site import judged, seconds, seed, site

AT_ONCE = 8
"""Connections; each is one case."""
WARM_UP_S = 3.0
"""Before what is held is looked at: each worker's buffers and pools are there from the first cases on."""
MAX_FAILURES = 10
STALLED = 50
"""Connections besides, on which nothing moves from the first to the last case."""

pytestmark = pytest.mark.timeout(seconds() + 300)


async def test_frames(slurm_cluster: Cluster) -> None:
    chosen, only = seed(), os.environ.get("PENSTOCK_FUZZ_CASE")
    with site(slurm_cluster) as whole:
        if only:
            problem = await play(whole.address, case(chosen, int(only)))
            assert not problem, problem
            return
        counts: Counter[str] = Counter()
        failures: list[str] = []
        numbers = iter(range(2**62))
        await _play(whole.address, chosen, numbers, WARM_UP_S, counts, failures)
        with judged(whole) as judgement:
            async with _stalled(whole.address, chosen):
                await _play(whole.address, chosen, numbers, seconds(), counts, failures)
    shown = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
    print(f"{sum(counts.values())} cases, seed {chosen} ({shown}); {judgement}")
    assert not failures, "\n\n".join(failures)
    assert len(counts) > 20


@contextlib.asynccontextmanager
async def _stalled(address: str, chosen: int) -> AsyncIterator[None]:
    """Clients that stopped in the middle of what they send, and stay."""
    host, _, port = address.rpartition(":")
    async with contextlib.AsyncExitStack() as stack:
        for number in range(STALLED):
            _, writer = await asyncio.open_connection(host, int(port))
            stack.callback(writer.transport.abort)
            writer.write(stalling(chosen, number).sent)
        yield


async def _play(
    address: str,
    chosen: int,
    numbers: Iterator[int],
    seconds_to_play: float,
    counts: Counter[str],
    failures: list[str],
) -> None:
    """Cases side by side until the time is up."""
    end = time.monotonic() + seconds_to_play

    async def work() -> None:
        while time.monotonic() < end and len(failures) < MAX_FAILURES:
            number = next(numbers)
            one = case(chosen, number)
            counts[one.kind] += 1
            try:
                problem = await play(address, one)
            except OSError as error:
                problem = f"no connection: {error}"
            if problem:
                failures.append(
                    f"PENSTOCK_FUZZ_SEED={chosen} PENSTOCK_FUZZ_CASE={number} ({one.kind}): {problem}\n"
                    f"sent {len(one.sent)} bytes: {one.sent[:2000].hex()}"
                )
                # At once, for what is judged afterwards may fail first.
                print(failures[-1])

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
