"""The front door's Python, put together: given what is served now, it keeps every Envoy and the explanations in step.

It knows no table and starts no Envoy. It has three servers: one for Envoy's configuration, and one each for the gRPC
and the REST requests that no replica can take. The first is apart because it gives away the deployments' secrets.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc

from penstock.core.routing import Endpoint, RoutingState
from penstock.gateway.endpoints import usable
from penstock.gateway.explain import ExplainHandler
from penstock.gateway.hold import Hold
from penstock.gateway.relay import GrpcRelay
from penstock.gateway.resources import api_descriptors, resources
from penstock.gateway.rest import RestServer
from penstock.gateway.served import Explain, Served
from penstock.gateway.settings import MIB, FrontDoorSettings, header_options
from penstock.gateway.xds import DiscoveryService

log = logging.getLogger(__name__)

LOOKUP_TIMEOUT_S = 1.0
"""For a replica's host name; longer would hold up what is known about the others."""
LOOKUP_AGAIN_S = 2.0
MAX_CALLS = 4096
"""Calls here at once: those that are held, relayed, or told why not. Beyond it: RESOURCE_EXHAUSTED."""

# Otherwise a second gateway could bind the same port and take half of the calls.
_OPTIONS = (("grpc.so_reuseport", 0),)


class FrontDoor:
    """Everything of the gateway that runs in Python. Use: `start`, `set_state` at every change, `stop`."""

    def __init__(self, settings: FrontDoorSettings, explain: Explain) -> None:
        self._settings = settings
        self._discovery = DiscoveryService()
        self._served = Served(explain)
        self._relay = GrpcRelay(settings)
        self._hold = Hold(self._served, self._relay.answers)
        self._rest = RestServer(settings, self._served, self._hold)
        self._servers: list[grpc.aio.Server] = []
        self._setting = asyncio.Lock()
        self._addresses: dict[str, str] = {}
        self._again: asyncio.Task[None] | None = None

    @property
    def envoys(self) -> int:
        """Envoys connected now."""
        return self._discovery.connected

    @property
    def refusals(self) -> int:
        """Configurations that an Envoy has refused since the start; anything but 0 is a bug, and logged."""
        return self._discovery.refusals

    @property
    def held(self) -> Mapping[str, int]:
        """Requests that wait here for a replica, by deployment; those without any are left out."""
        held: Counter[str] = Counter()
        for line, number in self._hold.room.held.items():
            held[line.partition("/")[0]] += number
        return held

    @property
    def trouble(self) -> str:
        """Why clients may not get through here, in one sentence; empty: they do."""
        if self._discovery.complaint:
            return f"Envoy refuses its configuration: {self._discovery.complaint}"
        if not self._discovery.connected:
            return f"no Envoy is connected, so perhaps nobody listens at {self._settings.listen}"
        return ""

    async def taken_addresses(self) -> str:
        """Waits until the first Envoy has tried to listen; why it cannot, or an empty string."""
        complaint = await self._discovery.first_listeners()
        return complaint if "cannot bind" in complaint else ""

    async def start(self) -> None:
        """Listens for Envoys, which are answered from the first `set_state` on, and for requests to be explained.

        Raises RuntimeError if an address is taken.
        """
        discovery = grpc.aio.server(options=_OPTIONS)
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(self._discovery, discovery)
        # As much as Envoy lets in, so that no large request is answered with a complaint about its size
        # instead of the reason.
        largest = ("grpc.max_receive_message_length", self._settings.max_request_bytes + MIB)
        options = (*_OPTIONS, largest, *header_options(self._settings.largest_headers_bytes))
        explaining = grpc.aio.server(options=options, maximum_concurrent_rpcs=MAX_CALLS)
        explaining.add_generic_rpc_handlers((ExplainHandler(self._served, self._hold, self._relay),))
        self._relay.start()
        for server, address in ((discovery, self._settings.xds), (explaining, self._settings.gateway)):
            server.add_insecure_port(address)
            await server.start()
            self._servers.append(server)
            if address.startswith("unix:"):
                os.chmod(Path(address.removeprefix("unix:")), 0o600)
        await self._rest.start()

    async def stop(self) -> None:
        """Envoys go on with what they have."""
        if self._again is not None:
            self._again.cancel()
        await asyncio.gather(*(server.stop(grace=None) for server in self._servers))
        self._servers.clear()
        self._hold.close()
        await self._relay.stop()
        await self._rest.stop()

    async def set_state(self, state: RoutingState) -> None:
        """What is served from now on. Returns when it is on its way to the Envoys; `applied` waits for them.

        An endpoint whose host name has no address is left out, with an error in the log, and looked up again
        until it has one.
        """
        async with self._setting:
            if self._again is not None:
                self._again.cancel()
                self._again = None
            addressed, complete = await self._addressed(state)
            self._served.set_state(addressed)
            self._discovery.set_resources(resources(addressed, self._settings, api_descriptors()))
            if not complete:
                self._again = asyncio.create_task(self._set_again(state))

    async def applied(self, timeout_s: float) -> bool:
        """Waits until every connected Envoy has taken the last state: nothing goes to what was withdrawn any more.

        False if that was not so in time, if one refused it, or if no Envoy is connected.
        """
        return await self._discovery.applied(timeout_s)

    async def _set_again(self, state: RoutingState) -> None:
        await asyncio.sleep(LOOKUP_AGAIN_S)
        self._again = None
        await self.set_state(state)

    async def _addressed(self, state: RoutingState) -> tuple[RoutingState, bool]:
        """The state with addresses for host names, and whether every endpoint has one."""
        hosts = {end.host for route in state.routes for end in route.endpoints if not usable(end)}
        # Kept for as long as a replica is there, so that a node that has got another address is found anew.
        self._addresses = {host: address for host, address in self._addresses.items() if host in hosts}
        await asyncio.gather(*(self._look_up(host) for host in hosts - self._addresses.keys()))
        routes = []
        complete = True
        for route in state.routes:
            endpoints = tuple(self._with_address(end) for end in route.endpoints)
            known = tuple(end for end in endpoints if usable(end))
            complete = complete and len(known) == len(endpoints)
            routes.append(replace(route, endpoints=known))
        return RoutingState(tuple(routes)), complete

    def _with_address(self, endpoint: Endpoint) -> Endpoint:
        return replace(endpoint, host=self._addresses.get(endpoint.host, endpoint.host))

    async def _look_up(self, host: str) -> None:
        try:
            found = await asyncio.wait_for(
                asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM), LOOKUP_TIMEOUT_S
            )
        except (OSError, TimeoutError, UnicodeError) as error:
            log.error(
                "the replicas on host %r get no requests: its address cannot be found: %s",
                host,
                repr(error),
            )
            return
        # IPv4 first: it is what agents listen on unless told otherwise.
        found.sort(key=lambda one: one[0] != socket.AF_INET)
        self._addresses[host] = str(found[0][4][0])
