"""Whom Envoy can speak to: two clusters for each deployment's replicas, one for the control API, three for the gateway.

gRPC goes to the replicas' agents, REST to the HTTP servers of their engines: other ports, other protocols, and
so another cluster, with the same replicas in it.

A deployment's cluster holds its replicas in the first place and the gateway in the second. As long as one replica
answers health checks, all requests go to replicas; when none does, the request goes to the gateway, which holds it or
says why not. So replicas come and go by endpoints alone: neither the listener, nor a route, nor the cluster changes.

Health has two judges. Envoy asks every replica's agent two or three times a second (gRPC health, with the deployment's
secret, so that another program on a reused port does not pass for the replica); one failure takes it out, one
success brings it back. Between two checks, connections that fail take it out (outlier ejection), but never more
than half of a deployment. A gRPC status does not eject, whatever it is: an agent that cannot serve says so in
its health. An engine's HTTP 5xx does, for a while, when there are several in a row; its 4xx never, for a client's bad
requests must not cost others their replica.

A deployment's adapters have no clusters of their own, which would have every replica asked for its health once more for
each: they are subsets of the deployment's endpoints.

There is no panic mode (threshold 0): a replica that failed its check gets nothing, for the gateway has a
better answer than it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from penstock.core.routing import Route
from penstock.core.spec import Routing
from penstock.gateway import affinity
from penstock.gateway.messages import ADS, Cluster, build, http_filter, put_header, typed
from penstock.gateway.settings import MIB, FrontDoorSettings, envoy_address

CONTROL = "control"
GATEWAY = "gateway"
GATEWAY_REST = "gateway-rest"
GATEWAY_QUESTIONS = "gateway-questions"
"""The gateway's REST server once more, with room of its own: however many requests are held there, what is asked about
those to the control API is answered."""
SECRET_HEADER = "x-penstock-deployment-secret"
ENGINE_KEY_HEADER = "x-penstock-engine-key"
METADATA = "penstock"
"""Under this name are our own words on an endpoint: `engine_key`; and on a route."""
SUBSETS = "envoy.lb"
"""Under this name is what Envoy chooses subsets of endpoints by."""
ADAPTER = "adapter"
"""Its key: on an endpoint the list of the adapters that it has, on a route the one that is asked for."""
ANSWERED_BY_HEADER = "x-penstock-answered-by"
"""On answers that say nothing against the replica they came from, or did not come from one."""

OWN_RETRY = {
    "retry_on": "connect-failure,refused-stream,reset-before-request",
    "num_retries": 5,
    "retry_back_off": {"base_interval": "0.1s", "max_interval": "0.5s"},
}
"""Towards Penstock's own servers: the request was never handled, so it may be sent again; a second later a restarted
gateway is back."""

# How much of a stream's answer Envoy holds for a client that reads slowly, before it stops reading from the
# replica.
_BUFFER_BYTES = 1 * MIB
# A node that vanished is found by TCP in 25 s. HTTP/2 pings are not used towards gRPC servers, which by
# default close the connection, with every stream on it, when pinged during five quiet minutes.
_TCP_KEEPALIVE = {"keepalive_probes": 3, "keepalive_time": 10, "keepalive_interval": 5}
# All clients' requests share a connection to a gRPC server, and with it the table of the headers sent before. gRPC
# keeps with an entry of its table that it could not be read, and holds that against every later header that takes its
# name from there: one `grpc-timeout: x` would fail the calls of others that have a deadline.
_HEADER_TABLE_BYTES = 0
# uvicorn closes a connection that was idle for 5 s; a request must not meet it there.
_ENGINE_IDLE = "4s"
# Bytes of gRPC's health protocol: a request without a service's name, and the answer SERVING, each in its frame.
_HEALTH_REQUEST = "0000000000"
_HEALTH_SERVING = "00000000020801"


def cluster_name(deployment: str) -> str:
    """The name of the cluster of the deployment's agents, and of its endpoints."""
    return f"deployment/{deployment}"


def rest_cluster_name(deployment: str) -> str:
    """The name of the cluster of the deployment's engines, and of its endpoints."""
    return f"rest/{deployment}"


