"""What may pass to the transcoder is what protobuf's own reading of JSON knows, field by field.

Bodies are drawn with keys in either spelling, wrong ones, and ones given twice; their values are always right, so that
the two readings can differ in nothing but the keys.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import event, given
from hypothesis import strategies as st

from penstock.gateway import control_bodies
from penstock.v1 import deployment_pb2, replica_pb2

DEPLOYMENT = "/apis/v1/deployments/a"
WRONG = ("x", "Spec", "meta_data", "spec ", "@type", "drain-timeout-s", "")

Pairs = list[tuple[str, Any]]


def pairs(descriptor: Any) -> st.SearchStrategy[Pairs]:
    """An object for this message: its keys and values, in their order."""
    known = st.sampled_from(list(descriptor.fields)).flatmap(_pair)
    wrong: st.SearchStrategy[tuple[str, Any]] = st.tuples(
        st.sampled_from(WRONG), st.sampled_from([None, 1, "x", [], {}])
    )
    # Seldom wrong: else what is right deep inside is never reached. That both spellings of one field are that field
    # twice protobuf does not see.
    drawn = st.lists(st.one_of(*[known] * 15, wrong), max_size=4, unique_by=_spelled)
    return st.tuples(drawn, st.integers(0, 15)).map(lambda both: [*both[0], *both[0][both[1] : both[1] + 1]])


def _spelled(pair: tuple[str, Any]) -> str:
    return pair[0].replace("_", "").lower()


def _pair(field: FieldDescriptor) -> st.SearchStrategy[tuple[str, Any]]:
    return st.tuples(st.sampled_from([field.name, field.json_name]), _value(field))


def _value(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    kind = field.message_type
    # The time in a timestamp is text; and a oneof may have several nulls.
    if kind is None or kind.full_name.startswith("google.") or field.containing_oneof is not None:
        return st.none()
    if kind.GetOptions().map_entry:
        return st.lists(st.tuples(st.sampled_from("abcdef"), st.just("x")), max_size=2)
    one = pairs(kind)
    return st.lists(one.map(_Object), max_size=3).map(_Array) if field.is_repeated else one


class _Object(list[Any]):
    pass


class _Array(list[Any]):
    pass


def text(value: Any) -> str:
    """JSON that may have a key twice."""
    if isinstance(value, _Array):
        return f"[{', '.join(map(text, value))}]"
    if isinstance(value, list) and (not value or isinstance(value[0], tuple)):
        return "{" + ", ".join(f"{json.dumps(key)}: {text(inner)}" for key, inner in value) + "}"
    return json.dumps(value)


@pytest.mark.parametrize(
    ("verb", "path", "descriptor"),
    [
        ("PUT", DEPLOYMENT, deployment_pb2.Deployment.DESCRIPTOR),
        ("POST", f"{DEPLOYMENT}:plan", deployment_pb2.Deployment.DESCRIPTOR),
        ("POST", f"{DEPLOYMENT}:rollback", deployment_pb2.RollbackDeploymentRequest.DESCRIPTOR),
        ("POST", "/apis/v1/replicas/a-1:drain", replica_pb2.DrainReplicaRequest.DESCRIPTOR),
    ],
)
@given(data=st.data())
def test_what_passes_is_what_protobuf_knows(
    verb: str, path: str, descriptor: Any, data: st.DataObject
) -> None:
    body = text(data.draw(pairs(descriptor)))
    refusal = control_bodies.refusal(verb, path, body.encode())
    try:
        json_format.Parse(body, message_factory.GetMessageClass(descriptor)())
        known = True
    except json_format.ParseError:
        known = False
    event(f"known: {known}")
    assert (refusal is None) == known, (body, refusal)
