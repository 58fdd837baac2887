"""Envoy's messages, written as in its documentation: JSON form in, protobuf out.

The stubs of Envoy's API carry no types, so a name misspelt is found here, at run time, by protobuf itself;
every resource is built in the unit tests for that reason.
"""

from __future__ import annotations

from typing import Any

from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_components_pb2 import Route as RouteMessage
from envoy.config.route.v3.route_components_pb2 import WeightedCluster
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.http.cors.v3 import cors_pb2
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2
from envoy.extensions.filters.http.grpc_field_extraction.v3 import config_pb2
from envoy.extensions.filters.http.grpc_json_transcoder.v3 import transcoder_pb2
from envoy.extensions.filters.http.grpc_web.v3 import grpc_web_pb2
from envoy.extensions.filters.http.header_mutation.v3 import header_mutation_pb2 as filter_mutation_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.http.transform.v3 import transform_pb2
from envoy.extensions.filters.http.upstream_codec.v3 import upstream_codec_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.http.early_header_mutation.header_mutation.v3 import header_mutation_pb2
from envoy.extensions.resource_monitors.downstream_connections.v3 import downstream_connections_pb2
from envoy.extensions.resource_monitors.fixed_heap.v3 import fixed_heap_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.retry.priority.previous_priorities.v3 import previous_priorities_config_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import json_format
from google.protobuf.message import Message

__all__ = [
    "ADS",
    "Bootstrap",
    "Cluster",
    "ClusterLoadAssignment",
    "Listener",
    "RouteConfiguration",
    "RouteMessage",
    "WeightedCluster",
    "build",
    "http_filter",
    "put_header",
    "typed",
]

ADS: dict[str, Any] = {"ads": {}, "resource_api_version": "V3"}

# Importing them is what lets `@type` name their messages.
_TYPES = (
    config_pb2,
    cors_pb2,
    downstream_connections_pb2,
    ext_authz_pb2,
    fixed_heap_pb2,
    grpc_web_pb2,
    header_mutation_pb2,
    http_connection_manager_pb2,
    http_protocol_options_pb2,
    lua_pb2,
    previous_hosts_pb2,
    previous_priorities_config_pb2,
    router_pb2,
    transcoder_pb2,
    transform_pb2,
    upstream_codec_pb2,
    filter_mutation_pb2,
)


def build(message: Message, fields: dict[str, Any]) -> Message:
    """`message` filled from its JSON form. Raises google.protobuf.json_format.ParseError for a field it does
    not have."""
    return json_format.ParseDict(fields, message)


def http_filter(name: str, message: str, **fields: Any) -> dict[str, Any]:
    """One of Envoy's HTTP filters, in JSON form; `message` as in `typed`, after `filters.http.`."""
    return {"name": f"envoy.filters.http.{name}", "typed_config": typed(f"filters.http.{message}", **fields)}


def put_header(key: str, value: str) -> dict[str, Any]:
    """Of a message's headers this one is so from now on, whatever it was: a HeaderValueOption, in JSON form."""
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def typed(name: str, /, **fields: Any) -> dict[str, Any]:
    """An Any in JSON form; `name` is the message's full name after `envoy.extensions.`."""
    return {"@type": f"type.googleapis.com/envoy.extensions.{name}", **fields}
