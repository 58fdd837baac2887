"""Every field of every request of the control API with values that a table might not hold: none of them is answered
as a bug, and a zero character is refused by the field's name.

The fields are taken from the contract, so that one which is added is tried too.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from penstock.rpc.api import NEED_DATABASE
from penstock.rpc.runtime import SECRET_KEY
from penstock.store.database import Database
from penstock.v1 import deployment_pb2, metadata_pb2, spec_pb2
from penstock.v1.deployment_pb2_grpc import DeploymentServiceStub
from tests.control_api import SECRET, ControlApi, control_api, make_attempt, refused
from tests.patience import PATIENCE_S

METHODS = [
    method
    for service in NEED_DATABASE
    for method in descriptor_pool.Default().FindServiceByName(service).methods
]
OF_AGENTS = [method for method in METHODS if method.containing_service.name == "RuntimeService"]
GIVEN = {"name": "a", "deployment": "a", "attempt": "token1", "phase": 2, "job_id": 7, "port": 1, "host": "h"}
"""By the names of the fields: what a request needs, so that what is odd beside it is looked at."""
NO_BUG = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.UNAUTHENTICATED,
}
WATCHED_S = 0.5
"""A watch of what is not there says nothing."""

_ODD: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.CPPTYPE_STRING: ("x" * 100_000, "\U0010ffff\ufffe\x7f\x1b", "-1", "9" * 5000),
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: (math.nan, math.inf, -1e308),
    FieldDescriptor.CPPTYPE_ENUM: (-1, 99),
    FieldDescriptor.CPPTYPE_BOOL: (True,),
}


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[ControlApi]:
    async with control_api(database, tmp_path) as made:
        service = DeploymentServiceStub(made.channel)
        await service.ApplyDeployment(deployment_pb2.ApplyDeploymentRequest(deployment=_wish()))
        await make_attempt(made, "a")
        yield made


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_what_no_table_holds_is_no_bug(
    api: ControlApi, method: MethodDescriptor, caplog: pytest.LogCaptureFixture
) -> None:
    for way in _leaves(method.input_type):
        for value in _ODD[_value(way[-1]).cpp_type]:
            request = _request(method)
            path = _put(request, way, value)
            code, said = await _status(api, method, request)
            is_quiet = method.server_streaming and code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert is_quiet or code in NO_BUG, (path, str(value)[:50], said)
    assert "bug" not in caplog.text


@pytest.mark.parametrize(
    "method", [each for each in METHODS if each not in OF_AGENTS], ids=lambda method: method.name
)
async def test_a_zero_character_is_refused_by_name(api: ControlApi, method: MethodDescriptor) -> None:
    tried = 0
    for way in _leaves(method.input_type):
        if _value(way[-1]).cpp_type != FieldDescriptor.CPPTYPE_STRING or way[-1].type == way[-1].TYPE_BYTES:
            continue
        request = _request(method)
        path = _put(request, way, "a\0b").removeprefix("deployment.")
        code, _, fields = await refused(_call(api, method, request, PATIENCE_S))
        assert code is grpc.StatusCode.INVALID_ARGUMENT, path
        assert fields[path] == "must not have the control character \\x00"
        tried += 1
    assert tried


@pytest.mark.parametrize("is_key", [True, False])
async def test_a_zero_character_in_a_map(api: ControlApi, is_key: bool) -> None:
    request = deployment_pb2.ApplyDeploymentRequest(deployment=_wish())
    request.deployment.metadata.labels.update({"a\0b": "c"} if is_key else {"a": "b\0c"})
    code, _, fields = await refused(DeploymentServiceStub(api.channel).ApplyDeployment(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(fields) == ['metadata.labels["a\\x00b"]' if is_key else 'metadata.labels["a"]']


async def test_who_and_why_have_an_end_when_a_deployment_is_applied(api: ControlApi) -> None:
    request = deployment_pb2.ApplyDeploymentRequest(deployment=_wish(), author="a" * 257, cause="c" * 1025)
    code, _, fields = await refused(DeploymentServiceStub(api.channel).ApplyDeployment(request))
    assert (code, set(fields)) == (grpc.StatusCode.INVALID_ARGUMENT, {"author", "cause"})


def _wish() -> deployment_pb2.Deployment:
    return deployment_pb2.Deployment(
        metadata=metadata_pb2.Metadata(name="a"),
        spec=spec_pb2.DeploymentSpec(model=spec_pb2.Model(path="/models/a")),
    )


def _request(method: MethodDescriptor) -> Any:
    """One that would be answered."""
    request = GetMessageClass(method.input_type)()
    for field in method.input_type.fields:
        if field.message_type is deployment_pb2.Deployment.DESCRIPTOR:
            getattr(request, field.name).CopyFrom(_wish())
        elif field.name in GIVEN:
            setattr(request, field.name, GIVEN[field.name])
    return request


async def _status(api: ControlApi, method: MethodDescriptor, request: Message) -> tuple[grpc.StatusCode, str]:
    try:
        await _call(api, method, request)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


async def _call(
    api: ControlApi, method: MethodDescriptor, request: Message, watched_s: float = WATCHED_S
) -> Message:
    """The answer, or the first of several, if there is one within `watched_s`."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    read = GetMessageClass(method.output_type).FromString
    metadata = ((SECRET_KEY, SECRET),)
    if not method.server_streaming:
        unary = api.channel.unary_unary(path, type(request).SerializeToString, read)
        return await unary(request, metadata=metadata, timeout=PATIENCE_S)
    stream = api.channel.unary_stream(path, type(request).SerializeToString, read)
    call = stream(request, metadata=metadata, timeout=watched_s)
    try:
        return await anext(aiter(call))
    finally:
        call.cancel()


def _leaves(
    kind: Descriptor, before: tuple[FieldDescriptor, ...] = ()
) -> Iterator[tuple[FieldDescriptor, ...]]:
    """The ways to all that is no message itself."""
    for field in kind.fields:
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            yield (*before, field)
        else:
            yield from _leaves(field.message_type, (*before, field))


def _value(leaf: FieldDescriptor) -> FieldDescriptor:
    """A map's values, or the field itself."""
    return leaf.message_type.fields_by_name["value"] if leaf.message_type is not None else leaf


def _put(request: Any, way: tuple[FieldDescriptor, ...], value: Any) -> str:
    """Sets it, as the first of each list on the way; returns its path."""
    path, holder = "", request
    for step in way:
        path += ("." if path else "") + step.name
        found = getattr(holder, step.name)
        if step.message_type is not None and step.message_type.GetOptions().map_entry:
            found["k"] = value
            path += '["k"]'
        elif step.message_type is not None:
            holder = found.add() if step.is_repeated else found
            path += "[0]" if step.is_repeated else ""
        elif step.is_repeated:
            found.append(value)
            path += "[0]"
        else:
            setattr(holder, step.name, value)
    return path
