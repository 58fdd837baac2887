"""Rule 11 of the gateway: deployments that come and go leave nothing in what explains, holds requests and configures
Envoys. Its caches, whose limits tests/unit/test_heap.py asks for, are emptied before each look."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from functools import _lru_cache_wrapper

from penstock.core.prospect import Prospect
from penstock.core.routing import Endpoint, Route, RoutingState
from penstock.gateway.hold import Hold
from penstock.gateway.resources import (
    CLUSTER,
    ENDPOINT,
    LISTENER,
    ROUTE,
    Resources,
    api_descriptors,
    resources,
)
from penstock.gateway.served import Served
from penstock.gateway.xds import DiscoveryService
from tests.heap import Heap, measure
from tests.unit.gateway.test_resources import SETTINGS
from tests.unit.gateway.test_xds import PretendedEnvoy

GENERATIONS, AT_ONCE = 12, 5
"""So many deployments at once, none of which is in the next generation."""
MAY_DIFFER = GENERATIONS * AT_ONCE // 2
"""Objects: less than one for each deployment that came and went between two looks."""


class Gateway:
    """What lives as long as the process, without its ports, and one Envoy."""

    def __init__(self) -> None:
        self.discovery = DiscoveryService()
        self.served = Served(self._explain)
        self.hold = Hold(self.served, self._answers)
        self._envoy = PretendedEnvoy(self.discovery)

    async def serve(self, routes: Sequence[Route]) -> None:
        """These and no others; a request is held for each of them for a moment."""
        state = RoutingState(tuple(routes))
        self.served.set_state(state)
        made = resources(state, SETTINGS, api_descriptors())
        self.discovery.set_resources(made)
        await self._take(made)
        for route in routes:
            prospect = await self.hold.consider(route, math.inf, 0)
            with self.hold.enter(route, prospect, 100, math.inf, 0) as held:
                held.answered()

    async def leave(self) -> None:
        self.hold.close()
        await self._envoy.leave()

    def heap(self) -> Heap:
        for one in gc.get_objects():
            if isinstance(one, _lru_cache_wrapper) and one.__module__.startswith("penstock.gateway."):
                one.cache_clear()
        return measure(self.discovery, self.served, self.hold)

    async def _take(self, made: Resources) -> None:
        """As Envoy does: all types, of which clusters and listeners need no names."""
        names = {type_url: tuple(made.by_type[type_url]) for type_url in (ENDPOINT, ROUTE)}
        for type_url in (CLUSTER, ENDPOINT, LISTENER, ROUTE):
            self._envoy.ask(type_url, *names.get(type_url, ()))
        while not await self._envoy.nothing():
            response = await self._envoy.next()
            self._envoy.take(response, *names.get(response.type_url, ()))

    async def _explain(self, deployment: str, adapter: str) -> Prospect:
        return Prospect(f"{deployment} waits in the queue")

    async def _answers(self, route: Route) -> bool:
        return True


def generation(number: int) -> list[Route]:
    return [_route(f"{number}x{one}", f"10.0.{number}.{one}") for one in range(AT_ONCE)]


def _route(name: str, host: str) -> Route:
    endpoint = Endpoint(f"attempt{name}", "0", host, 4000, 4001, 1, ("lora",))
    return Route(
        f"chat{name}",
        (f"chat{name}", f"llama{name}"),
        f"secret{name}",
        (endpoint,),
        weights=((1, 100),),
        adapters=("lora",),
    )


async def test_deployments_that_are_gone_are_forgotten() -> None:
    gateway = Gateway()
    try:
        for number in range(GENERATIONS):
            await gateway.serve(generation(number))
        before = gateway.heap()
        for number in range(GENERATIONS, 3 * GENERATIONS):
            await gateway.serve(generation(number))
        after = gateway.heap()
    finally:
        await gateway.leave()
    assert after.objects <= before.objects + MAY_DIFFER, (before, after)
    assert after.alive <= before.alive + MAY_DIFFER, (before, after)
