"""What a client that was told of its waiting hears of an engine's error."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import aiohttp
import pytest

from penstock.gateway import relay_rest


class Cut:
    """The answer of an engine that dies over its words."""

    status = 500

    class content:
        @staticmethod
        async def readexactly(size: int) -> bytes:
            raise aiohttp.ClientPayloadError


class Whole:
    """That of one that says what it has to say."""

    status = 400

    class content:
        @staticmethod
        async def readexactly(size: int) -> bytes:
            raise asyncio.IncompleteReadError(b'{"error": {"message": "too long"}}', size)


class Events:
    """A stream that has begun."""

    prepared = True

    def __init__(self) -> None:
        self.written = b""

    async def write(self, data: bytes) -> None:
        self.written += data


@pytest.mark.parametrize(
    ("answer", "message"), [(Cut(), "the engine answered with status 500"), (Whole(), "too long")]
)
async def test_an_error_is_an_event_of_the_stream(answer: Cut | Whole, message: str) -> None:
    events = Events()
    await relay_rest._pass(cast(Any, answer), cast(Any, None), cast(Any, events))
    said = json.loads(events.written.removeprefix(b"data: "))
    assert said["error"]["message"] == message
