"""Core values as stored documents: exact round trips, old rows read, anything strange refused with its place."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.jobs import Job, JobState
from penstock.core.model import Condition, ConditionStatus
from penstock.core.spec import Engine, EngineTask, Model, Resources, RolloutStrategy, Spec
from penstock.store.documents import decode, encode
from penstock.store.errors import DocumentError

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)

# What PostgreSQL's jsonb and text hold: any text but the zero character and lone surrogates.
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
st.register_type_strategy(str, words)
st.register_type_strategy(datetime, st.datetimes(timezones=st.just(UTC)))


def through_json(value: object) -> Any:
    return json.loads(json.dumps(encode(value)))


@settings(max_examples=200, deadline=None)
@given(st.from_type(Spec))
def test_a_spec_comes_back_exactly(spec: Spec) -> None:
    assert decode(Spec, through_json(spec)) == spec


@settings(max_examples=100, deadline=None)
@given(st.from_type(Job))
def test_a_job_comes_back_exactly(job: Job) -> None:
    assert decode(Job, through_json(job)) == job


@settings(max_examples=100, deadline=None)
@given(st.from_type(Condition))
def test_a_condition_comes_back_exactly(condition: Condition) -> None:
    assert decode(Condition, through_json(condition)) == condition


def test_the_document_reads_well() -> None:
    document = encode(Condition("Ready", ConditionStatus.TRUE, "Steady", "1 of 1 ready", NOW))
    assert document == {
        "type": "Ready",
        "status": "true",
        "reason": "Steady",
        "message": "1 of 1 ready",
        "since": "2026-03-01T12:00:00+00:00",
    }


def test_an_older_row_gets_the_defaults() -> None:
    assert decode(Spec, {"model": {"hub": "o/m"}}) == Spec(Model(hub="o/m"))


def test_each_key_may_be_missing_that_has_a_default() -> None:
    whole = encode(Spec(Model(path="/m")))
    for name in (field.name for field in fields(Spec)):
        if name != "model":
            assert decode(Spec, {key: value for key, value in whole.items() if key != name}) == Spec(
                Model(path="/m")
            )
    assert all(is_dataclass(getattr(Spec(Model()), name)) for name in ("model", "engine", "rollout"))


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({}, "Spec.model: is missing"),
        (None, "Spec: None is not a Spec"),
        ({"model": []}, r"Spec.model: \[\] is not a Model"),
        ({"model": {}, "colour": 1}, "Spec.colour: this release knows no such field"),
        ({"model": {"hue": 1}}, "Spec.model.hue: this release knows no such field"),
        ({"model": {}, "replicas": "3"}, "Spec.replicas: '3' is not int"),
        ({"model": {}, "replicas": True}, "Spec.replicas: True is not int"),
        ({"model": {}, "replicas": None}, "Spec.replicas: None is not int"),
        ({"model": {}, "placement": {"exclusive": 1}}, "Spec.placement.exclusive: 1 is not bool"),
        ({"model": {}, "engine": {"args": ["a", 2]}}, "Spec.engine.args.1: 2 is not str"),
        ({"model": {}, "engine": {"args": "a"}}, "Spec.engine.args: 'a' is not a list"),
        ({"model": {}, "engine": {"env": {"A": 2}}}, "Spec.engine.env.A: 2 is not str"),
        ({"model": {}, "engine": {"env": []}}, r"Spec.engine.env: \[\] is not a mapping"),
        ({"model": {}, "engine": {"task": "sing"}}, "Spec.engine.task: 'sing' is not one of generate, embed"),
    ],
)
def test_a_strange_document_is_refused(document: object, sentence: str) -> None:
    with pytest.raises(DocumentError, match=f"^stored document: {sentence}$"):
        decode(Spec, document)


@pytest.mark.parametrize(
    ("moment", "problem"),
    [("noon", "is not a time"), (3, "is not a time"), ("2026-03-01T12:00:00", "no time zone")],
)
def test_a_time_without_a_zone_is_none(moment: object, problem: str) -> None:
    document = {"job_id": 1, "name": "n", "comment": "", "state": "RUNNING", "submitted_at": moment}
    with pytest.raises(DocumentError, match=problem):
        decode(Job, document)
    with pytest.raises(ValueError, match="naive"):
        encode(datetime(2026, 3, 1))  # noqa: DTZ001


def test_what_has_no_form_is_refused() -> None:
    with pytest.raises(TypeError, match="no JSON form for object"):
        encode(object())
    with pytest.raises(TypeError, match="no reader"):
        decode(object, {})


def test_enumerations_are_their_values() -> None:
    spec = Spec(Model(), Engine(task=EngineTask.EMBED), resources=Resources(gpus=2))
    assert encode(spec)["engine"]["task"] == "embed"
    assert type(encode(spec)["engine"]["task"]) is str
    assert decode(Spec, encode(spec)).rollout.strategy is RolloutStrategy.ROLLING_UPDATE
    assert decode(Job, encode(Job(1, "n", "", JobState.UNKNOWN))).state is JobState.UNKNOWN
