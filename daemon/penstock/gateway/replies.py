"""What Envoy says when it must answer itself: google.rpc's shape to clients of gRPC and of the control API, OpenAI's to
all others.

The gRPC status follows from the HTTP status (UNAVAILABLE for most) where none is given here.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from google.rpc import code_pb2

from penstock import details
from penstock.gateway import control_rest, openai
from penstock.gateway.cors import FOREIGN_PAGE
from penstock.gateway.hold import RETRY_AFTER_S
from penstock.gateway.hosts import WRONG_HOST_STATUS
from penstock.gateway.messages import put_header
from penstock.gateway.routes import DEPLOYMENT_HEADER
from penstock.gateway.settings import MIB, FrontDoorSettings

OVERLOAD_RETRY_AFTER_S = 1
"""Requests end all the time; replicas do not come back so soon."""
GRPC_STATUS_HEADER = "x-penstock-grpc-status"
"""The gRPC status once more: Envoy's gRPC-Web puts the one that follows from the HTTP status over it, and the listener
puts it back."""
FIRST_LOOK = "penstock.first_look"
TOO_LARGE = "too_large"
"""Set in the metadata of a gRPC request whose message says that it is larger than it may be."""
_SAID_TOO_LARGE = {
    "matcher": {
        "filter": FIRST_LOOK,
        "path": [{"key": TOO_LARGE}],
        "value": {"string_match": {"exact": "yes"}},
    },
    "match_if_key_not_found": False,
}
_NO_SUCH_CONTROL_PATH = "no such path at this port; GET /apis/v1/openapi.json has those that there are"


@dataclass(frozen=True, slots=True)
class _Answer:
    """One case: when, what, and the status of each kind of client. None: as Envoy has it."""

    when: dict[str, Any]
    sentence: str
    code: str
    status: int
    grpc_status: int | None = None
    retry_after_s: int | None = None
    again: bool = True
    """Whether it may be sent again at all."""
    limit: str = ""
    """Name of the limit that was reached."""
    limit_value: str = ""
    """Told to REST clients alone: gRPC's two copies of the sentence must be equal, and one of them is fixed."""


def local_replies(settings: FrontDoorSettings) -> dict[str, Any]:
    """Envoy's LocalReplyConfig, in JSON form. Of the mappers the first that fits is used."""
    # To clients of the control API as REST: what is wrong with a body in the gateway's words, what the transcoder could
    # not read, and paths that are none of its own.
    mappers = [
        _as_said(_both(_flag("UAEX"), _status_is(400))),
        _for_control(_status_is(400), code_pb2.INVALID_ARGUMENT, "%LOCAL_REPLY_BODY%"),
        _for_control(_status_is(404), code_pb2.UNIMPLEMENTED, _NO_SUCH_CONTROL_PATH),
        _for_control(
            _status_is(413),
            code_pb2.RESOURCE_EXHAUSTED,
            f"the request's body is longer than {control_rest.MAX_BODY_BYTES // MIB} MiB",
        ),
    ]
    for answer in _answers(settings):
        code = code_pb2.UNAVAILABLE if answer.grpc_status is None else answer.grpc_status
        mappers += [
            _for_control(answer.when, code, answer.sentence, answer.retry_after_s),
            _for_grpc(answer),
            _for_rest(answer),
        ]
    size = settings.max_request_bytes // MIB
    unreadable = (
        f"the request cannot be read (a message may have {size} MiB at most and must not be compressed): "
        "%LOCAL_REPLY_BODY%"
    )
    # What grpc_field_extraction says when it cannot read the message, or the path. It has statuses of its own for some
    # of these, and for others gRPC's mapping of HTTP would give INTERNAL.
    mappers.append(
        {
            "filter": _both(_is_grpc(), _status_is(400)),
            "headers_to_add": _headers(_grpc_status(code_pb2.INVALID_ARGUMENT)),
            "body_format_override": {"text_format_source": {"inline_string": unreadable}},
        }
    )
    # What is no HTTP, or one of long ago, is the client's own fault.
    for status, which in ((400, _both(_not_grpc(), _status_is(499, "LE"))), (500, _not_grpc())):
        said = openai.error(status, "%LOCAL_REPLY_BODY% (HTTP %RESPONSE_CODE%)", "front_door")
        mappers.append({"filter": which, "body_format_override": {"json_format": said}})
    return {"mappers": mappers}


