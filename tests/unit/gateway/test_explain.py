"""What is read of a request that no deployment is found for."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError

from penstock.gateway.explain import model_of
from penstock.v1 import inference_pb2

METHODS = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].methods


@pytest.mark.parametrize(
    "request_type", [method.input_type for method in METHODS if method.name != "ListModels"]
)
def test_every_request_has_its_model_where_it_is_looked_for(request_type: object) -> None:
    field = request_type.fields_by_name["model"]  # type: ignore[attr-defined]
    assert (field.number, field.type) == (1, FieldDescriptor.TYPE_STRING)


def test_the_model_is_read_whatever_else_there_is() -> None:
    request = inference_pb2.ChatRequest(model="llama-8b")
    request.messages.add(role=inference_pb2.ROLE_USER)
    assert model_of(request.SerializeToString()) == "llama-8b"
    assert model_of(b"") == ""


@pytest.mark.parametrize("wrong", [b"\x07\xff\xff", b"\x0a\xff\xff", b"\x0a\x01\xff"])
def test_what_is_no_message_is_told_apart(wrong: bytes) -> None:
    with pytest.raises(DecodeError):
        model_of(wrong)
