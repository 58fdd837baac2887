"""A ground to play on for each test: a fresh database whose clock is the simulation's."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.simulation.seeds import Ground, ground


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The story tells it; the log of thousands of faults would only drown a failure."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest_asyncio.fixture
async def field(database_url: str) -> AsyncIterator[Ground]:
    async with ground(database_url) as made:
        yield made
