"""The contract itself: its field rules compile, and what they refuse is named by its path."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import protovalidate
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor

import penstock.v1
from penstock.v1 import deployment_pb2


def _messages() -> Iterator[Descriptor]:
    for module in pkgutil.iter_modules(penstock.v1.__path__):
        if module.name.endswith("_pb2") and module.name != "buf_validate_pb2":
            stub = importlib.import_module(f"penstock.v1.{module.name}")
            for message in stub.DESCRIPTOR.message_types_by_name.values():
                yield from _with_nested(message)


def _with_nested(message: Descriptor) -> Iterator[Descriptor]:
    if not message.GetOptions().map_entry:
        yield message
        for nested in message.nested_types:
            yield from _with_nested(nested)


@pytest.mark.parametrize("message", [pytest.param(found, id=found.full_name) for found in _messages()])
def test_rules_compile(message: Descriptor) -> None:
    """A rule that does not compile raises on the first message of its type, whatever that holds."""
    protovalidate.collect_violations(message_factory.GetMessageClass(message)())


def _path(violation: protovalidate.Violation) -> str:
    """`spec.placements[1].partition`: the field path as a person would write it."""
    assert violation.proto.field is not None
    path = ""
    for element in violation.proto.field.elements:
        path += f".{element.field_name}"
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
    return path.removeprefix(".")


def test_violations_name_the_field() -> None:
    """protovalidate sees the rules of our google.protobuf messages, whose buf.validate stub is our own."""
    request = deployment_pb2.ApplyDeploymentRequest()
    request.deployment.metadata.name = "Not A Name"
    request.deployment.spec.model.path = "relative/path"
    request.deployment.spec.replicas = -1
    request.deployment.spec.engine.args.append("x" * 100_000)
    paths = {_path(violation) for violation in protovalidate.collect_violations(request)}
    assert paths == {
        "deployment.metadata.name",
        "deployment.spec.model.path",
        "deployment.spec.replicas",
        "deployment.spec.engine.args[0]",
    }


def test_a_small_deployment_is_accepted() -> None:
    request = deployment_pb2.ApplyDeploymentRequest()
    request.deployment.metadata.name = "smollm2"
    request.deployment.spec.model.path = "/models/smollm2"
    assert protovalidate.collect_violations(request) == []


def test_nothing_is_called_buf() -> None:
    """The stub of buf/validate lives in our package; a top-level `buf` would be another's."""
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("buf")
