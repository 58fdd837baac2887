"""The control API as REST: Envoy's transcoder makes gRPC of JSON by the contract's http annotations, and JSON of the
answer.

The transcoder passes over fields that it does not know, in whatever is something like JSON, and has no option against
it; what a path says it lets the body say otherwise. So Envoy asks the gateway about each body before (ext_authz), and
control_bodies.py has the answer. The filter that asks is off but on the one route that requests with a body to paths of
this API have until they are transcoded: others do not meet it. Methods that take no body are told so by a few lines of
Lua, in the same way, for the transcoder would pass over the whole of it.
"""

from __future__ import annotations

import base64
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2
from google.rpc import error_details_pb2, status_pb2

from penstock.gateway.clusters import GATEWAY_QUESTIONS, OWN_RETRY
from penstock.gateway.messages import http_filter, typed
from penstock.gateway.settings import MIB

PREFIX = "/apis/"
"""The paths of the contract's http annotations begin so; once transcoded, Envoy has them in a header."""
METHODS_WITH_BODY = ("POST", "PUT", "PATCH")
METHODS_WITHOUT_BODY = ("GET", "DELETE")
SERVICES = (
    "penstock.v1.DeploymentService",
    "penstock.v1.ReplicaService",
    "penstock.v1.DecisionService",
    "penstock.v1.ClusterService",
)
"""Control services that are offered as REST, under /apis/v1."""
MAX_BODY_BYTES = 1 * MIB
"""As much as a manifest may have. Python looks through all of it, which takes a quarter of a second at worst, and
tens of times its size while it lasts."""

_CHECK = "ext_authz"
_NO_BODY = "no_body"
# Of a body whose length is said nothing is read. One that is there but empty is none.
_REFUSE_BODY = """
function envoy_on_request(request)
  local length = request:headers():get("content-length")
  if not length then
    local body = request:body()
    length = body and body:length() > 0 and "some"
  end
  if length and length ~= "0" then
    local method = request:headers():get(":method")
    request:respond({[":status"] = "400"}, method .. " takes no body here; what can be asked for goes into the query")
  end
end
"""
_CHECK_TIMEOUT_S = 30
"""For an answer that takes milliseconds. A gateway as late as that does not answer the call itself either."""


def filters(descriptors: bytes) -> list[dict[str, Any]]:
    """The HTTP filters, in their order. `descriptors`: a serialized FileDescriptorSet of the API."""
    no_body = {**http_filter(_NO_BODY, "lua.v3.Lua"), "disabled": True}
    return [no_body, _ask_about_body(), _transcoder(descriptors)]


def about_bodies() -> dict[tuple[str, ...], dict[str, Any]]:
    """By methods, the part of a route's `typed_per_filter_config` that has their requests' bodies looked at."""
    asks = typed("filters.http.ext_authz.v3.ExtAuthzPerRoute", check_settings={})
    refuses = typed("filters.http.lua.v3.LuaPerRoute", source_code={"inline_string": _REFUSE_BODY})
    return {
        METHODS_WITH_BODY: {f"envoy.filters.http.{_CHECK}": asks},
        METHODS_WITHOUT_BODY: {f"envoy.filters.http.{_NO_BODY}": refuses},
    }


def _ask_about_body() -> dict[str, Any]:
    """What the gateway answers but 200 is the client's answer; where it does not answer, the call could not either."""
    made = http_filter(
        _CHECK,
        "ext_authz.v3.ExtAuthz",
        transport_api_version="V3",
        http_service={
            "server_uri": {
                "uri": "http://penstock",
                "cluster": GATEWAY_QUESTIONS,
                "timeout": f"{_CHECK_TIMEOUT_S}s",
            },
            # A question may be asked again, whatever became of it.
            "retry_policy": {**OWN_RETRY, "retry_on": "connect-failure,refused-stream,reset"},
            # By default all of its headers are the client's.
            "authorization_response": {"allowed_client_headers": {"patterns": [{"exact": "content-type"}]}},
        },
        with_request_body={"max_request_bytes": MAX_BODY_BYTES},
        status_on_error={"code": "ServiceUnavailable"},
    )
    return {**made, "disabled": True}


def _transcoder(descriptors: bytes) -> dict[str, Any]:
    # Concatenated descriptor sets are one; with these a status and its details become JSON too.
    errors = descriptor_pb2.FileDescriptorSet()
    for known in (any_pb2, status_pb2, error_details_pb2):
        known.DESCRIPTOR.CopyToProto(errors.file.add())
    return http_filter(
        "grpc_json_transcoder",
        "grpc_json_transcoder.v3.GrpcJsonTranscoder",
        proto_descriptor_bin=base64.b64encode(descriptors + errors.SerializeToString()).decode(),
        services=list(SERVICES),
        print_options={
            "preserve_proto_field_names": True,
            # A watch is a line of JSON for each message.
            "stream_newline_delimited": True,
        },
        convert_grpc_status=True,
        request_validation_options={"reject_unknown_query_parameters": True},
    )
