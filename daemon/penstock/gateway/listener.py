"""The ports: what is done to every request before a route is chosen, and what Envoy says when it must answer itself.

A listener that changes drains the connections of the one before it, so nothing here depends on deployments or
replicas.

Envoy reads `model` from the first gRPC message (grpc_field_extraction, by the API's descriptors) or, with `stream`,
from the JSON of a REST request (transform); a few lines of Lua put it into a header, by which the route is chosen, and
mark REST paths that lead to engines. Headers that only Penstock may set are taken from what clients send, first of all.
"""

from __future__ import annotations

import base64
from functools import lru_cache
from typing import Any

from google.rpc import code_pb2

from penstock.gateway import affinity, control_rest, cors, openai
from penstock.gateway.hosts import own_hosts
from penstock.gateway.messages import ADS, Listener, build, http_filter, put_header, typed
from penstock.gateway.replies import FIRST_LOOK, GRPC_STATUS_HEADER, TOO_LARGE, local_replies
from penstock.gateway.routes import (
    CONTROL_PREFIXES,
    ENGINE_PATH_HEADER,
    INFERENCE,
    MAIN,
    MODEL_HEADER,
    RUNTIME,
    STREAM_HEADER,
)
from penstock.gateway.settings import MIB, FrontDoorSettings, envoy_address
from penstock.v1 import inference_pb2

# Taken from what clients send. x-envoy-* would let them set retries and time-outs.
_RESERVED_PREFIXES = ("x-penstock-deployment", "x-penstock-engine-", "x-envoy-")
# Longest name that is looked up; longer ones, and those with control characters, are unknown models anyway.
_LONGEST_MODEL_NAME = 512

_PATHS = ", ".join(f'["{path}"]="{engine_path}"' for path, engine_path in openai.REWRITES.items())
# It comes after the filters that read bodies, so that one look settles the route.
_LUA = f"""
local engine_paths = {{ {_PATHS} }}
function envoy_on_request(request)
  local headers = request:headers()
  local name = headers:get("{MODEL_HEADER}")
  if not name then
    local found = request:streamInfo():dynamicMetadata():get("envoy.filters.http.grpc_field_extraction")
    local names = found and found["model"]
    name = names and names[1]
  end
  if type(name) == "string" and #name > 0 and #name <= {_LONGEST_MODEL_NAME} and not string.find(name, "%c") then
    headers:replace("{MODEL_HEADER}", name)
  else
    headers:remove("{MODEL_HEADER}")
  end
  if headers:get("{STREAM_HEADER}") ~= "true" then
    headers:remove("{STREAM_HEADER}")
  end
  if headers:get(":method") == "POST" then
    local path, query = string.match(headers:get(":path"), "^([^?]*)(.*)$")
    local engine_path = engine_paths[path]
    if engine_path then
      headers:replace("{ENGINE_PATH_HEADER}", engine_path)
      if engine_path ~= path then
        headers:replace(":path", engine_path .. query)
      end
    end
  end
  request:clearRouteCache()
end
"""

_NOWHERE = "/-/-"
# The main loop of a gRPC server in Python ends, and with it the server, over a path that is not UTF-8.
_PRINTABLE_PATH = f"""
function envoy_on_request(request)
  local headers = request:headers()
  if string.find(headers:get(":path") or "", "[^!-~]") then
    headers:replace(":path", "{_NOWHERE}")
    request:clearRouteCache()
  end
end
"""


