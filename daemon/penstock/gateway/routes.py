"""Which request goes to which cluster: by service, and inference by the model that Envoy has read from the message.

The names that clients may put into `model` change when deployments come and go, not when replicas do.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from penstock.core.routing import Route
from penstock.core.spec import Routing
from penstock.gateway import affinity, control_rest, cors, openai
from penstock.gateway.clusters import (
    ADAPTER,
    ANSWERED_BY_HEADER,
    CONTROL,
    ENGINE_KEY_HEADER,
    GATEWAY,
    GATEWAY_REST,
    METADATA,
    OWN_RETRY,
    SECRET_HEADER,
    SUBSETS,
    cluster_name,
    rest_cluster_name,
)
from penstock.gateway.documents import DOCUMENTS
from penstock.gateway.messages import RouteConfiguration, RouteMessage, build, put_header, typed
from penstock.gateway.settings import MIB, FrontDoorSettings

MAIN = "main"
RUNTIME = "runtime"
MODEL_HEADER = "x-model"
DEPLOYMENT_HEADER = "x-penstock-deployment"
ADAPTER_HEADER = "x-penstock-deployment-adapter"
"""To the gateway: which of the deployment's adapters is asked for. Clients cannot set what begins so."""
ATTEMPTS_HEADER = "x-envoy-attempt-count"
ASKED_MODEL_HEADER = "x-penstock-deployment-model"
"""To the gateway: the `model` that was asked for, as far as Envoy could read it."""
STREAM_HEADER = "x-penstock-deployment-stream"
"""`true`: the JSON of a REST request asks for a stream of events. Envoy says so, for it
has parsed the body anyway; in Python megabytes of JSON would hold up everything else."""
ENGINE_PATH_HEADER = "x-penstock-deployment-rest"
"""Set on REST requests whose path an engine may be asked for."""
INFERENCE = "/penstock.v1.InferenceService/"

_RUNTIME_SERVICE = "/penstock.v1.RuntimeService/"
CONTROL_PREFIXES = (
    "/penstock.v1.DeploymentService/",
    "/penstock.v1.ReplicaService/",
    "/penstock.v1.DecisionService/",
    "/penstock.v1.ClusterService/",
    _RUNTIME_SERVICE,
    "/grpc.reflection.",
    "/grpc.health.v1.Health/",
)

# A choice that falls on a replica that was tried is made once more, so often at most; after that the request goes there
# again. Two replicas are drawn at a time, and the one with fewer requests is taken, which is the one that fails at
# once: of two replicas it is taken three times out of four, and with 5 more choices 18 % of the retries went back to
# it. A canary's replicas may be chosen once in a hundred times.
_DRAWS = 200
# Sent again when nothing of the answer had come: to another replica once, then to the gateway, which
# explains. Not more often, so that a request that kills engines kills two at most.
INFERENCE_RETRY: dict[str, Any] = {
    "retry_on": "connect-failure,refused-stream,reset,unavailable",
    "num_retries": 2,
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": typed("retry.host.previous_hosts.v3.PreviousHostsPredicate"),
        }
    ],
    "host_selection_retry_max_attempts": _DRAWS,
    "retry_priority": {
        "name": "envoy.retry_priorities.previous_priorities",
        "typed_config": typed(
            "retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", update_frequency=2
        ),
    },
    "retry_back_off": {"base_interval": "0.01s", "max_interval": "0.1s"},
}

# An engine whose core has died answers 500 until its process ends, and one that is about to leave has its door closed.
# A 503 is not tried again by itself, for it may be the gateway's.
REST_RETRY = {
    **INFERENCE_RETRY,
    "retry_on": "connect-failure,refused-stream,reset,retriable-status-codes,retriable-headers",
    "retriable_status_codes": [500, 502],
    "retriable_headers": [{"name": ANSWERED_BY_HEADER, "string_match": {"exact": "door"}}],
}

# What a client calls itself is no business of a replica's.
_CREDENTIALS = ["authorization", "proxy-authorization", "api-key", "x-api-key", "cookie"]

