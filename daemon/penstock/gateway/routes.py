"""Which request goes to which cluster: by service, and inference by the model that Envoy has read from the message.

The names that clients may put into `model` change when deployments come and go, not when replicas do.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from penstock.core.routing import Route
from penstock.gateway.clusters import CONTROL, GATEWAY, SECRET_HEADER, cluster_name
from penstock.gateway.messages import RouteConfiguration, RouteMessage, build, typed
from penstock.gateway.settings import MIB, FrontDoorSettings

MAIN = "main"
RUNTIME = "runtime"
MODEL_HEADER = "x-model"
DEPLOYMENT_HEADER = "x-penstock-deployment"
INFERENCE = "/penstock.v1.InferenceService/"

_RUNTIME_SERVICE = "/penstock.v1.RuntimeService/"
_CONTROL_PREFIXES = (
    "/penstock.v1.DeploymentService/",
    "/penstock.v1.ReplicaService/",
    "/penstock.v1.DecisionService/",
    "/penstock.v1.ClusterService/",
    _RUNTIME_SERVICE,
    "/grpc.reflection.",
    "/grpc.health.v1.Health/",
)

# The request was never handled, so it may be sent again; a second later a restarted control API is back.
_CONTROL_RETRY = {
    "retry_on": "connect-failure,refused-stream,reset-before-request",
    "num_retries": 5,
    "retry_back_off": {"base_interval": "0.1s", "max_interval": "0.5s"},
}
# Sent again when nothing of the answer had come: to another replica once, then to the gateway, which
# explains. Not more often, so that a request that kills engines kills two at most.
INFERENCE_RETRY = {
    "retry_on": "connect-failure,refused-stream,reset,unavailable",
    "num_retries": 2,
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": typed("retry.host.previous_hosts.v3.PreviousHostsPredicate"),
        }
    ],
    "host_selection_retry_max_attempts": 5,
    "retry_priority": {
        "name": "envoy.retry_priorities.previous_priorities",
        "typed_config": typed(
            "retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", update_frequency=2
        ),
    },
    "retry_back_off": {"base_interval": "0.01s", "max_interval": "0.1s"},
}


def route_configurations(routes: tuple[Route, ...], settings: FrontDoorSettings) -> list[RouteConfiguration]:
    """The main listener's routes, and the runtime listener's where there is one."""
    control = [_control({"prefix": prefix}) for prefix in _CONTROL_PREFIXES]
    control.append(_control({"path": f"{INFERENCE}ListModels"}))
    # An unknown model: the gateway reads the message once more and says which models there are.
    unknown = {
        "match": {"prefix": INFERENCE},
        "route": {"cluster": GATEWAY, "timeout": "0s", "retry_policy": _CONTROL_RETRY},
    }

    main = _configuration(MAIN, control, settings)
    main.virtual_hosts[0].routes.extend(_model(*name) for name in _names(routes))
    main.virtual_hosts[0].routes.extend(
        _configuration("", [unknown, _nothing_here()], settings).virtual_hosts[0].routes
    )
    if settings.runtime_listen is None:
        return [main]
    return [
        main,
        _configuration(RUNTIME, [_control({"prefix": _RUNTIME_SERVICE}), _nothing_here()], settings),
    ]


def _names(routes: tuple[Route, ...]) -> list[tuple[str, str, str]]:
    """(name, deployment, secret) for every name, each once: a deployment's own name beats another one's
    served name."""
    taken = {route.deployment: route for route in routes}
    for route in routes:
        for name in route.model_names:
            taken.setdefault(name, route)
    return [(name, route.deployment, route.secret) for name, route in sorted(taken.items())]


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
                    "request_headers_to_remove": [MODEL_HEADER],
                    "response_headers_to_remove": [SECRET_HEADER],
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
        "match": match,
        "route": {"cluster": CONTROL, "timeout": "0s", "idle_timeout": "0s", "retry_policy": _CONTROL_RETRY},
    }


@lru_cache(maxsize=8192)
def _model(name: str, deployment: str, secret: str) -> RouteMessage:
    """Building a message from JSON takes a third of a millisecond, and there may be thousands of names."""
    return build(
        RouteMessage(),
        {
            "match": {
                "prefix": INFERENCE,
                "headers": [{"name": MODEL_HEADER, "string_match": {"exact": name}}],
            },
            "route": {
                "cluster": cluster_name(deployment),
                "cluster_not_found_response_code": "SERVICE_UNAVAILABLE",
                # A stream takes as long as it takes. The client's deadline travels to the replica in grpc-
                # timeout.
                "timeout": "0s",
                "retry_policy": INFERENCE_RETRY,
            },
            "request_headers_to_add": [
                {
                    "header": {"key": SECRET_HEADER, "value": secret},
                    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                },
                {
                    "header": {"key": DEPLOYMENT_HEADER, "value": deployment},
                    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                },
            ],
        },
    )


def _nothing_here() -> dict[str, Any]:
    # Envoy turns 404 into UNIMPLEMENTED for gRPC.
    return {
        "match": {"prefix": "/"},
        "direct_response": {
            "status": 404,
            "body": {"inline_string": "no such service or method at this port"},
        },
    }
