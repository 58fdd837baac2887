"""What changed between one reading and the next: a watch remembers a digest of each object, never the object."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

import grpc
from google.protobuf.message import Message

from penstock.rpc.refusals import Refused

Item = TypeVar("Item", bound=Message)


class Change(enum.Enum):
    """What happened to an object since the last reading."""

    ADDED = "added"
    MODIFIED = "modified"
    DELETED = "deleted"
    BOOKMARK = "bookmark"
    """No object: all that was there at the first reading has been told."""


class Changes(Generic[Item]):
    """Compares readings. `gone` makes what is told of an object that is there no more, from its name."""

    def __init__(self, limit: int, gone: Callable[[str], Item]) -> None:
        self._limit = limit
        self._gone = gone
        self._digests: dict[str, bytes] | None = None

    def since(self, reading: Mapping[str, Item]) -> Iterator[tuple[Change, Item | None]]:
        """What differs from the reading before; everything, then a bookmark, for the first. Raises Refused
        above the limit.
        """
        if len(reading) > self._limit:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"a watch holds at most {self._limit} objects; use a filter",
            )
        before, is_first = self._digests or {}, self._digests is None
        now = {
            name: hashlib.blake2b(item.SerializeToString(deterministic=True), digest_size=16).digest()
            for name, item in reading.items()
        }
        self._digests = now
        for name in before.keys() - now.keys():
            yield Change.DELETED, self._gone(name)
        for name, item in reading.items():
            if name not in before:
                yield Change.ADDED, item
            elif before[name] != now[name]:
                yield Change.MODIFIED, item
        if is_first:
            yield Change.BOOKMARK, None