_POST = {"name": ":method", "string_match": {"exact": "POST"}}
_GET = {"name": ":method", "string_match": {"exact": "GET"}}
_FOR_ENGINES = {"name": ENGINE_PATH_HEADER, "present_match": True}


def route_configurations(routes: tuple[Route, ...], settings: FrontDoorSettings) -> list[RouteConfiguration]:
    """The main listener's routes, and the runtime listener's where there is one."""
    control = [_control({"prefix": prefix}) for prefix in CONTROL_PREFIXES]
    pages = cors.policy(settings.cors_origins)
    control.append({**_control({"path": f"{INFERENCE}ListModels"}), "typed_per_filter_config": pages})
    # An unknown model: the gateway reads the message once more and says which models there are.
    unknown = {
        "match": {"prefix": INFERENCE},
        "route": {"cluster": GATEWAY, "timeout": "0s", "retry_policy": OWN_RETRY},
        "typed_per_filter_config": pages,
    }

    main = _configuration(MAIN, control, settings)
    named = _named(routes)
    main.virtual_hosts[0].routes.extend(_model(*one) for one in named)
    main.virtual_hosts[0].routes.extend(_rest_model(*one) for one in named)
    main.virtual_hosts[0].routes.extend(
        _configuration("", [unknown, *_rest_unknown(pages), *_control_as_rest(), _nothing_here()], settings)
        .virtual_hosts[0]
        .routes
    )
    if settings.runtime_listen is None:
        return [main]
    return [
        main,
        _configuration(RUNTIME, [_control({"prefix": _RUNTIME_SERVICE}), _nothing_here()], settings),
    ]


def names(routes: tuple[Route, ...]) -> dict[str, Route]:
    """What clients may put into `model`, by name, and the route that each leads to; an adapter's is its own part of its
    deployment's. Each once: a deployment's own name beats another one's served name, and that an adapter's."""
    taken = {route.deployment: route for route in routes}
    for route in routes:
        for name in route.model_names:
            taken.setdefault(name, route)
    for route in routes:
        for name in route.adapters:
            if name not in taken:
                taken[name] = route.to_adapter(name)
    return dict(sorted(taken.items()))


def _named(routes: tuple[Route, ...]) -> list[tuple[str, str, str, str, int, Routing]]:
    """(name, deployment, adapter, secret, requests in flight, routing): what a name's routes depend on."""
    return [
        (name, route.deployment, route.adapter, route.secret, route.admission.max_in_flight, route.routing)
        for name, route in names(routes).items()
    ]


def to_replicas(cluster: str, retry: dict[str, Any], routing: Routing) -> dict[str, Any]:
    """The part of a route's action by which a replica of a deployment's cluster of this name is chosen."""
    return {
        "cluster": affinity.target(cluster, routing),
        "hash_policy": affinity.hash_policy(routing),
        "retry_policy": retry,
    }


def to_subset(adapter: str) -> dict[str, Any]:
    """The part of a route's action that keeps a request for an adapter to those that have it."""
    match = {"metadata_match": {"filter_metadata": {SUBSETS: {ADAPTER: adapter}}}}
    return match if adapter else {}


def _whose(deployment: str, adapter: str) -> list[dict[str, Any]]:
    """For the gateway, should no replica answer."""
    return [
        put_header(DEPLOYMENT_HEADER, deployment),
        *([put_header(ADAPTER_HEADER, adapter)] if adapter else []),
    ]


def _configuration(
    name: str, routes: list[dict[str, Any]], settings: FrontDoorSettings
) -> RouteConfiguration:
    return build(
        RouteConfiguration(),
        {
            "name": name,
            "virtual_hosts": [
                {
                    "name": name,
                    "domains": ["*"],
                    "routes": routes,
                    "request_headers_to_remove": [MODEL_HEADER, ENGINE_PATH_HEADER],
                    "response_headers_to_remove": [SECRET_HEADER, ENGINE_KEY_HEADER],
                    # The gateway is told how often replicas were tried before it.
                    "include_request_attempt_count": True,
                    # Room for the frames' headers, so that the limit counts the message.
                    "request_body_buffer_limit": settings.max_request_bytes + MIB // 16,
                }
            ],
        },
    )


