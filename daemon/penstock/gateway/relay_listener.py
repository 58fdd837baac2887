"""The listener by which the gateway sends held requests back through Envoy: a socket that only its owner can open.

What comes in here was let in at the main listener before, so nothing is taken from its headers: the deployment is named
by the header that clients cannot set. Routes and retries are those of the main listener; the
circuit breakers are apart (Envoy's priority HIGH), because a held request counts among its deployment's requests in
flight all the time, and its relay must not find that bound reached by those that wait for it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from penstock.core.routing import Route
from penstock.core.spec import Routing
from penstock.gateway import affinity
from penstock.gateway.clusters import SECRET_HEADER, cluster_name, rest_cluster_name
from penstock.gateway.messages import (
    ADS,
    Listener,
    RouteConfiguration,
    RouteMessage,
    build,
    http_filter,
    put_header,
    typed,
)
from penstock.gateway.routes import (
    ADAPTER_HEADER,
    DEPLOYMENT_HEADER,
    INFERENCE,
    INFERENCE_RETRY,
    REST_RETRY,
    to_replicas,
    to_subset,
)
from penstock.gateway.settings import ADDED_HEADERS, MIB, FrontDoorSettings, envoy_address

RELAY = "relay"
RELAYED_HEADER = "x-penstock-deployment-ticket"
"""The key of the ticket of a relayed request. Its prefix is among those that clients cannot set."""


def relay_address(settings: FrontDoorSettings) -> str:
    """Where Envoy listens for the gateway. Both are on one machine."""
    return f"unix:{settings.state_folder}/relay.sock"


@lru_cache(maxsize=4)
def relay_listener(settings: FrontDoorSettings) -> Listener:
    """The listener; it depends on no deployment."""
    address: dict[str, Any] = envoy_address(relay_address(settings))
    address["pipe"]["mode"] = 0o600
    manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=RELAY,
        codec_type="AUTO",
        rds={"route_config_name": RELAY, "config_source": ADS},
        http_filters=[
            affinity.prefix_filter(),
            http_filter("router", "router.v3.Router", suppress_envoy_headers=True),
        ],
        # One request has one id, here and at the main listener.
        preserve_external_request_id=True,
        server_name="penstock",
        stream_idle_timeout=f"{settings.stream_idle_timeout_s}s",
        # What a client may send, and what was added since.
        max_request_headers_kb=settings.largest_headers_bytes // 1024,
        common_http_protocol_options={"max_headers_count": settings.max_headers + ADDED_HEADERS},
        http2_protocol_options={
            # All of them come from one gateway, which bounds them.
            "max_concurrent_streams": 65536,
            "initial_stream_window_size": 1 * MIB,
            "initial_connection_window_size": 16 * MIB,
        },
    )
    return build(
        Listener(),
        {
            "name": RELAY,
            "address": address,
            "per_connection_buffer_limit_bytes": 1 * MIB,
            "filter_chains": [
                {
                    "filters": [
                        {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
                    ]
                }
            ],
        },
    )


def relay_routes(routes: tuple[Route, ...], settings: FrontDoorSettings) -> RouteConfiguration:
    """By the deployment's name, and the adapter's where one is asked for: those come first."""
    made: RouteConfiguration = build(
        RouteConfiguration(),
        {
            "name": RELAY,
            "virtual_hosts": [
                {
                    "name": RELAY,
                    "domains": ["*"],
                    # By this the gateway knows whether a replica was tried before the request came back to it.
                    "include_request_attempt_count": True,
                    "response_headers_to_remove": [SECRET_HEADER],
                    "request_body_buffer_limit": settings.max_request_bytes + MIB // 16,
                }
            ],
        },
    )
    for route in routes:
        for adapter in (*route.adapters, ""):
            made.virtual_hosts[0].routes.extend(_line(route.deployment, adapter, route.secret, route.routing))
    return made


@lru_cache(maxsize=4096)
def _line(deployment: str, adapter: str, secret: str, routing: Routing) -> tuple[RouteMessage, ...]:
    agents, engines = cluster_name(deployment), rest_cluster_name(deployment)
    to_agents = to_replicas(agents, INFERENCE_RETRY, routing)
    with_secret = {"request_headers_to_add": [put_header(SECRET_HEADER, secret)]}
    looks = {"typed_per_filter_config": affinity.looks_at_prompt(routing)}
    return (
        _route(deployment, adapter, INFERENCE, to_agents, **with_secret, **looks),
        # Whether a replica answers at all.
        _route(deployment, adapter, "/grpc.health.", to_agents, **with_secret),
        _route(deployment, adapter, "/", to_replicas(engines, REST_RETRY, routing), **looks),
    )


def _route(deployment: str, adapter: str, prefix: str, choice: dict[str, Any], **more: Any) -> RouteMessage:
    headers = {DEPLOYMENT_HEADER: deployment, **({ADAPTER_HEADER: adapter} if adapter else {})}
    return build(
        RouteMessage(),
        {
            "match": {
                "prefix": prefix,
                "headers": [
                    {"name": name, "string_match": {"exact": value}} for name, value in headers.items()
                ],
            },
            "route": {
                **choice,
                "cluster_not_found_response_code": "SERVICE_UNAVAILABLE",
                "timeout": "0s",
                "priority": "HIGH",
                **to_subset(adapter),
            },
            **more,
        },
    )
