"""A request's body as JSON, or the sentence that says why it is none."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

SHOWN_CHARACTERS = 80
TOO_DEEP = "the body is nested too deeply"


class NotJson(ValueError):
    """The body is not JSON as RFC 8259 has it, in UTF-8; or as the front door takes it."""


def read(body: bytes, **options: Any) -> Any:
    """The value. `options`: those of json.loads. Raises NotJson."""
    try:
        return json.loads(body.decode(), **options)
    except UnicodeDecodeError as error:
        raise NotJson(f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise NotJson(TOO_DEEP) from error
    except ValueError as error:
        raise NotJson(f"the body is not JSON: {error}") from error


def read_as_envoy(body: bytes) -> Any:
    """The value of what Envoy reads too: it wants each name once in an object, numbers that a double holds, and no half
    of a pair of surrogates. Raises NotJson."""
    value = read(body, object_pairs_hook=_names_once, parse_constant=_no_number, parse_float=_double)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise NotJson("the body is not JSON: a text in it has half of a pair of surrogates") from error
    except RecursionError as error:
        raise NotJson(TOO_DEEP) from error
    return value


def _names_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {twice[:SHOWN_CHARACTERS]!r} is given twice in one object")
    return made


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON's")


def _double(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:SHOWN_CHARACTERS]} is larger than a double")
    return number
