"""A request's body as JSON, or the sentence that says why it is none."""

from __future__ import annotations

import json
from typing import Any


class NotJson(ValueError):
    """The body is not JSON as RFC 8259 has it, in UTF-8."""


def read(body: bytes, **options: Any) -> Any:
    """The value. `options`: those of json.loads. Raises NotJson."""
    try:
        return json.loads(body.decode(), **options)
    except UnicodeDecodeError as error:
        raise NotJson(f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise NotJson("the body is nested too deeply") from error
    except ValueError as error:
        raise NotJson(f"the body is not JSON: {error}") from error
