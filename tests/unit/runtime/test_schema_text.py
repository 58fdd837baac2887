"""What is a JSON schema in text, and what only Python takes for one."""

from __future__ import annotations

import json

import pytest

from penstock_runtime import schema_text
from penstock_runtime.schema_text import MAX_CHARACTERS, MAX_DEPTH


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize(
    "text",
    [
        '{"b": 1, "a": [2.5, null]}',
        r'{"a": "\ud83d\ude00 é"}',
        nested(MAX_DEPTH),
        '{"a": 18446744073709551616}',
    ],
)
def test_what_is_read_can_be_written_again_in_its_order(text: str) -> None:
    schema = schema_text.read(text)
    assert json.dumps(schema) == json.dumps(json.loads(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be JSON: Expecting value"),
        ("[]", "must be a JSON object"),
        ('{"a": NaN}', "must be JSON: Out of range float"),
        ('{"a": -Infinity}', "must be JSON: Out of range float"),
        ('{"a": 1e999}', "must be JSON: Out of range float"),
        (r'{"a": "\ud800"}', "must be JSON: .* surrogates not allowed"),
        (r'{"\udc00": 1}', "must be JSON: .* surrogates not allowed"),
        (nested(MAX_DEPTH + 1), f"must be JSON: it is nested more than {MAX_DEPTH} deep"),
        ('{"a":' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}", f"must be JSON: it is nested more than {MAX_DEPTH} deep"),
        (nested(992), "must be JSON: "),
        (nested(100_000), "must be JSON: "),
        ("{" + " " * MAX_CHARACTERS + "}", f"must be at most {MAX_CHARACTERS} characters, not {MAX_CHARACTERS + 2}"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        schema_text.read(text)
