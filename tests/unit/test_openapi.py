"""The OpenAPI documents: valid, complete, and of the same mind as the contract's field rules."""

from __future__ import annotations

import json
from typing import Any

import protovalidate
import pytest
from google.protobuf import json_format
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from penstock.gateway import openai
from penstock.gateway.control_rest import SERVICES
from penstock.gateway.documents import DOCUMENTS, document
from penstock.v1 import cluster_pb2, decision_pb2, deployment_pb2, replica_pb2

CONTROL: Any = json.loads(document("/apis/v1/openapi.json"))
INFERENCE: Any = json.loads(document("/v1/openapi.json"))


@pytest.mark.parametrize("path", DOCUMENTS)
def test_they_are_valid(path: str) -> None:
    validate(json.loads(document(path)))


def test_every_control_method_has_its_operation() -> None:
    operations = {
        operation["operationId"] for path in CONTROL["paths"].values() for operation in path.values()
    }
    files = (deployment_pb2, decision_pb2, replica_pb2, cluster_pb2)
    services = {
        service.full_name: service for file in files for service in file.DESCRIPTOR.services_by_name.values()
    }
    methods = {method.name for name in SERVICES for method in services[name].methods}
    assert operations == methods


def test_every_path_that_leads_to_an_engine_is_described() -> None:
    posts = {path for path, operations in INFERENCE["paths"].items() if "post" in operations}
    assert posts == set(openai.REWRITES)


def test_comments_become_descriptions() -> None:
    metadata = CONTROL["components"]["schemas"]["Metadata"]
    assert metadata["properties"]["labels"]["description"].startswith("For people and programs")
    assert CONTROL["paths"]["/apis/v1/cluster"]["get"]["description"].startswith("UNAVAILABLE when slurmctld")


SPECS: list[dict[str, Any]] = [
    {"model": {"path": "/m"}},
    {"model": {"path": "m"}},
    {"model": {"hub": "a/b"}},
    {"model": {"hub": "a"}},
    {"model": {}},
    {},
    {"model": {"path": "/m"}, "replicas": -1},
    {"model": {"path": "/m"}, "replicas": 10_000},
    {"model": {"path": "/m"}, "replicas": 1_000_000},
    {"model": {"path": "/m"}, "engine": {"name": "other"}},
    {"model": {"path": "/m"}, "engine": {"env": {"A": "b"}}},
    {"model": {"path": "/m"}, "engine": {"env": {"1A": "b"}}},
    {"model": {"path": "/m"}, "engine": {"args": [""]}},
    {"model": {"path": "/m"}, "placements": [{"constraint": "[a|b]"}]},
    {"model": {"path": "/m"}, "placements": [{"constraint": "a b"}]},
    {"model": {"path": "/m"}, "placements": [{"time_limit": "2h"}]},
    {"model": {"path": "/m"}, "placements": [{"time_limit": "two hours"}]},
    {"model": {"path": "/m"}, "placements": [{}] * 17},
    {"model": {"path": "/m"}, "environment": {"venv": {"path": "/v"}}},
    {"model": {"path": "/m"}, "environment": {"venv": {"path": "v"}}},
    {"model": {"path": "/m"}, "environment": {"apptainer": {"image": "/i.sif", "binds": ["/a:/b:ro"]}}},
    {"model": {"path": "/m"}, "environment": {"apptainer": {"image": "/i.sif", "binds": ["a"]}}},
    {"model": {"path": "/m"}, "environment": {"module": {"load": ["vllm/0.32"]}}},
    {"model": {"path": "/m"}, "environment": {"module": {}}},
    {"model": {"path": "/m", "adapters": [{"name": "a", "path": "/a"}]}},
    {"model": {"path": "/m", "adapters": [{"name": "a"}]}},
    {"model": {"path": "/m", "adapters": [{"path": "/a"}]}},
    {"model": {"path": "/m"}, "resources": {"memory": "4GiB"}},
    {"model": {"path": "/m"}, "resources": {"memory": "4 apples"}},
    {"model": {"path": "/m"}, "rollout": {"max_surge": "25%"}},
    {"model": {"path": "/m"}, "rollout": {"max_surge": "250%"}},
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: json.dumps(spec)[:60])
def test_the_schemas_take_what_the_field_rules_take(spec: dict[str, Any]) -> None:
    schema = {
        "$ref": "#/components/schemas/Deployment",
        "components": CONTROL["components"],
    }
    manifest = {"metadata": {}, "spec": spec}
    message = json_format.ParseDict(manifest, deployment_pb2.Deployment())
    # The path gives the name.
    message.metadata.name = "m"
    allowed = not protovalidate.collect_violations(message)
    assert OAS31Validator(schema).is_valid(manifest) == allowed


def test_the_schemas_take_what_answers_are() -> None:
    answer = deployment_pb2.GetDeploymentResponse()
    answer.deployment.metadata.name = "m"
    answer.deployment.metadata.generation = 2**62
    answer.deployment.metadata.created_at.GetCurrentTime()
    answer.deployment.spec.model.path = "/m"
    answer.deployment.status.conditions.add(type="Ready", status=2)
    schema = {
        "$ref": "#/components/schemas/GetDeploymentResponse",
        "components": CONTROL["components"],
    }
    OAS31Validator(schema).validate(json_format.MessageToDict(answer, preserving_proto_field_name=True))
