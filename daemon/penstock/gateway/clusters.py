"""Whom Envoy can speak to: one cluster for each deployment's replicas, one for the control API, one for the gateway.

A deployment's cluster holds its replicas in the first place and the gateway in the second. As long as one
replica answers health checks, all requests go to replicas; when none does, the request goes to the gateway,
which holds it or says why not. So replicas come and go by endpoints alone: neither the listener, nor a route,
nor the cluster changes.

Health has two judges. Envoy asks every replica two or three times a second (gRPC health, with the deployment's
secret, so that another program on a reused port does not pass for the replica); one failure takes it out, one
success brings it back. Between two checks, connections that fail take it out (outlier ejection) until the
next check that succeeds, but never more than half of a deployment. An error status does not eject, whatever
it is: an agent that cannot serve says so in its health, and a client's bad requests must not cost others
their replica.

There is no panic mode (threshold 0): a replica that failed its check gets nothing, for the gateway has a
better answer than it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from penstock.core.routing import Route
from penstock.gateway.messages import ADS, Cluster, build
from penstock.gateway.settings import MIB, FrontDoorSettings, envoy_address

CONTROL = "control"
GATEWAY = "gateway"
SECRET_HEADER = "x-penstock-deployment-secret"

# How much of a stream's answer Envoy holds for a client that reads slowly, before it stops reading from the
# replica.
_BUFFER_BYTES = 1 * MIB
# A node that vanished is found by TCP in 25 s. HTTP/2 pings are not used towards gRPC servers, which by
# default close the connection, with every stream on it, when pinged during five quiet minutes.
_TCP_KEEPALIVE = {"keepalive_probes": 3, "keepalive_time": 10, "keepalive_interval": 5}


def cluster_name(deployment: str) -> str:
    """The name of the deployment's cluster, and of its endpoints."""
    return f"deployment/{deployment}"


@lru_cache(maxsize=4096)
def deployment_cluster(deployment: str, secret: str, settings: FrontDoorSettings) -> Cluster:
    """The replicas of one deployment, without saying which they are."""
    return build(
        Cluster(),
        {
            "name": cluster_name(deployment),
            "type": "EDS",
            "eds_cluster_config": {"eds_config": ADS},
            "lb_policy": "LEAST_REQUEST",
            **_connections(connect_timeout="1s", max_requests=settings.max_requests_per_deployment),
            # By default Envoy gathers changes of health for a second before it acts on them.
            "common_lb_config": {"healthy_panic_threshold": {"value": 0}, "update_merge_window": "0s"},
            # A replica that is withdrawn gets nothing more, however healthy it is; without this Envoy would
            # keep it until it fails.
            "ignore_health_on_host_removal": True,
            "health_checks": [
                {
                    "interval": f"{settings.health_interval_s}s",
                    "no_traffic_interval": f"{settings.health_interval_s}s",
                    "timeout": f"{settings.health_timeout_s}s",
                    "unhealthy_threshold": 1,
                    "healthy_threshold": 1,
                    "grpc_health_check": {
                        "initial_metadata": [{"header": {"key": SECRET_HEADER, "value": secret}}],
                    },
                }
            ],
            "outlier_detection": {
                "split_external_local_origin_errors": True,
                "consecutive_local_origin_failure": 2,
                "enforcing_consecutive_local_origin_failure": 100,
                "enforcing_local_origin_success_rate": 0,
                "enforcing_success_rate": 0,
                "enforcing_consecutive_5xx": 0,
                "enforcing_consecutive_gateway_failure": 0,
                "interval": "1s",
                "base_ejection_time": "2s",
                "max_ejection_time": "10s",
                # The gateway counts as one of the hosts: of one replica and the gateway, half is already too
                # much.
                "max_ejection_percent": 49,
            },
        },
    )


@lru_cache(maxsize=16)
def own_cluster(name: str, address: str) -> Cluster:
    """One of Penstock's own servers."""
    return build(
        Cluster(),
        {
            "name": name,
            "type": "STATIC",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": envoy_address(address)}}]}],
            },
            **_connections(connect_timeout="0.25s", max_requests=4096),
        },
    )


def clusters(routes: tuple[Route, ...], settings: FrontDoorSettings) -> list[Cluster]:
    """Every cluster; Penstock's own first."""
    own = [own_cluster(CONTROL, settings.control), own_cluster(GATEWAY, settings.gateway)]
    return own + [deployment_cluster(route.deployment, route.secret, settings) for route in routes]


def _connections(*, connect_timeout: str, max_requests: int) -> dict[str, Any]:
    """What all clusters share: cleartext HTTP/2 and explicit bounds."""
    return {
        "connect_timeout": connect_timeout,
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        "upstream_connection_options": {"tcp_keepalive": _TCP_KEEPALIVE},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {
                    "http2_protocol_options": {
                        "initial_stream_window_size": 1 * MIB,
                        "initial_connection_window_size": 16 * MIB,
                    }
                },
            }
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 1024,
                    "max_pending_requests": max_requests,
                    "max_requests": max_requests,
                    # Retries are for the second in which a replica died, not a way to double a load that is
                    # too much.
                    "max_retries": max(16, max_requests // 4),
                }
            ]
        },
    }
