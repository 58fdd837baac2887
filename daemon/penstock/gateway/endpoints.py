"""Where a deployment's requests go now: its replicas first, and the gateway when none of them answers.

The gateway is never health-checked: it is the last to be asked, so there is nothing to choose instead.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Any

from penstock.core.routing import Endpoint, Route
from penstock.gateway.clusters import cluster_name
from penstock.gateway.messages import ClusterLoadAssignment, build
from penstock.gateway.settings import FrontDoorSettings, envoy_address

# Envoy moves traffic to the second place in proportion as the first is unhealthy, times this over 100. This
# large, one healthy replica of any number keeps all the traffic.
_KEEP_FIRST_PLACE = 1_000_000


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
    """One deployment's endpoints. Those that are not `usable` are left out."""
    replicas = sorted({(endpoint.host, endpoint.port) for endpoint in route.endpoints if usable(endpoint)})
    places: list[dict[str, Any]] = [
        {
            "priority": 0,
            "lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}
                for host, port in replicas
            ],
        },
        {
            "priority": 1,
            "lb_endpoints": [
                {
                    "endpoint": {
                        "address": envoy_address(gateway),
                        "health_check_config": {"disable_active_health_check": True},
                    }
                }
            ],
        },
    ]
    return build(
        ClusterLoadAssignment(),
        {
            "cluster_name": cluster_name(route.deployment),
            "endpoints": places,
            "policy": {"overprovisioning_factor": _KEEP_FIRST_PLACE},
        },
    )


def assignments(routes: tuple[Route, ...], settings: FrontDoorSettings) -> list[ClusterLoadAssignment]:
    """The endpoints of every deployment."""
    return [assignment(route, settings.gateway) for route in routes]