@lru_cache(maxsize=4096)
def deployment_cluster(
    deployment: str,
    secret: str,
    max_in_flight: int,
    routing: Routing,
    settings: FrontDoorSettings,
    *,
    has_adapters: bool = False,
) -> Cluster:
    """The replicas of one deployment, without saying which they are."""
    return build(
        Cluster(),
        {
            "name": cluster_name(deployment),
            "type": "EDS",
            "eds_cluster_config": {"eds_config": ADS},
            **_subsets(has_adapters),
            **_replicas(routing),
            "health_checks": [
                {
                    **_checked(settings),
                    "grpc_health_check": {
                        "initial_metadata": [{"header": {"key": SECRET_HEADER, "value": secret}}],
                    },
                }
            ],
            **_connections(_http2(), "1s", max_in_flight),
        },
    )


@lru_cache(maxsize=4096)
def rest_cluster(
    deployment: str,
    secret: str,
    max_in_flight: int,
    routing: Routing,
    settings: FrontDoorSettings,
    *,
    has_adapters: bool = False,
) -> Cluster:
    """The engines of one deployment's replicas, without saying which they are."""
    name = rest_cluster_name(deployment)
    made = {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": ADS},
        **_subsets(has_adapters),
        **_replicas(routing),
        # The agent is asked, at its own port, though its engine gets the requests: it knows when a replica leaves, and
        # answers while the engine's event loop is busy. Envoy's own gRPC check is refused for an HTTP/1 cluster.
        "health_checks": [
            {
                **_checked(settings),
                "http_health_check": {
                    "path": "/grpc.health.v1.Health/Check",
                    "method": "POST",
                    "codec_client_type": "HTTP2",
                    "send": {"text": _HEALTH_REQUEST},
                    "receive": [{"text": _HEALTH_SERVING}],
                    "request_headers_to_add": [
                        {"header": {"key": key, "value": value}}
                        for key, value in (
                            ("content-type", "application/grpc"),
                            ("te", "trailers"),
                            (SECRET_HEADER, secret),
                        )
                    ],
                },
            }
        ],
        **_connections(_to_engines(), "1s", max_in_flight),
    }
    detection = made["outlier_detection"]
    made["outlier_detection"] = {
        **detection,
        "consecutive_5xx": 5,
        "enforcing_consecutive_5xx": 100,
        # Its agent is well, and says so twice a second.
        "successful_active_health_check_uneject_host": False,
    }
    return build(Cluster(), made)


@lru_cache(maxsize=16)
def own_cluster(name: str, address: str, *, http2: bool = True) -> Cluster:
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
            **_connections(_http2() if http2 else _http1(), "0.25s", 4096),
        },
    )


def clusters(routes: tuple[Route, ...], settings: FrontDoorSettings) -> list[Cluster]:
    """Every cluster; Penstock's own first."""
    own = [
        own_cluster(CONTROL, settings.control),
        own_cluster(GATEWAY, settings.gateway),
        own_cluster(GATEWAY_REST, settings.gateway_rest, http2=False),
        own_cluster(GATEWAY_QUESTIONS, settings.gateway_rest, http2=False),
    ]
    for make in (deployment_cluster, rest_cluster):
        own += [
            make(
                route.deployment,
                route.secret,
                route.admission.max_in_flight,
                route.routing,
                settings,
                has_adapters=bool(route.adapters),
            )
            for route in routes
        ]
    for route in routes:
        if route.routing.has_affinity:
            own += _by_attempt(route.deployment, route.admission.max_in_flight)
    return own


@lru_cache(maxsize=4096)
def _by_attempt(deployment: str, max_in_flight: int) -> tuple[Cluster, ...]:
    """Through which routes lead to a deployment's two clusters where Envoy's retry priorities do not count."""
    return tuple(
        affinity.tries(cluster, gateway, _connections(options, "1s", max_in_flight))
        for cluster, gateway, options in (
            (cluster_name(deployment), GATEWAY, _http2()),
            (rest_cluster_name(deployment), GATEWAY_REST, _to_engines()),
        )
    )


