"""Which field of a message a key in YAML or JSON names, and what is said of a key that names none.

Knows the contract's descriptors, and nothing of files or requests: manifests and the bodies of REST requests are read
by it alike. The rule guarded here: what is not understood is an error, never ignored.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

GIVEN_TWICE = "is given twice"
_LOOKED_AT_CHARACTERS = 100
"""Of a key that names no field; no field's name is so long."""


class Given:
    """The fields of one message that have been given so far."""

    def __init__(self, descriptor: Any, also: Sequence[str] = ()) -> None:
        """`also`: keys that are no fields, and may stand there."""
        self._descriptor = descriptor
        self._also = also
        self._seen: dict[str, str] = {}

    def take(self, written: str) -> FieldDescriptor | str:
        """The field that a key names; or what is wrong with it, in words that follow its path."""
        field = _by_name(self._descriptor).get(written)
        if field is None:
            return self._unknown(written)
        if field.name in self._seen:
            return GIVEN_TWICE
        self._seen[field.name] = written
        return field

    def rival(self, field: FieldDescriptor) -> str | None:
        """What has been given that excludes this field, as it was written."""
        oneof = field.containing_oneof
        if oneof is None:
            return None
        others = (other.name for other in oneof.fields if other.name != field.name)
        return next((self._seen[name] for name in others if name in self._seen), None)

    def _unknown(self, written: str) -> str:
        names = [*self._also, *(field.name for field in self._descriptor.fields)]
        snake = re.sub(r"(?<!^)(?=[A-Z])", "_", written[:_LOOKED_AT_CHARACTERS]).lower()
        if close := difflib.get_close_matches(snake, names, n=1, cutoff=0.6):
            return f"there is no such field; did you mean {close[0]}?"
        return f"there is no such field; there are {', '.join(names)}"


@lru_cache(maxsize=512)
def _by_name(descriptor: Any) -> Mapping[str, FieldDescriptor]:
    """Both spellings of each field: `drain_timeout_s` and `drainTimeoutS`. There are fewer messages than are kept."""
    names = {field.json_name: field for field in descriptor.fields}
    return names | {field.name: field for field in descriptor.fields}
