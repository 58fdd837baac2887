"""Writes the OpenAPI documents that the front door serves: of the control API from the protos' http annotations, and of
the OpenAI API from the table of its paths.

`--check` writes nothing and fails when a document is stale. Both are valid OpenAPI 3.1, or this fails.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2
from openapi_spec_validator import validate

from deploy.dev import openapi_inference
from deploy.dev.openapi_schemas import Contract, Schema, Schemas
from deploy.dev.proto import ROOT, STUBS, own_protos, protoc
from penstock.gateway.control_bodies import annotated
from penstock.gateway.control_rest import SERVICES

DOCUMENTS = STUBS
"""Beside the other things that are made of the contract, as they are shipped with them."""

_VARIABLE = re.compile(r"\{([^}]+)\}")
# HTTP status -> the gRPC statuses behind it.
_ERRORS = {
    400: "INVALID_ARGUMENT or FAILED_PRECONDITION: it cannot be read, or is refused; the details name the fields.",
    404: "NOT_FOUND, or UNIMPLEMENTED for a path and method that are none of this API's.",
    408: "The request took longer to arrive than the front door allows.",
    409: "ALREADY_EXISTS or ABORTED.",
    413: "The request's body is over the limit.",
    429: "RESOURCE_EXHAUSTED, such as one watcher too many.",
    431: "The request's headers are too many or too long.",
    500: "INTERNAL: a bug, with an id that the log has too.",
    501: "UNIMPLEMENTED: what this release refuses by name.",
    503: "UNAVAILABLE: PostgreSQL or the control API does not answer; the call may be repeated.",
}


def control() -> Schema:
    """The document of the control API."""
    contract = _contract()
    methods = [
        (service, index, method)
        for service in SERVICES
        for index, method in enumerate(contract.services[service].method)
    ]
    schemas = Schemas(contract, _given_by_paths(contract, [method for _, _, method in methods]))
    paths: Schema = {}
    for service, index, method in methods:
        verb, template, body = _rule(method)
        path = _VARIABLE.sub(lambda match: "{" + match[1].rpartition(".")[2] + "}", template)
        operation = {
            "operationId": method.name,
            "tags": [service.rpartition(".")[2]],
            **_said(contract.comment(service, 2, index)),
            "parameters": _parameters(contract, schemas, method.input_type, template, body),
            "responses": _responses(schemas, method),
        }
        if body:
            without = frozenset(_VARIABLE.findall(template))
            if body == "*":
                schema = schemas.message(method.input_type, without)
            else:
                schema = schemas.reference(_field(contract, method.input_type, body).type_name)
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": schema}},
            }
        paths.setdefault(path, {})[verb] = operation
    schemas.made["Status"] = _status()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Penstock's control API",
            "version": "v1",
            "description": "Deployments, replicas, decisions and the cluster, as JSON over HTTP. The same calls as"
            " gRPC are in api/protos. Names are those of the protos; a field that has its zero value is left out of"
            " answers; 64-bit integers are written as strings, and read as numbers too. Errors are google.rpc.Status.",
        },
        "tags": [
            {"name": service.rpartition(".")[2], **_said(contract.comment(service))} for service in SERVICES
        ],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(schemas.made.items())),
            "responses": {
                str(status): {"description": meaning, **_json({"$ref": "#/components/schemas/Status"})}
                for status, meaning in _ERRORS.items()
            },
        },
    }


def _contract() -> Contract:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "set.binpb"
        protoc(f"--descriptor_set_out={path}", "--include_source_info", *own_protos())
        return Contract(descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()))


def _rule(method: descriptor_pb2.MethodDescriptorProto) -> tuple[str, str, str]:
    """(verb, path, body) of its http annotation."""
    try:
        return annotated(method.options)
    except ValueError as error:
        raise SystemExit(f"{method.name}: {error}") from error


def _given_by_paths(
    contract: Contract, methods: list[descriptor_pb2.MethodDescriptorProto]
) -> frozenset[tuple[str, str]]:
    """(message, field) of everything on the way to a variable in a path."""
    found = set()
    for method in methods:
        for variable in _VARIABLE.findall(_rule(method)[1]):
            message = method.input_type
            for name in variable.split("."):
                found.add((message, name))
                message = _field(contract, message, name).type_name
    return frozenset(found)


def _field(contract: Contract, message: str, name: str) -> descriptor_pb2.FieldDescriptorProto:
    return next(field for field in contract.messages[message].field if field.name == name)


def _parameters(contract: Contract, schemas: Schemas, request: str, template: str, body: str) -> list[Schema]:
    made = []
    in_path = _VARIABLE.findall(template)
    for variable in in_path:
        message, names = request, variable.split(".")
        for name in names[:-1]:
            message = _field(contract, message, name).type_name
        schema = schemas.field(message, _index(contract, message, names[-1]))
        made.append(
            {
                "name": names[-1],
                "in": "path",
                "required": True,
                **_said(schema.pop("description", "")),
                "schema": {"pattern": "^[^/]+$", **schema},
            }
        )
    if body == "*":
        return made
    for index, field in enumerate(contract.messages[request].field):
        if field.name == body or field.name in in_path:
            continue
        schema = schemas.field(request, index)
        if field.type_name == ".google.protobuf.FieldMask":
            # The transcoder fills messages field by field.
            name = f"{field.name}.paths"
            schema = {
                "type": "array",
                "items": {"type": "string"},
                **_said(contract.comment(request, 2, index)),
            }
        else:
            name = field.name
        made.append({"name": name, "in": "query", **_said(schema.pop("description", "")), "schema": schema})
    return made


def _index(contract: Contract, message: str, name: str) -> int:
    return [field.name for field in contract.messages[message].field].index(name)


def _responses(schemas: Schemas, method: descriptor_pb2.MethodDescriptorProto) -> Schema:
    said = "A line of JSON for each message, until the client leaves." if method.server_streaming else "Done."
    found: Schema = {"200": {"description": said, **_json(schemas.reference(method.output_type))}}
    found |= {str(status): {"$ref": f"#/components/responses/{status}"} for status in _ERRORS}
    return found


def _status() -> Schema:
    return {
        "type": "object",
        "description": "google.rpc.Status.",
        "required": ["code", "message"],
        "properties": {
            "code": {"type": "integer", "minimum": 1, "maximum": 16, "description": "google.rpc.Code."},
            "message": {"type": "string", "description": "One sentence for a person."},
            "details": {
                "type": "array",
                "description": "Such as google.rpc.BadRequest, which names the fields.",
                "items": {
                    "type": "object",
                    "properties": {"@type": {"type": "string"}},
                    "required": ["@type"],
                },
            },
        },
        "additionalProperties": False,
    }


def _json(schema: Schema) -> Schema:
    return {"content": {"application/json": {"schema": schema}}}


def _said(text: str) -> Schema:
    return {"description": text} if text else {}


def documents() -> dict[Path, bytes]:
    """Each document by its file. Raises OpenAPIValidationError for one that is not valid."""
    made: dict[Path, Any] = {
        DOCUMENTS / "control.openapi.json": control(),
        DOCUMENTS / "inference.openapi.json": openapi_inference.document(),
    }
    for document in made.values():
        validate(document)
    return {path: (json.dumps(document, indent=1) + "\n").encode() for path, document in made.items()}


def main() -> None:
    """Writes the documents, or checks them."""
    stale = {
        path: text for path, text in documents().items() if not path.exists() or path.read_bytes() != text
    }
    if "--check" in sys.argv[1:]:
        if stale:
            names = ", ".join(str(path.relative_to(ROOT)) for path in sorted(stale))
            sys.exit(f"not what the code gives; run `make proto` and commit: {names}")
        return
    for path, text in stale.items():
        path.write_bytes(text)


if __name__ == "__main__":
    main()
