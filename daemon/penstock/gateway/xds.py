"""Serves Envoy its configuration: aggregated discovery, state of the world, any number of Envoys up to a bound.

Each Envoy has one stream. It is sent what differs from what this stream has sent it before, in the order that
never leaves a reference dangling: clusters (those that go are kept until the end), endpoints, listeners,
routes, then clusters again without those that went. A stream that cannot keep up misses states in between,
never the last one.

Until a first state is set nothing is answered: an empty answer would tell Envoy to forget every replica it
knows. A new stream is always sent everything; Envoy leaves alone what is equal to what it has, so no token
stream notices.

A configuration that Envoy refuses is reported nowhere but in its next request, so that is logged as an error,
and counted. It is not sent again until it changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

from penstock.gateway.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource, Resources

log = logging.getLogger(__name__)

MAX_ENVOYS = 64
"""A front door of this many machines is beyond any we know; each costs a few MB here at 1000 deployments."""

_ALL_NAMES = frozenset({CLUSTER, LISTENER})
"""Types that Envoy asks for without naming them, and whose answers must be complete."""


@dataclass(slots=True)
class _Subscription:
    """What one Envoy has of one type."""

    names: frozenset[str] = frozenset()
    sent: dict[str, str] = field(default_factory=dict)
    """Name to digest."""
    nonce: str = ""
    unanswered: bool = False
    complaint: str = ""
    """Why the last answer was refused; empty: it was not."""


class _Envoy:
    """One stream: what was asked, sent and taken."""

    def __init__(self) -> None:
        self.name = "an Envoy that has not said its name"
        self.wake = asyncio.Event()
        self.subscriptions: dict[str, _Subscription] = {}
        self.sent_state = 0
        """Number of the state of which everything has been sent."""
        self._responses = 0
        self._clusters: dict[str, Resource] = {}

    def taken(self, state: int) -> bool:
        """Whether it has acknowledged everything of this state or a later one."""
        waiting = any(one.unanswered or one.complaint for one in self.subscriptions.values())
        return self.sent_state >= state and not waiting

    def asked(self, request: DiscoveryRequest) -> str:
        """Takes a request in. Returns Envoy's complaint about the last response of this type, or an empty
        string."""
        if request.node.id:
            self.name = f"Envoy {request.node.id}"
        one = self.subscriptions.setdefault(request.type_url, _Subscription())
        if request.response_nonce != one.nonce:
            return ""  # An answer to an older response; the one to the newest will name everything again.
        complaint = str(request.error_detail.message) if request.HasField("error_detail") else ""
        if request.response_nonce:
            one.unanswered = False
            one.complaint = complaint
        one.names = frozenset(request.resource_names)
        one.sent = {
            name: digest
            for name, digest in one.sent.items()
            if request.type_url in _ALL_NAMES or name in one.names
        }
        return complaint

    def due(self, wanted: Resources) -> list[DiscoveryResponse]:
        """What must be sent to bring this Envoy to `wanted`, in order. Counts it as sent."""
        final = dict(wanted.by_type[CLUSTER])
        kept = {name: cluster for name, cluster in self._clusters.items() if name not in final}
        responses = [self._complete(CLUSTER, {**final, **kept}, wanted)]
        responses.append(self._changed(ENDPOINT, wanted))
        responses.append(self._complete(LISTENER, dict(wanted.by_type[LISTENER]), wanted))
        responses.append(self._changed(ROUTE, wanted))
        if kept:
            responses.append(self._complete(CLUSTER, final, wanted))
        return [response for response in responses if response is not None]

    def _complete(
        self, type_url: str, resources: dict[str, Resource], wanted: Resources
    ) -> DiscoveryResponse | None:
        one = self.subscriptions.get(type_url)
        digests = {name: resource.digest for name, resource in resources.items()}
        if one is None or one.sent == digests:
            return None
        # Envoy asks for the endpoints of a changed cluster, and for the routes of a changed listener, anew.
        again = {name for name, digest in digests.items() if one.sent.get(name) != digest}
        dependent = self.subscriptions.get(ENDPOINT if type_url == CLUSTER else ROUTE)
        if dependent is not None:
            for name in again:
                dependent.sent.pop(name, None)
        if type_url == CLUSTER:
            self._clusters = resources
        one.sent = digests
        return self._response(type_url, one, list(resources.values()), wanted)

    def _changed(self, type_url: str, wanted: Resources) -> DiscoveryResponse | None:
        one = self.subscriptions.get(type_url)
        if one is None:
            return None
        have = wanted.by_type[type_url]
        due = [
            have[name] for name in sorted(one.names & have.keys()) if one.sent.get(name) != have[name].digest
        ]
        if not due:
            return None
        one.sent.update({resource.name: resource.digest for resource in due})
        return self._response(type_url, one, due, wanted)

    def _response(
        self, type_url: str, one: _Subscription, resources: list[Resource], wanted: Resources
    ) -> DiscoveryResponse:
        self._responses += 1
        one.nonce = str(self._responses)
        one.unanswered = True
        return DiscoveryResponse(
            version_info=wanted.version(type_url),
            type_url=type_url,
            nonce=one.nonce,
            resources=[resource.body for resource in resources],
        )


class DiscoveryService(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """The gRPC servicer. Knows what to send, not what it means."""

    def __init__(self) -> None:
        self._resources: Resources | None = None
        self._state = 0
        self._envoys: set[_Envoy] = set()
        self._progress = asyncio.Condition()
        self.refusals = 0
        """Responses that an Envoy has refused since the start."""
        self._first_complaint = ""
        self._listeners_answered = asyncio.Event()

    @property
    def connected(self) -> int:
        """Envoys with an open stream."""
        return len(self._envoys)

    @property
    def complaint(self) -> str:
        """What a connected Envoy holds against what it was sent last; empty: nothing."""
        found = (one.complaint for envoy in self._envoys for one in envoy.subscriptions.values())
        return next((complaint for complaint in found if complaint), "")

    async def first_listeners(self) -> str:
        """Waits until an Envoy has answered the first listeners that it was sent; its complaint, or an empty string."""
        await self._listeners_answered.wait()
        return self._first_complaint

    def set_resources(self, resources: Resources) -> None:
        """What all Envoys must have from now on."""
        self._resources = resources
        self._state += 1
        for envoy in self._envoys:
            envoy.wake.set()

    async def applied(self, timeout_s: float) -> bool:
        """Waits until all connected Envoys, at least one, have taken what was set last before this call.

        False when that did not happen in time, or one refused it.
        """
        state = self._state
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._progress:
                await self._progress.wait_for(lambda: self._all_have(state))
        return self._all_have(state)

    def _all_have(self, state: int) -> bool:
        return state > 0 and bool(self._envoys) and all(envoy.taken(state) for envoy in self._envoys)

    async def StreamAggregatedResources(
        self, requests: AsyncIterator[DiscoveryRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[DiscoveryResponse]:
        if len(self._envoys) >= MAX_ENVOYS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_ENVOYS} Envoys are connected, which is the limit"
            )
        envoy = _Envoy()
        self._envoys.add(envoy)
        reader = asyncio.create_task(self._read(envoy, requests))
        reader.add_done_callback(lambda _: envoy.wake.set())
        try:
            while not reader.done():
                await envoy.wake.wait()
                envoy.wake.clear()
                if self._resources is None:
                    continue
                state, responses = self._state, envoy.due(self._resources)
                for response in responses:
                    yield response
                envoy.sent_state = state
                await self._tell()
            await reader
        finally:
            reader.cancel()
            self._envoys.discard(envoy)
            log.info("%s has left", envoy.name)
            await self._tell()

    async def _read(self, envoy: _Envoy, requests: AsyncIterator[DiscoveryRequest]) -> None:
        async for request in requests:
            complaint = envoy.asked(request)
            one = envoy.subscriptions[request.type_url]
            is_answer = bool(one.nonce) and request.response_nonce == one.nonce
            if request.type_url == LISTENER and is_answer and not self._listeners_answered.is_set():
                self._first_complaint = complaint
                self._listeners_answered.set()
            if complaint:
                self.refusals += 1
                log.error(
                    "%s refused the %s sent to it: %s",
                    envoy.name,
                    request.type_url.rsplit(".", 1)[-1],
                    complaint,
                )
            envoy.wake.set()

    async def _tell(self) -> None:
        async with self._progress:
            self._progress.notify_all()