def _control(match: dict[str, Any]) -> dict[str, Any]:
    # Watches may be silent for as long as nothing changes; a client that is gone is found by HTTP/2 pings.
    return {
        # gRPC servers call another method an internal error.
        "match": {**match, "headers": [_POST]},
        "route": {"cluster": CONTROL, "timeout": "0s", "idle_timeout": "0s", "retry_policy": OWN_RETRY},
    }


@lru_cache(maxsize=8192)
def _model(
    name: str, deployment: str, adapter: str, secret: str, max_in_flight: int, routing: Routing
) -> RouteMessage:
    """Building a message from JSON takes a third of a millisecond, and there may be thousands of names."""
    return build(
        RouteMessage(),
        {
            "match": {
                "prefix": INFERENCE,
                "headers": [{"name": MODEL_HEADER, "string_match": {"exact": name}}],
            },
            "route": {
                **to_replicas(cluster_name(deployment), INFERENCE_RETRY, routing),
                "cluster_not_found_response_code": "SERVICE_UNAVAILABLE",
                # A stream takes as long as it takes. The client's deadline travels to the replica in grpc-
                # timeout.
                "timeout": "0s",
                **to_subset(adapter),
            },
            "metadata": {"filter_metadata": {METADATA: {"max_in_flight": max_in_flight}}},
            "typed_per_filter_config": affinity.looks_at_prompt(routing),
            "request_headers_to_add": [put_header(SECRET_HEADER, secret), *_whose(deployment, adapter)],
            "request_headers_to_remove": _CREDENTIALS,
        },
    )


@lru_cache(maxsize=8192)
def _rest_model(
    name: str, deployment: str, adapter: str, secret: str, max_in_flight: int, routing: Routing
) -> RouteMessage:
    return build(
        RouteMessage(),
        {
            "match": {
                "prefix": "/",
                "headers": [{"name": MODEL_HEADER, "string_match": {"exact": name}}, _FOR_ENGINES],
            },
            "route": {
                **to_replicas(rest_cluster_name(deployment), REST_RETRY, routing),
                "cluster_not_found_response_code": "SERVICE_UNAVAILABLE",
                "timeout": "0s",
                **to_subset(adapter),
            },
            "metadata": {"filter_metadata": {METADATA: {"max_in_flight": max_in_flight}}},
            "typed_per_filter_config": affinity.looks_at_prompt(routing),
            "request_headers_to_add": _whose(deployment, adapter),
            "request_headers_to_remove": _CREDENTIALS,
        },
    )


def _rest_unknown(pages: dict[str, Any]) -> list[dict[str, Any]]:
    """REST that no deployment is found for: the gateway lists the models, or says what is wrong. `pages`: whose may."""
    matches: list[dict[str, Any]] = [{"path": path, "headers": [_GET]} for path in DOCUMENTS]
    matches += [{"prefix": prefix} for prefix in openai.PREFIXES]
    matches.append({"prefix": "/", "headers": [_FOR_ENGINES]})
    return [
        {
            "match": match,
            "route": {"cluster": GATEWAY_REST, "timeout": "0s", "retry_policy": OWN_RETRY},
            "request_headers_to_add": [put_header(ASKED_MODEL_HEADER, f"%REQ({MODEL_HEADER})%")],
            "typed_per_filter_config": pages,
        }
        for match in matches
    ]


def _control_as_rest() -> list[dict[str, Any]]:
    """Of requests to the control API, until they are transcoded and the route is chosen anew."""
    return [
        {
            **_nothing_here(),
            "match": {
                "prefix": control_rest.PREFIX,
                "headers": [
                    {"name": ":method", "string_match": {"safe_regex": {"regex": "|".join(methods)}}}
                ],
            },
            "typed_per_filter_config": looks,
        }
        for methods, looks in control_rest.about_bodies().items()
    ]


def _nothing_here() -> dict[str, Any]:
    # Envoy turns 404 into UNIMPLEMENTED for gRPC.
    return {
        "match": {"prefix": "/"},
        "direct_response": {
            "status": 404,
            "body": {"inline_string": "no such service, method or path at this port"},
        },
    }