def _answers(settings: FrontDoorSettings) -> list[_Answer]:
    size = settings.max_request_bytes // MIB
    exhausted = code_pb2.RESOURCE_EXHAUSTED
    return [
        _Answer(
            _flag("UO"),
            "too many requests are in flight for this deployment (limit: max_in_flight); try again later",
            "max_in_flight",
            429,
            exhausted,
            OVERLOAD_RETRY_AFTER_S,
            limit="max_in_flight",
            limit_value="%METADATA(ROUTE:penstock:max_in_flight)%",
        ),
        _Answer(
            _flag("OM"),
            "the front door has no memory left for more requests (max_heap_bytes); try again later",
            "max_heap_bytes",
            503,
            exhausted,
            RETRY_AFTER_S,
            limit="max_heap_bytes",
        ),
        _Answer(
            {"or_filter": {"filters": [_status_is(413), {"metadata_filter": _SAID_TOO_LARGE}]}},
            f"the request's body is longer than {size} MiB (max_request_bytes)",
            "max_request_bytes",
            413,
            exhausted,
            limit="max_request_bytes",
        ),
        _Answer(
            _status_is(431),
            f"the request's headers are more than {settings.max_headers} (max_headers) or longer than "
            f"{settings.max_header_kib} KiB together (max_header_kib)",
            "max_headers",
            431,
            exhausted,
            limit="max_headers",
        ),
        # The last try's own flags come with this one, and say nothing of those before: replicas may have had it, and
        # then the gateway could not be reached.
        _Answer(
            _both(_flag("URX"), _has_header(DEPLOYMENT_HEADER)),
            "every try at this ended, or could not connect, before the first byte of an answer",
            "tries_failed",
            503,
            retry_after_s=RETRY_AFTER_S,
        ),
        _Answer(
            {
                "or_filter": {
                    "filters": [
                        _flag("UH", "UF", "URX", "NC"),
                        # The gateway could not be asked about a body.
                        _both(_flag("UAEX"), _status_is(503)),
                    ]
                }
            },
            "nothing that could answer this can be reached now; try again in a few seconds",
            "unreachable",
            503,
            retry_after_s=RETRY_AFTER_S,
        ),
        _Answer(_flag("UC", "UR"), "the replica ended before it answered", "replica_ended", 503, again=False),
        _Answer(
            _flag("SI"),
            f"nothing moved on this stream for {settings.stream_idle_timeout_s} s (stream_idle_timeout_s)",
            "stream_idle_timeout_s",
            504,
        ),
        _Answer(
            _status_is(408),
            f"the request did not arrive within {settings.request_headers_timeout_s} s for its headers "
            f"(request_headers_timeout_s) and {settings.request_timeout_s} s in all (request_timeout_s)",
            "request_timeout_s",
            408,
            code_pb2.DEADLINE_EXCEEDED,
            limit="request_timeout_s",
        ),
        _Answer(
            _status_is(415),
            "gRPC's calls take application/grpc or application/grpc-web; for JSON there is the OpenAI API under /v1",
            "unsupported_media_type",
            415,
        ),
        _Answer(_status_is(403), FOREIGN_PAGE, "foreign_page", 403, code_pb2.PERMISSION_DENIED),
        _Answer(
            _status_is(WRONG_HOST_STATUS),
            "this front door is not called %REQ(:AUTHORITY):100%; its names are in penstock.toml (hosts)",
            "wrong_host",
            WRONG_HOST_STATUS,
            code_pb2.PERMISSION_DENIED,
        ),
        _Answer(
            _status_is(404),
            "no such service, method or path at this port",
            "no_such_path",
            404,
            code_pb2.UNIMPLEMENTED,
        ),
    ]


