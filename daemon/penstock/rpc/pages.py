"""Pages of a list: sizes, and tokens that say where the next page begins.

A token is opaque to clients and bound to the request's other fields: given back with other ones it is refused
rather than answered wrongly.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json

from google.protobuf.message import Message

from penstock.rpc.refusals import Violation, refuse

DEFAULT_SIZE = 100
MAX_SIZE = 1000


def size(page_size: int) -> int:
    """Items a page, for a request's page_size that has passed validation."""
    return page_size or DEFAULT_SIZE


def token(request: Message, *position: str | int) -> str:
    """What leads to the page behind this position, for this very request."""
    return base64.urlsafe_b64encode(json.dumps([_mark(request), *position]).encode()).decode()


def position(
    request: Message, text: str, kinds: tuple[type[str] | type[int], ...]
) -> tuple[str | int, ...] | None:
    """The position that a request's page token leads to; None: the first page. Raises Refused."""
    if not text:
        return None
    try:
        mark, *found = json.loads(base64.b64decode(text, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, TypeError, RecursionError):
        mark, found = None, []
    is_whole = mark == _mark(request) and tuple(type(item) for item in found) == kinds
    if not is_whole or not all(_is_storable(item) for item in found):
        refuse(
            [
                Violation(
                    "page_token", "must be from the page before, with the request's other fields unchanged"
                )
            ]
        )
    return tuple(found)


def _is_storable(item: str | int) -> bool:
    """Whether PostgreSQL can compare with it: a token may be made up."""
    if isinstance(item, int):
        return 0 <= item < 1 << 63
    # JSON has half surrogate pairs, and UTF-8 has not.
    return not any(mark == "\0" or "\ud800" <= mark <= "\udfff" for mark in item)


def _mark(request: Message) -> str:
    bare = type(request)()
    bare.CopyFrom(request)
    for field in ("page_token", "page_size"):
        bare.ClearField(field)
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()[:12]