def _first_look(settings: FrontDoorSettings) -> str:
    """What is done before `model` is looked for. The filter that does it waits for ever for the body of a request that
    ended with its headers, says of a large message no more than that it cannot be read, and of a path that gRPC has not
    that it is an internal error; which another method than POST is to gRPC servers."""
    return f"""
function envoy_on_request(request)
  local headers = request:headers()
  local path = headers:get(":path") or ""
  local is_grpc = string.find(headers:get("content-type") or "", "^application/grpc")
  if string.sub(path, 1, {len(INFERENCE)}) ~= "{INFERENCE}" then
    if is_grpc and not string.find(path, "^/[^/]+/[^/]+$") then
      headers:replace(":path", "{_NOWHERE}")
    end
    return
  end
  if headers:get(":method") ~= "POST" then
    headers:replace(":path", "{_NOWHERE}")
    return
  end
  if not is_grpc then  -- Read as a message's, the first bytes of JSON would be a length of gigabytes.
    request:respond({{[":status"] = "415"}}, "")
    return
  end
  for chunk in request:bodyChunks() do
    if chunk:length() >= 5 then
      local a, b, c, d = string.byte(chunk:getBytes(0, 5), 2, 5)
      if ((a * 256 + b) * 256 + c) * 256 + d > {settings.max_request_bytes} then
        request:streamInfo():dynamicMetadata():set("{FIRST_LOOK}", "{TOO_LARGE}", "yes")
      end
    end
    return
  end
  request:respond({{
    [":status"] = "200", ["content-type"] = "application/grpc", ["grpc-status"] = "{code_pb2.INVALID_ARGUMENT}",
    ["grpc-message"] = "the request has no message"
  }})
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
    filters = [http_filter("router", "router.v3.Router", suppress_envoy_headers=True)]
    if descriptors is not None:
        filters = [
            *([_lua("own_hosts", own_hosts(settings.hosts))] if settings.hosts else []),
            _lua("own_pages", cors.own_pages((control_rest.PREFIX, *CONTROL_PREFIXES))),
            cors.cors_filter(),
            http_filter("grpc_web", "grpc_web.v3.GrpcWeb"),
            *control_rest.filters(descriptors),
            _lua("first_look", _first_look(settings)),
            _field_extraction(descriptors),
            _model_from_json(),
            _lua("lua", _LUA),
            affinity.prefix_filter(),
            *filters,
        ]
    # Responses meet the filters from the last to the first.
    filters = [_grpc_status_again(), _lua("printable_path", _PRINTABLE_PATH), *filters]
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
        request_headers_timeout=f"{settings.request_headers_timeout_s}s",
        request_timeout=f"{settings.request_timeout_s}s",
        max_request_headers_kb=settings.max_header_kib,
        common_http_protocol_options={
            "idle_timeout": f"{settings.connection_idle_timeout_s}s",
            "max_headers_count": settings.max_headers,
        },
        http2_protocol_options={
            "max_concurrent_streams": settings.max_streams_per_connection,
            "initial_stream_window_size": 1 * MIB,
            "initial_connection_window_size": 16 * MIB,
            # Finds clients that vanished without a word, so that their engines stop.
            "connection_keepalive": {"interval": "30s", "timeout": "20s"},
        },
        local_reply_config=local_replies(settings),
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


def _field_extraction(descriptors: bytes) -> dict[str, Any]:
    service = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
    return http_filter(
        "grpc_field_extraction",
        "grpc_field_extraction.v3.GrpcFieldExtractionConfig",
        descriptor_set={"inline_bytes": base64.b64encode(descriptors).decode()},
        extractions_by_method={
            f"{service.full_name}.{method.name}": {"request_field_extractions": {"model": {}}}
            for method in service.methods
            if "model" in method.input_type.fields_by_name
        },
    )


def _lua(name: str, code: str) -> dict[str, Any]:
    return http_filter(name, "lua.v3.Lua", default_source_code={"inline_string": code})


def _grpc_status_again() -> dict[str, Any]:
    """After the gRPC-Web filter has put another one into an answer of Envoy's own (replies.py)."""
    put = {
        "header": {"key": "grpc-status", "value": f"%RESP({GRPC_STATUS_HEADER})%"},
        "append_action": "OVERWRITE_IF_EXISTS",
    }
    return http_filter(
        "grpc_status_again",
        "header_mutation.v3.HeaderMutation",
        mutations={"response_mutations": [{"append": put}, {"remove": GRPC_STATUS_HEADER}]},
    )


def _model_from_json() -> dict[str, Any]:
    """It acts on JSON alone, and holds the body back until it has all of it."""
    read = {MODEL_HEADER: "%REQUEST_BODY(model)%", STREAM_HEADER: "%REQUEST_BODY(stream)%"}
    puts = [{"append": put_header(key, value)} for key, value in read.items()]
    return http_filter(
        "transform",
        "transform.v3.TransformConfig",
        request_transformation={"headers_mutations": puts},
    )


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
