"""Texts of a wanted shape, for the stand-in's structured answers and tool calls: an instance of a JSON schema, a match
of a regular expression. Pure, and always the same text for the same shape.

It knows the part of JSON Schema that people write for models, and no more: what it cannot make is a ShapeError, never a
text that does not fit.
"""

from __future__ import annotations

import json
import re
import re._constants as sre  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
from typing import Any

MAX_DEPTH = 32
"""Of nested schemas and of patterns; a schema that refers to itself ends here."""
MAX_REPEATS = 1000
MAX_CHARACTERS = 64 * 1024
"""Of a whole text, and so of each part: a schema of a line may ask for a list of lists of a billion each."""
EXAMPLE = "example"


class ShapeError(Exception):
    """The shape cannot be made, or is none; one sentence."""


def instance(schema: Any) -> str:
    """JSON text that `schema` allows: every property that it names, in its order, each with the plainest value."""
    return _value(schema, schema, 0)


def matching(pattern: str) -> str:
    """A short text that `pattern` matches as a whole."""
    try:
        compiled, parsed = re.compile(pattern), parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ShapeError(f"Grammar error: invalid regex {pattern!r}: {error}") from error
    text = _sequence(parsed, 0)
    if not compiled.fullmatch(text):
        raise ShapeError(f"the stand-in cannot make a text for the regex {pattern!r}")
    return text


def tokens(text: str) -> tuple[str, ...]:
    """`text` cut as a tokenizer might; put together it is the text."""
    return tuple(text[at : at + 4] for at in range(0, len(text), 4))


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _bounded(text: str, count: int = 1) -> str:
    """The text so many times, one after the other. Looks at the length before it is made."""
    if len(text) * count > MAX_CHARACTERS:
        raise ShapeError(f"the stand-in makes no text of over {MAX_CHARACTERS} characters")
    return text * count


def _value(schema: Any, root: Any, depth: int) -> str:
    """As JSON."""
    if schema is True or schema == {}:
        return "null"
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        raise ShapeError(f"Grammar error: not a schema, or one without an end: {json.dumps(schema)[:200]}")
    if "const" in schema:
        return _json(schema["const"])
    if "enum" in schema and isinstance(schema["enum"], list) and schema["enum"]:
        return _json(schema["enum"][0])
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            return _value(schema[key][0], root, depth + 1)
    if "$ref" in schema:
        return _value(_referred(schema["$ref"], root), root, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else None)
    kind = kind[0] if isinstance(kind, list) and kind else kind
    return _of_type(kind, schema, root, depth)


def _of_type(kind: Any, schema: dict[str, Any], root: Any, depth: int) -> str:
    match kind:
        case "object":
            named = schema.get("properties", {})
            members = [f"{_json(name)}:{_value(each, root, depth + 1)}" for name, each in named.items()]
            return _bounded("{" + ",".join(members) + "}")
        case "array":
            item = _value(schema.get("items", True), root, depth + 1)
            return "[" + _bounded(item + ",", max(1, _least(schema, "minItems"))).removesuffix(",") + "]"
        case "string":
            return _json(_text(schema))
        case "integer":
            return _json(int(_number(schema)))
        case "number":
            return _json(float(_number(schema)))
        case "boolean":
            return "true"
        case "null" | None:
            return "null"
    raise ShapeError(f"Grammar error: Invalid type: {kind}")


def _text(schema: dict[str, Any]) -> str:
    if "pattern" in schema:
        return matching(str(schema["pattern"]))
    text = EXAMPLE + _bounded("x", max(0, _least(schema, "minLength") - len(EXAMPLE)))
    return text[: schema.get("maxLength", len(text))]


def _least(schema: dict[str, Any], name: str) -> int:
    count = schema.get(name, 0)
    if type(count) is not int:
        raise ShapeError(f"Grammar error: {name} is {json.dumps(count)[:200]}, not a whole number")
    return count


def _number(schema: dict[str, Any]) -> float:
    if "minimum" in schema:
        return float(schema["minimum"])
    if "exclusiveMinimum" in schema:
        return float(schema["exclusiveMinimum"]) + 1
    return float(min(1, schema.get("maximum", 1)))


def _referred(path: Any, root: Any) -> Any:
    if not isinstance(path, str) or not path.startswith("#/"):
        raise ShapeError(f"Grammar error: $ref {path!r} is not of this schema")
    for name in path.removeprefix("#/").split("/"):
        if not isinstance(root, dict) or name not in root:
            raise ShapeError(f"Grammar error: $ref {path!r} leads nowhere")
        root = root[name]
    return root


def _sequence(parsed: Any, depth: int) -> str:
    if depth > MAX_DEPTH:
        raise ShapeError("the regex is nested too deep for the stand-in")
    return _bounded("".join(_part(op, argument, depth) for op, argument in parsed))


def _part(op: Any, argument: Any, depth: int) -> str:
    if op is sre.LITERAL:
        return chr(argument)
    if op is sre.ANY or op is sre.NOT_LITERAL:
        return "a" if argument != ord("a") else "b"
    if op is sre.IN:
        return _member(argument)
    if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        least, most, what = argument
        return _bounded(_sequence(what, depth + 1), int(min(max(least, min(1, most)), MAX_REPEATS)))
    if op is sre.SUBPATTERN:
        return _sequence(argument[-1], depth + 1)
    if op is sre.BRANCH:
        return _sequence(argument[1][0], depth + 1)
    if op is sre.AT:
        return ""
    raise ShapeError(f"the stand-in cannot make a text for {op} in a regex")


def _member(items: Any) -> str:
    """A character of a set."""
    op, argument = items[0]
    if op is sre.NEGATE:
        taken = re.compile("[" + "".join(re.escape(_member([each])) for each in items[1:]) + "]")
        return next((mark for mark in "a0 _-~z" if not taken.match(mark)), "")
    if op is sre.RANGE:
        return chr(argument[0])
    if op is sre.CATEGORY:
        return "1" if argument is sre.CATEGORY_DIGIT else " " if argument is sre.CATEGORY_SPACE else "a"
    return chr(argument)
