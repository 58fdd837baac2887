"""Specs survive the way out and in again, and defaults that nobody wrote are not shown."""

from __future__ import annotations

import pytest
from google.protobuf import json_format
from hypothesis import given

from penstock.core import spec as core
from penstock.core.model import Phase, ReplicaState
from penstock.rpc import validate
from penstock.rpc.convert import replica as convert_replica
from penstock.rpc.convert.spec import spec_in, spec_out
from penstock.v1 import deployment_pb2, replica_pb2, runtime_pb2, spec_pb2
from tests.unit.rpc.specs import specs


@given(specs)
def test_every_spec_comes_back_as_it_was(spec: core.Spec) -> None:
    message = spec_out(spec)
    assert spec_in(message) == spec
    assert spec_in(spec_pb2.DeploymentSpec.FromString(message.SerializeToString())) == spec


@given(specs)
def test_what_is_shown_may_be_applied(spec: core.Spec) -> None:
    deployment = deployment_pb2.Deployment(spec=spec_out(spec))
    deployment.metadata.name = "a"
    validate.check_deployment(deployment)


def test_defaults_nobody_wrote_are_filled_in_and_not_shown() -> None:
    wrote = spec_pb2.DeploymentSpec(model=spec_pb2.Model(path="/models/a"))
    spec = spec_in(wrote)
    assert spec == core.Spec(core.Model(path="/models/a"))
    assert (spec.replicas, spec.engine.name, spec.drain_timeout_s) == (1, "vllm", 60)
    assert json_format.MessageToDict(spec_out(spec)) == {"model": {"path": "/models/a"}, "replicas": 1}


def test_zero_is_not_unset() -> None:
    wrote = spec_pb2.DeploymentSpec(model=spec_pb2.Model(path="/a"), replicas=0, drain_timeout_s=0)
    spec = spec_in(wrote)
    assert (spec.replicas, spec.drain_timeout_s) == (0, 0)
    assert spec_out(spec) == wrote


def test_quantities_keep_their_spelling() -> None:
    wrote = spec_pb2.DeploymentSpec(
        model=spec_pb2.Model(hub="a/b"),
        replicas=2,
        resources=spec_pb2.Resources(memory="16G", gpus=2),
        placements=[spec_pb2.Placement(time_limit="2-12:00:00", partition="gpu")],
    )
    spec = spec_in(wrote)
    assert (spec.resources.memory_mib, spec.placement.time_limit_s) == (16384, 216000)
    assert spec_out(spec) == wrote


def test_every_state_has_a_word_in_the_contract() -> None:
    assert {convert_replica._STATES[state] for state in ReplicaState} == set(
        replica_pb2.ReplicaState.values()
    ) - {0}


def test_every_phase_of_a_report_has_a_word_in_core() -> None:
    made = {
        convert_replica.phase_in(runtime_pb2.AgentPhase.Value(name))
        for name in runtime_pb2.AgentPhase.keys()[1:]
    }
    assert made == set(Phase) - {Phase.NONE, Phase.REGISTERED}


@pytest.mark.parametrize(("usage", "kept"), [(0.5, 0.5), (-1.0, 0.0), (7.0, 1.0), (float("nan"), 0.0)])
def test_an_odd_load_is_brought_into_range(usage: float, kept: float) -> None:
    load = convert_replica.load_in(replica_pb2.Load(kv_cache_usage=usage, running_requests=-3))
    assert (load.kv_cache_usage, load.running_requests) == (kept, 0)
