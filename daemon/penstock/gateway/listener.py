"""The ports: what is done to every request before a route is chosen, and what Envoy says when it must answer itself.

A listener that changes drains the connections of the one before it, so nothing here depends on deployments or
replicas.

Envoy reads `model` from the first message (grpc_field_extraction, by the API's descriptors), a few lines of
Lua put it into a header, and the route is chosen by that header. Headers that only Penstock may set are taken
from what clients send, first of all.
"""

from __future__ import annotations

import base64
from functools import lru_cache
from typing import Any

from penstock.gateway.messages import ADS, Listener, build, typed
from penstock.gateway.routes import MAIN, MODEL_HEADER, RUNTIME
from penstock.gateway.settings import MIB, FrontDoorSettings, envoy_address
from penstock.v1 import inference_pb2

# Taken from what clients send. x-envoy-* would let them set retries and time-outs.
_RESERVED_PREFIXES = ("x-penstock-deployment", "x-envoy-")
# Longest name that is looked up; longer ones, and those with control characters, are unknown models anyway.
_LONGEST_MODEL_NAME = 512

_LUA = f"""
function envoy_on_request(request)
  local found = request:streamInfo():dynamicMetadata():get("envoy.filters.http.grpc_field_extraction")
  local names = found and found["model"]
  local name = names and names[1]
  if type(name) == "string" and #name > 0 and #name <= {_LONGEST_MODEL_NAME} and not string.find(name, "%c") then
    request:headers():replace("{MODEL_HEADER}", name)
    request:clearRouteCache()
  end
end
"""


def listeners(settings: FrontDoorSettings, descriptors: bytes) -> list[Listener]:
    """The main listener, and the runtime listener where one is wanted. `descriptors`: a serialized
    FileDescriptorSet of the API."""
    made = [_listener(MAIN, settings.listen, descriptors, settings)]
    if settings.runtime_listen is not None:
        made.append(_listener(RUNTIME, settings.runtime_listen, None, settings))
    return made


@lru_cache(maxsize=4)
def _listener(name: str, address: str, descriptors: bytes | None, settings: FrontDoorSettings) -> Listener:
    """With `descriptors` it can carry inference."""
    filters = [_filter("router", "router.v3.Router", suppress_envoy_headers=True)]
    if descriptors is not None:
        filters = [
            _filter("grpc_web", "grpc_web.v3.GrpcWeb"),
            _field_extraction(descriptors),
            _lua(),
            *filters,
        ]
    manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        codec_type="AUTO",
        rds={"route_config_name": name, "config_source": ADS},
        http_filters=filters,
        early_header_mutation_extensions=[_take_reserved_headers()],
        use_remote_address=True,
        server_name="penstock",
        stream_idle_timeout=f"{settings.stream_idle_timeout_s}s",
        request_headers_timeout="10s",
        common_http_protocol_options={"idle_timeout": "3600s"},
        http2_protocol_options={
            "max_concurrent_streams": settings.max_streams_per_connection,
            "initial_stream_window_size": 1 * MIB,
            "initial_connection_window_size": 16 * MIB,
            # Finds clients that vanished without a word, so that their engines stop.
            "connection_keepalive": {"interval": "30s", "timeout": "20s"},
        },
        local_reply_config=_local_replies(settings),
    )
    return build(
        Listener(),
        {
            "name": name,
            "address": envoy_address(address),
            "per_connection_buffer_limit_bytes": 1 * MIB,
            # A second front door on this port must fail, not take half of the connections.
            "enable_reuse_port": False,
            # Clients hold few connections for long, so each is given to the thread that has the fewest.
            "connection_balance_config": {"exact_balance": {}},
            "filter_chains": [
                {
                    "filters": [
                        {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
                    ]
                }
            ],
        },
    )


def _filter(name: str, message: str, **fields: Any) -> dict[str, Any]:
    return {"name": f"envoy.filters.http.{name}", "typed_config": typed(f"filters.http.{message}", **fields)}


def _field_extraction(descriptors: bytes) -> dict[str, Any]:
    service = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
    return _filter(
        "grpc_field_extraction",
        "grpc_field_extraction.v3.GrpcFieldExtractionConfig",
        descriptor_set={"inline_bytes": base64.b64encode(descriptors).decode()},
        extractions_by_method={
            f"{service.full_name}.{method.name}": {"request_field_extractions": {"model": {}}}
            for method in service.methods
            if "model" in method.input_type.fields_by_name
        },
    )


def _lua() -> dict[str, Any]:
    return _filter("lua", "lua.v3.Lua", default_source_code={"inline_string": _LUA})


def _take_reserved_headers() -> dict[str, Any]:
    matchers: list[dict[str, Any]] = [
        {"prefix": prefix, "ignore_case": True} for prefix in _RESERVED_PREFIXES
    ]
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": typed(
            "http.early_header_mutation.header_mutation.v3.HeaderMutation",
            mutations=[
                {"remove": MODEL_HEADER},
                *({"remove_on_match": {"key_matcher": matcher}} for matcher in matchers),
            ],
        ),
    }


def _local_replies(settings: FrontDoorSettings) -> dict[str, Any]:
    """Sentences for what Envoy answers itself. The gRPC status follows from the HTTP status: UNAVAILABLE for
    all but the first."""
    size = settings.max_request_bytes // MIB
    at_once = settings.max_requests_per_deployment
    return {
        "mappers": [
            # What grpc_field_extraction says when it cannot read the message (FAILED_PRECONDITION when it is
            # too large).
            _reply(
                _status_is(400),
                f"the request cannot be read (a message may have {size} MiB at most and must not be compressed): "
                "%LOCAL_REPLY_BODY%",
            ),
            _reply(
                _flag("UO"),
                f"too many requests at once for this deployment (the limit is {at_once}); try again later",
            ),
            _reply(
                _flag("UH", "UF", "URX", "NC"),
                "nothing that could answer this can be reached now; try again in a few seconds",
            ),
            _reply(_flag("UC", "UR"), "the replica ended before it answered"),
            _reply(_flag("SI"), f"nothing moved on this stream for {settings.stream_idle_timeout_s} s"),
        ]
    }


def _reply(condition: dict[str, Any], sentence: str) -> dict[str, Any]:
    return {"filter": condition, "body_format_override": {"text_format_source": {"inline_string": sentence}}}


def _flag(*flags: str) -> dict[str, Any]:
    return {"response_flag_filter": {"flags": list(flags)}}


def _status_is(status: int) -> dict[str, Any]:
    comparison = {"op": "EQ", "value": {"default_value": status, "runtime_key": "penstock.unused"}}
    return {"status_code_filter": {"comparison": comparison}}
