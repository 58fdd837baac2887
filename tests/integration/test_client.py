"""The Python client through the real front door."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest

from penstock import AsyncClient, Client
from penstock.client import NotFound, Overloaded, PenstockError, Retry, Unavailable
from penstock.core.spec import Admission
from tests.integration.front_door_kit import House, end, route

ONCE = Retry(attempts=1)


async def test_the_client_and_the_front_door() -> None:
    async with House() as house:
        process, port = await house.replica_process("a")
        admission = Admission(max_in_flight=1, max_held=0)
        await house.serve(replace(route("m", port), admission=admission), route("empty"))

        async with AsyncClient(house.settings.listen, timeout=20) as client:
            assert [model.name for model in await client.models()] == ["from-control"]
            assert [piece.text async for piece in client.stream_generate("m", "5:0.01")] == list("01234")

            with pytest.raises(NotFound) as unknown:
                await client.chat("nothing", "hello")
            assert unknown.value.reason == "MODEL_NOT_FOUND"

            hasty = AsyncClient(house.settings.listen, retry=ONCE)
            with pytest.raises(Unavailable) as empty:
                await hasty.chat("empty", "hello")
            assert empty.value.reason == "NO_READY_REPLICA"
            assert empty.value.retry_after_s is not None

            # The only place is taken: who is patient gets it when it is free.
            stream = client.stream_generate("m", "1000:0.1")
            assert (await anext(stream)).text == "0"
            with pytest.raises(Overloaded) as full:
                await hasty.generate("m", "hello")
            assert (full.value.limit, full.value.retry_after_s) == ("max_in_flight", 1)
            patient = asyncio.create_task(asyncio.to_thread(_generate, house.settings.listen))
            await stream.aclose()
            assert await patient == "a"

            # Killed in the middle, with its agent: what came is told, and nothing comes again.
            stream = client.stream_generate("m", "1000:0.05")
            seen = (await anext(stream)).text + (await anext(stream)).text
            await end(process)
            with pytest.raises(PenstockError) as broken:
                async for piece in stream:
                    seen += piece.text
            assert (broken.value.received, broken.value.attempts) == (seen, 1)
            assert broken.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
            await hasty.close()


def _generate(address: str) -> str:
    with Client(address, timeout=20, retry=Retry(attempts=10)) as client:
        return client.generate("m", "hello").response.id