def _for_control(
    when: dict[str, Any], code: int, sentence: str, retry_after_s: int | None = None
) -> dict[str, Any]:
    """google.rpc.Status as JSON, which is what the control API's own errors become."""
    paths = [
        {"header_filter": {"header": {"name": name, "string_match": {"prefix": control_rest.PREFIX}}}}
        for name in (":path", "x-envoy-original-path")
    ]
    return {
        "filter": _both({"or_filter": {"filters": paths}}, when),
        "headers_to_add": _headers({} if retry_after_s is None else {"retry-after": str(retry_after_s)}),
        "body_format_override": {"json_format": {"code": code, "message": sentence}},
    }


def _as_said(when: dict[str, Any]) -> dict[str, Any]:
    """JSON that whoever made the answer has made."""
    return {
        "filter": when,
        "body_format_override": {
            "text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"},
            "content_type": "application/json",
        },
    }


def _for_grpc(answer: _Answer) -> dict[str, Any]:
    headers = {} if answer.grpc_status is None else _grpc_status(answer.grpc_status)
    if answer.limit or answer.retry_after_s or not answer.again:
        headers[details.KEY] = _details(answer)
    return {
        "filter": _both(_is_grpc(), answer.when),
        "headers_to_add": _headers(headers),
        "body_format_override": {"text_format_source": {"inline_string": answer.sentence}},
    }


def _for_rest(answer: _Answer) -> dict[str, Any]:
    headers = {}
    if answer.retry_after_s is not None:
        headers["retry-after"] = str(answer.retry_after_s)
    if not answer.again:
        headers |= openai.NOT_AGAIN
    sentence = answer.sentence
    if answer.limit_value:
        sentence = sentence.replace(answer.limit, f"{answer.limit} = {answer.limit_value}", 1)
    return {
        "filter": _both(_not_grpc(), answer.when),
        "status_code": answer.status,
        "headers_to_add": _headers(headers),
        "body_format_override": {"json_format": openai.error(answer.status, sentence, answer.code)},
    }


def _grpc_status(code: int) -> dict[str, str]:
    return dict.fromkeys(("grpc-status", GRPC_STATUS_HEADER), str(code))


def _details(answer: _Answer) -> str:
    """google.rpc.Status as gRPC carries it in a trailer."""
    code = answer.grpc_status if answer.grpc_status is not None else code_pb2.UNAVAILABLE
    metadata = {"limit": answer.limit} if answer.limit else {}
    said: list[Message] = [details.error_info(answer.code.upper(), metadata)]
    if answer.retry_after_s:
        said.append(details.retry_info(answer.retry_after_s))
    status = details.status(code, answer.sentence, *said)
    return base64.b64encode(status.SerializeToString(deterministic=True)).decode().rstrip("=")


def _headers(fields: dict[str, str]) -> list[dict[str, Any]]:
    return [put_header(key, value) for key, value in fields.items()]


def _both(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {"and_filter": {"filters": [first, second]}}


def _is_grpc(*, invert: bool = False) -> dict[str, Any]:
    matcher = {
        "name": "content-type",
        "string_match": {"prefix": "application/grpc"},
        "invert_match": invert,
        # Without the header a matcher is false, inverted or not.
        "treat_missing_header_as_empty": True,
    }
    return {"header_filter": {"header": matcher}}


def _has_header(name: str) -> dict[str, Any]:
    return {"header_filter": {"header": {"name": name, "present_match": True}}}


def _not_grpc() -> dict[str, Any]:
    return _is_grpc(invert=True)


def _flag(*flags: str) -> dict[str, Any]:
    return {"response_flag_filter": {"flags": list(flags)}}


def _status_is(status: int, op: str = "EQ") -> dict[str, Any]:
    comparison = {"op": op, "value": {"default_value": status, "runtime_key": "penstock.unused"}}
    return {"status_code_filter": {"comparison": comparison}}
