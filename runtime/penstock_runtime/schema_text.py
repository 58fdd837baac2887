"""A JSON schema that came as text, read so that it can be written again.

Python's json reads more than JSON has (NaN, numbers beyond a double, halves of a surrogate pair) and nests deeper than
it can write. What gets past here can be sent to the engine. Who sent it, and in which field, is not known here.
"""

from __future__ import annotations

import json
from typing import Any

MAX_CHARACTERS = 1 << 20
"""As empty lists these are some 20 MiB of Python objects."""
MAX_DEPTH = 100
"""Lists and objects within each other. A Struct takes about 30; json gives up below a thousand."""


def read(text: str) -> dict[str, Any]:
    """The schema, in the order given. Raises ValueError, whose text says what it must be."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"must be at most {MAX_CHARACTERS} characters, not {len(text)}")
    try:
        schema = json.loads(text)
        _check_depth(schema)
        json.dumps(schema, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"must be JSON: {error}") from error
    if not isinstance(schema, dict):
        raise ValueError("must be a JSON object")
    return schema


def _check_depth(schema: Any) -> None:
    """Level by level: a recursion would end where json's does."""
    level, depth = [schema], 0
    while level := [each for each in level if isinstance(each, (dict, list))]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
