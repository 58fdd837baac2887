"""Where a deployment's requests go now: its replicas first, and the gateway when none of them answers.

The gateway is never health-checked: it is the last to be asked, so there is nothing to choose instead.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Any

from penstock.core.routing import Endpoint, Route, engine_key
from penstock.gateway import affinity
from penstock.gateway.clusters import ADAPTER, METADATA, SUBSETS, cluster_name, rest_cluster_name
from penstock.gateway.messages import ClusterLoadAssignment, build
from penstock.gateway.settings import FrontDoorSettings, envoy_address

# Envoy moves traffic to the second place in proportion as the first is unhealthy, times this over 100. This
# large, one healthy replica of any number keeps all the traffic.
_KEEP_FIRST_PLACE = 1_000_000


_Ends = dict[int, list[dict[str, Any]]]
"""Revision -> its replicas as Envoy knows them."""


def usable(endpoint: Endpoint) -> bool:
    """Whether Envoy would take it. One bad address would make it refuse the endpoints of every deployment
    sent along."""
    try:
        ipaddress.ip_address(endpoint.host)
    except ValueError:
        return False
    return 0 < endpoint.port < 65536


@lru_cache(maxsize=4096)
def assignment(route: Route, gateway: str) -> ClusterLoadAssignment:
    """One deployment's agents. Those that are not `usable` are left out."""
    ends: _Ends = {}
    for endpoint in _sorted(route):
        end = {"endpoint": {"address": _address(endpoint.host, endpoint.port)}, **_metadata(endpoint)}
        ends.setdefault(endpoint.revision, []).append(end)
    return _assignment(cluster_name(route.deployment), route, ends, gateway)


@lru_cache(maxsize=4096)
def rest_assignment(route: Route, gateway: str) -> ClusterLoadAssignment:
    """One deployment's engines, each with its key. Those that are not `usable`, or have no HTTP, are left out."""
    ends: _Ends = {}
    for endpoint in _sorted(route):
        if endpoint.engine_port is None:
            continue
        key = engine_key(route.secret, endpoint.attempt)
        ends.setdefault(endpoint.revision, []).append(
            {
                "endpoint": {
                    "address": _address(endpoint.host, endpoint.engine_port),
                    "health_check_config": {"port_value": endpoint.port},
                },
                **_metadata(endpoint, {METADATA: {"engine_key": key}}),
            }
        )
    return _assignment(rest_cluster_name(route.deployment), route, ends, gateway)


def assignments(routes: tuple[Route, ...], settings: FrontDoorSettings) -> list[ClusterLoadAssignment]:
    """The endpoints of every deployment."""
    agents = [assignment(route, settings.gateway) for route in routes]
    return agents + [rest_assignment(route, settings.gateway_rest) for route in routes]


def _sorted(route: Route) -> list[Endpoint]:
    """By address, each once: what does not change is sent in the same order."""
    found = {(end.host, end.port): end for end in route.endpoints if usable(end)}
    return [found[address] for address in sorted(found)]


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _metadata(endpoint: Endpoint, own: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a replica's endpoint bears. `own`: further words."""
    return _said(
        {**(own or {}), SUBSETS: {**affinity.place(endpoint.replica), **_adapters(endpoint.adapters)}}
    )


def _adapters(adapters: tuple[str, ...]) -> dict[str, Any]:
    return {ADAPTER: sorted(adapters)} if adapters else {}


def _said(words: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"filter_metadata": words}}


def _groups(route: Route, ends: _Ends) -> list[dict[str, Any]]:
    """The first place: a canary's revisions, each with its weight, or all as one."""
    weights = dict(route.weights)
    chosen = {revision: weights.get(revision, 0) for revision in sorted(ends)}
    if not any(
        chosen.values()
    ):  # Better one that should get nothing than nobody; and a place that is empty is one.
        every = [end for revision in sorted(ends) for end in ends[revision]]
        return [_group("every-revision", 1, every)]
    return [
        _group(f"revision-{revision}", weight, ends[revision])
        for revision, weight in chosen.items()
        if weight
    ]


def _group(name: str, weight: int, ends: list[dict[str, Any]], priority: int = 0) -> dict[str, Any]:
    """Without a locality Envoy would take its weight for 0, and balancing by hash would find nobody there."""
    return {
        "priority": priority,
        "locality": {"zone": name},
        "load_balancing_weight": weight,
        "lb_endpoints": ends,
    }


def _assignment(name: str, route: Route, ends: _Ends, gateway: str) -> ClusterLoadAssignment:
    last = {
        "endpoint": {
            "address": envoy_address(gateway),
            "health_check_config": {"disable_active_health_check": True},
        },
        **_said({SUBSETS: _adapters(route.adapters)}),
    }
    return build(
        ClusterLoadAssignment(),
        {
            "cluster_name": name,
            "endpoints": [
                *_groups(route, ends),
                _group("gateway", 1, [last], priority=1),
            ],
            "policy": {"overprovisioning_factor": _KEEP_FIRST_PLACE},
        },
    )
