"""What a body to the control API as REST may not have."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from penstock.gateway import control_bodies
from penstock.gateway.documents import document

SCALE = "/apis/v1/deployments/chat:scale"
PUT = "/apis/v1/deployments/chat"
PLAN = f"{PUT}:plan"


def said(verb: str, path: str, body: Any) -> str | None:
    """The sentence of the refusal; None: it may pass. `body` is JSON, or bytes that are none."""
    refusal = control_bodies.refusal(
        verb, path, body if isinstance(body, bytes) else json.dumps(body).encode()
    )
    if refusal is None:
        return None
    assert refusal["code"] == 3
    message: str = refusal["message"]
    return message


@pytest.mark.parametrize(
    ("verb", "path", "body"),
    [
        ("POST", SCALE, {"replicas": 3, "resource_version": "7", "name": "chat"}),
        ("POST", SCALE, {"replicas": 3, "resourceVersion": None}),
        ("POST", SCALE + "?x=:plan", {"replicas": 3}),
        ("POST", SCALE, b""),
        ("PUT", PUT, {"metadata": {"name": "chat", "labels": {"any.key/is": "a", "fine": "b"}}, "spec": {}}),
        ("PUT", PUT, {"spec": {"engine": {"env": {"ANY_KEY": "1"}}, "drainTimeoutS": 7, "model": {"path": "/m"}}}),
        ("PUT", PUT, {"spec": {"placements": [{"time_limit": "1:00:00"}, {"partition": "p"}]}}),
        ("PUT", "/apis/v1/deployments/a%2Db", {"metadata": {"name": "a-b"}}),
        # Values, and what is no object, are the transcoder's to refuse; so are paths that are none.
        ("POST", SCALE, {"replicas": "many", "resource_version": ["x"]}),
        ("POST", SCALE, [1]),
        ("POST", SCALE, b"1" * 5000),
        ("PUT", SCALE, {"x": 1}),
        ("POST", SCALE + "/", {"x": 1}),
        ("POST", "/apis/v1/deployments/:scale", {"x": 1}),
        ("POST", "/apis/v1/nothing", b"\xff"),
        ("GET", PUT, {"x": 1}),
    ],
)  # fmt: skip
def test_what_may_pass(verb: str, path: str, body: Any) -> None:
    assert said(verb, path, body) is None


SCALES = "there are name, replicas, resource_version"
NOT_THE_PATHS = 'must be "chat", as in the request\'s path, not '


def mistyped(field: str, meant: str) -> str:
    return f"{field}: there is no such field; did you mean {meant}?"


@pytest.mark.parametrize(
    ("verb", "path", "body", "expected"),
    [
        ("POST", SCALE, {"replicass": 3}, mistyped("replicass", "replicas")),
        ("POST", SCALE, {"zzz": None}, f"zzz: there is no such field; {SCALES}"),
        ("POST", SCALE, {"Replicas": 3}, mistyped("Replicas", "replicas")),
        ("POST", "/apis/v1/deployments/a:b:scale", {"zzz": 1}, f"zzz: there is no such field; {SCALES}"),
        ("POST", "/apis/v1/deployments/c:rollback?x=1", {"revison": 3}, mistyped("revison", "revision")),
        ("POST", "/apis/v1/replicas/r:drain", {"force": True}, "force: there is no such field; there are name"),
        ("PUT", PUT, {"spec": {"replicass": 3}}, mistyped("spec.replicass", "replicas")),
        ("PUT", PUT + "//", {"spec": {"replicass": 3}}, mistyped("spec.replicass", "replicas")),
        ("PUT", PUT, {"kind": "Deployment"}, "kind: there is no such field; there are metadata, spec, status"),
        ("POST", PLAN, {"spec": {"placements": [{}, {"qoss": 1}]}}, mistyped("spec.placements[1].qoss", "qos")),
        # The transcoder takes one for a list of one, and lists in lists.
        ("PUT", PUT, {"spec": {"placements": {"qoss": 1}}}, mistyped("spec.placements.qoss", "qos")),
        ("PUT", PUT, {"spec": {"placements": [[{"qoss": 1}]]}}, mistyped("spec.placements[0][0].qoss", "qos")),
        ("POST", SCALE, b'{"replicas": 1, "replicas": 2}', "replicas: is given twice"),
        ("POST", SCALE, b'{"resource_version": "1", "resourceVersion": "1"}', "resourceVersion: is given twice"),
        ("POST", SCALE, b'{"replic\\u0061s": 1, "replicas": 2}', "replicas: is given twice"),
        ("PUT", PUT, b'{"metadata": {"labels": {"a": "1", "a": "2"}}}', 'metadata.labels["a"]: is given twice'),
        ("POST", SCALE, {"name": "other"}, f'name: {NOT_THE_PATHS}"other"'),
        ("POST", SCALE, {"name": ""}, f'name: {NOT_THE_PATHS}""'),
        ("PUT", PUT, {"metadata": {"name": "other"}}, f'metadata.name: {NOT_THE_PATHS}"other"'),
        ("PUT", PUT, {"spce": {}, "k": 1}, f"2 fields cannot be as they are: {mistyped('spce', 'spec')}; k: there"),
    ],
)  # fmt: skip
def test_what_is_refused(verb: str, path: str, body: Any, expected: str) -> None:
    found = said(verb, path, body)
    assert found is not None
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{replicas: 3}", "the body is not JSON: "),
        (b"{'replicas': 3}", "the body is not JSON: "),
        (b'{"replicas": 3,}', "the body is not JSON: "),
        (b'{"replicas": 3} {"replicas": 4}', "the body is not JSON: "),
        (b'{"replicas"', "the body is not JSON: "),
        (b" ", "the body is not JSON: "),
        ('{"replicas": 3}'.encode("utf-16"), "the body is not UTF-8: "),
        (b'{"resource_version": "\xe9"}', "the body is not UTF-8: "),
        (b"[" * 100_000, "the body is nested too deeply"),
    ],
)  # fmt: skip
def test_what_is_no_json_may_not_pass_whatever_the_transcoder_takes_it_for(
    body: bytes, expected: str
) -> None:
    assert (said("POST", SCALE, body) or "").startswith(expected)


def test_lists_in_lists_are_gone_through_as_deep_as_they_are() -> None:
    body = b'{"spec": {"placements": ' + b"[" * 900 + b'{"qoss": 1}' + b"]" * 900 + b"}}"
    assert said("PUT", PUT, body) in (
        "the body is nested too deeply",
        mistyped("spec.placements" + "[0]" * 900 + ".qoss", "qos"),
    )


def test_the_fields_are_in_the_details_and_neither_they_nor_the_keys_are_without_end() -> None:
    refusal = control_bodies.refusal("POST", SCALE, b'{"replicass": 3}')
    assert refusal is not None
    [details] = refusal["details"]
    assert details == {
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "field_violations": [
            {
                "field": "replicass",
                "description": "there is no such field; did you mean replicas?",
                "reason": "BAD_VALUE",
            }
        ],
    }
    many = {f"{'k' * 1000}{number}": 1 for number in range(500)}
    refusal = control_bodies.refusal("POST", SCALE, json.dumps(many).encode())
    assert refusal is not None
    assert len(refusal["details"][0]["field_violations"]) == 100
    assert len(json.dumps(refusal)) < 50_000


def test_every_body_of_the_openapi_document_is_looked_at() -> None:
    operations = json.loads(document("/apis/v1/openapi.json"))["paths"]
    seen = 0
    for path, verbs in operations.items():
        for verb, operation in verbs.items():
            if "requestBody" in operation:
                seen += 1
                found = said(verb.upper(), re.sub(r"\{[^}]*\}", "a", path), {"no_such": 1})
                assert (found or "").startswith("no_such: there is no such field"), (verb, path)
    assert seen == 9
