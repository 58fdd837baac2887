"""The discovery service, spoken to by a pretended Envoy: what is sent, in which order, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import pytest
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from google.protobuf.any_pb2 import Any as AnyMessage

from penstock.gateway.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource, Resources
from penstock.gateway.xds import MAX_ENVOYS, DiscoveryService

SHORT = {CLUSTER: "CDS", ENDPOINT: "EDS", LISTENER: "LDS", ROUTE: "RDS"}


def state(**names: dict[str, str]) -> Resources:
    """By short type: name to contents."""
    return Resources(
        {
            type_url: {
                name: Resource(name, AnyMessage(type_url=name, value=content.encode()), content)
                for name, content in names.get(short, {}).items()
            }
            for type_url, short in SHORT.items()
        }
    )


class PretendedEnvoy:
    """One stream to the service."""

    def __init__(self, service: DiscoveryService) -> None:
        self._requests: asyncio.Queue[DiscoveryRequest] = asyncio.Queue()
        self._responses: asyncio.Queue[DiscoveryResponse] = asyncio.Queue()
        self._task = asyncio.create_task(self._run(service))
        self.aborted: grpc.StatusCode | None = None

    async def _run(self, service: DiscoveryService) -> None:
        context = cast(grpc.aio.ServicerContext[Any, Any], self)
        async for response in service.StreamAggregatedResources(self._read(), context):
            await self._responses.put(response)

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.aborted = code
        raise asyncio.CancelledError(details)

    async def _read(self) -> AsyncIterator[DiscoveryRequest]:
        while True:
            yield await self._requests.get()

    def ask(self, type_url: str, *names: str) -> None:
        self._requests.put_nowait(DiscoveryRequest(type_url=type_url, resource_names=names, node={"id": "e"}))

    def take(self, response: DiscoveryResponse, *names: str, complaint: str = "") -> None:
        request = DiscoveryRequest(
            type_url=response.type_url, resource_names=names, response_nonce=response.nonce
        )
        if complaint:
            request.error_detail.message = complaint
        self._requests.put_nowait(request)

    async def next(self) -> DiscoveryResponse:
        return await asyncio.wait_for(self._responses.get(), 60)

    async def nothing(self) -> bool:
        """Nothing more is sent once everything that was asked has been handled."""
        for _ in range(20):
            await asyncio.sleep(0)
        return self._responses.empty()

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


def told(response: DiscoveryResponse) -> tuple[str, dict[str, str]]:
    return SHORT[response.type_url], {body.type_url: body.value.decode() for body in response.resources}


FULL = {"CDS": {"c": "1"}, "EDS": {"c": "1"}, "LDS": {"main": "1"}, "RDS": {"main": "1"}}


async def connect(service: DiscoveryService) -> PretendedEnvoy:
    """An Envoy that has asked for, been sent and taken everything of FULL."""
    envoy = PretendedEnvoy(service)
    for type_url, names in ((CLUSTER, ()), (ENDPOINT, ("c",)), (LISTENER, ()), (ROUTE, ("main",))):
        envoy.ask(type_url, *names)
        envoy.take(await envoy.next(), *names)
    assert await envoy.nothing()
    return envoy


async def test_nothing_is_said_before_the_first_state() -> None:
    service = DiscoveryService()
    envoy = PretendedEnvoy(service)
    envoy.ask(CLUSTER)
    assert await envoy.nothing()
    assert not await service.applied(0.01)

    service.set_resources(state(**FULL))
    assert told(await envoy.next()) == ("CDS", {"c": "1"})
    await envoy.leave()


async def test_only_what_changed_is_sent() -> None:
    service = DiscoveryService()
    service.set_resources(state(**{**FULL, "EDS": {"c": "1", "d": "1"}}))
    envoy = await connect(service)

    service.set_resources(state(**{**FULL, "EDS": {"c": "2", "d": "2"}}))
    response = await envoy.next()
    assert told(response) == ("EDS", {"c": "2"}), "d was not asked for"
    assert not await service.applied(0.01)
    envoy.take(response, "c")
    assert await service.applied(5)

    service.set_resources(state(**{**FULL, "EDS": {"c": "2", "d": "3"}}))
    assert await service.applied(5)
    assert await envoy.nothing()

    # The watch grows: what is new is sent, the rest is not sent again.
    envoy.take(response, "c", "d")
    assert told(await envoy.next()) == ("EDS", {"d": "3"})
    await envoy.leave()


async def test_nothing_dangles_while_clusters_come_and_go() -> None:
    service = DiscoveryService()
    service.set_resources(state(**FULL))
    envoy = await connect(service)

    service.set_resources(state(CDS={"d": "1"}, EDS={"d": "1"}, LDS={"main": "1"}, RDS={"main": "2"}))
    assert told(await envoy.next()) == ("CDS", {"d": "1", "c": "1"})
    assert told(await envoy.next()) == ("RDS", {"main": "2"})
    assert told(await envoy.next()) == ("CDS", {"d": "1"})
    await envoy.leave()


async def test_a_changed_cluster_is_followed_by_its_endpoints_and_a_changed_listener_by_its_routes() -> None:
    service = DiscoveryService()
    service.set_resources(state(**FULL))
    envoy = await connect(service)

    service.set_resources(state(**{**FULL, "CDS": {"c": "2"}, "LDS": {"main": "2"}}))
    order = [told(await envoy.next())[0] for _ in range(4)]
    assert order == ["CDS", "EDS", "LDS", "RDS"]
    await envoy.leave()


async def test_a_refusal_is_logged_counted_and_not_sent_again(caplog: pytest.LogCaptureFixture) -> None:
    service = DiscoveryService()
    service.set_resources(state(**FULL))
    envoy = await connect(service)

    service.set_resources(state(**{**FULL, "LDS": {"main": "bad"}}))
    response = await envoy.next()
    envoy.take(await envoy.next(), "main")  # The routes, which follow a listener.
    envoy.take(response, complaint="no such filter")
    assert await envoy.nothing()
    assert service.refusals == 1
    assert "Envoy e refused the Listener sent to it: no such filter" in caplog.text
    assert not await service.applied(0.01)
    assert service.complaint == "no such filter"

    service.set_resources(state(**{**FULL, "LDS": {"main": "good"}}))
    envoy.take(await envoy.next())
    envoy.take(await envoy.next(), "main")
    assert await service.applied(5)
    assert service.complaint == ""
    assert await service.first_listeners() == "", "those were taken"
    await envoy.leave()


async def test_all_envoys_are_waited_for_and_those_that_left_are_not() -> None:
    service = DiscoveryService()
    service.set_resources(state(**FULL))
    first, second = await connect(service), await connect(service)
    assert service.connected == 2
    assert await service.applied(5)

    service.set_resources(state(**{**FULL, "EDS": {"c": "2"}}))
    first.take(await first.next(), "c")
    assert not await service.applied(0.01)
    await second.leave()
    assert await service.applied(5)
    await first.leave()
    assert not await service.applied(0.01), "with no Envoy there is nobody who has applied it"


async def test_states_in_between_are_skipped() -> None:
    service = DiscoveryService()
    service.set_resources(state(**FULL))
    envoy = await connect(service)
    for number in range(100):
        service.set_resources(state(**{**FULL, "EDS": {"c": f"x{number}"}}))
    assert told(await envoy.next()) == ("EDS", {"c": "x99"})
    assert await envoy.nothing()
    await envoy.leave()


async def test_there_is_a_limit_to_the_envoys() -> None:
    service = DiscoveryService()
    service.set_resources(state(**FULL))
    envoys = [await connect(service) for _ in range(MAX_ENVOYS)]
    one_more = PretendedEnvoy(service)
    assert await one_more.nothing()
    assert one_more.aborted == grpc.StatusCode.RESOURCE_EXHAUSTED
    for envoy in envoys:
        await envoy.leave()
    assert service.connected == 0
