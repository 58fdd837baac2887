"""The stand-in's structured answers: what it makes fits, and what it cannot make it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock_runtime.standin_shapes import ShapeError, instance, matching, tokens


@pytest.mark.parametrize(
    "pattern",
    [
        "[ab]{3}c",
        r"\d{3}-\d+",
        "(foo|bar)?x*",
        "a.c",
        "[^a-z]",
        "^x$",
        r"(a|b)+?\s[^ab]",
        "",
        r"\w+@\w+\.org",
    ],
)
def test_a_text_that_a_regex_matches(pattern: str) -> None:
    assert re.fullmatch(pattern, matching(pattern))


@pytest.mark.parametrize("pattern", ["((", "a(?=b)", "[z-a]", r"(a)\1"])
def test_a_regex_that_it_cannot_match(pattern: str) -> None:
    with pytest.raises(ShapeError, match="regex"):
        matching(pattern)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({}, None),
        ({"const": 5}, 5),
        ({"enum": ["x", "y"]}, "x"),
        ({"type": "integer", "minimum": 3}, 3),
        ({"type": "number", "maximum": 0.5}, 0.5),
        ({"type": "string", "minLength": 9}, "examplexx"),
        ({"type": "string", "pattern": "[0-9]{2}"}, "00"),
        ({"type": ["string", "null"]}, "example"),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [True, True]),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
        ({"properties": {"b": {"const": 1}, "a": {"const": 2}}}, {"b": 1, "a": 2}),
        ({"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"const": 1}}}, {"a": 1}),
    ],
)
def test_an_instance_of_a_schema(schema: Any, value: Any) -> None:
    made = json.loads(instance(schema))
    assert made == value
    if isinstance(value, dict):
        assert list(made) == list(value)


@pytest.mark.parametrize(
    "schema",
    [
        5,
        {"type": "nope"},
        {"$ref": "#/$defs/none"},
        {"$ref": "http://example.org"},
        {"$ref": "#/a", "a": {"$ref": "#/a"}},
        {"type": "array", "minItems": "2"},
    ],
)
def test_a_schema_that_it_cannot_follow(schema: Any) -> None:
    with pytest.raises(ShapeError, match="Grammar error"):
        instance(schema)


@pytest.mark.parametrize(
    "make",
    [
        lambda: instance({"type": "array", "minItems": 1_700_000_000}),
        lambda: instance({"type": "string", "minLength": 13_000_000_000}),
        lambda: instance(nested(4)),
        lambda: matching("(((a{1000}){1000}){1000}){1000}"),
    ],
    ids=["items", "characters", "lists of lists", "repeats of repeats"],
)
def test_a_text_without_measure_is_not_made(make: Callable[[], str]) -> None:
    with pytest.raises(ShapeError, match="no text of over 65536 characters"):
        make()


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "minItems": 1000, "items": nested(depth - 1) if depth else {}}


@given(st.text())
def test_tokens_put_together_are_the_text(text: str) -> None:
    assert "".join(tokens(text)) == text