def _subsets(has_adapters: bool) -> dict[str, Any]:
    """Requests for an adapter go to the endpoints that have it, weighed and judged as all of them are, and to nobody
    where none has it; the others' go to any. The gateway has every adapter, so that it comes last for each of them."""
    if not has_adapters:
        return {}
    return {
        "lb_subset_config": {
            "fallback_policy": "ANY_ENDPOINT",
            "subset_selectors": [{"keys": [ADAPTER], "fallback_policy": "NO_FALLBACK"}],
            "list_as_any": True,
            "locality_weight_aware": True,
        }
    }


def _replicas(routing: Routing) -> dict[str, Any]:
    """How a replica is chosen and when one is left out, be it asked by gRPC or by REST."""
    return {
        **affinity.balancing(routing),
        # By default Envoy gathers changes of health for a second before it acts on them.
        # Within a place, requests go to groups of endpoints by their weights, as far as they have a healthy one.
        "common_lb_config": {
            "healthy_panic_threshold": {"value": 0},
            "update_merge_window": "0s",
            "locality_weighted_lb_config": {},
            **affinity.bounded_load(routing),
        },
        # A replica that is withdrawn gets nothing more, however healthy it is; without this Envoy would
        # keep it until it fails.
        "ignore_health_on_host_removal": True,
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
    }


def _checked(settings: FrontDoorSettings) -> dict[str, Any]:
    return {
        "interval": f"{settings.health_interval_s}s",
        "no_traffic_interval": f"{settings.health_interval_s}s",
        "timeout": f"{settings.health_timeout_s}s",
        "unhealthy_threshold": 1,
        "healthy_threshold": 1,
    }


def _counts_against_a_replica() -> dict[str, Any]:
    """5xx, but not of the gateway, which shares the cluster, nor of the closed door of a replica that leaves."""
    server_error = {"name": ":status", "string_match": {"prefix": "5"}}
    marked = {"name": ANSWERED_BY_HEADER, "present_match": True}
    return {
        "and_match": {
            "rules": [
                {"http_response_headers_match": {"headers": [server_error]}},
                {"not_match": {"http_response_headers_match": {"headers": [marked]}}},
            ]
        }
    }


def _to_engines() -> dict[str, Any]:
    """HttpProtocolOptions towards engines."""
    # Known only once the replica is chosen: each has a key of its own.
    put_key = put_header(ENGINE_KEY_HEADER, f"%UPSTREAM_METADATA({METADATA}:engine_key)%")
    return {
        "explicit_http_config": {"http_protocol_options": {}},
        "common_http_protocol_options": {"idle_timeout": _ENGINE_IDLE},
        "http_filters": [
            http_filter(
                "header_mutation",
                "header_mutation.v3.HeaderMutation",
                mutations={"request_mutations": [{"append": put_key}]},
            ),
            http_filter("upstream_codec", "upstream_codec.v3.UpstreamCodec"),
        ],
        "outlier_detection": {"error_matcher": _counts_against_a_replica()},
    }


def _http2() -> dict[str, Any]:
    return {
        "explicit_http_config": {
            "http2_protocol_options": {
                "initial_stream_window_size": 1 * MIB,
                "initial_connection_window_size": 16 * MIB,
                "hpack_table_size": _HEADER_TABLE_BYTES,
            }
        }
    }


def _http1() -> dict[str, Any]:
    return {"explicit_http_config": {"http_protocol_options": {}}}


def _connections(options: dict[str, Any], connect_timeout: str, max_requests: int) -> dict[str, Any]:
    """What all clusters share: no TLS, and explicit bounds. `options`: HttpProtocolOptions."""
    bounds = {
        # Over HTTP/1 each request has one to itself, and one that is too many is refused only when it has.
        "max_connections": max(1024, 2 * max_requests),
        "max_pending_requests": max_requests,
        "max_requests": max_requests,
        # All that a replica had may come back at once when it dies. Each counts among `max_requests` all the
        # same, and none is sent again more than num_retries times, so that this doubles no load.
        "max_retries": max_requests,
    }
    return {
        "connect_timeout": connect_timeout,
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        "upstream_connection_options": {"tcp_keepalive": _TCP_KEEPALIVE},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                "upstreams.http.v3.HttpProtocolOptions", **options
            )
        },
        # HIGH are the gateway's relays: the requests that they are for count with the others all the time.
        "circuit_breakers": {"thresholds": [bounds, {**bounds, "priority": "HIGH"}]},
    }
