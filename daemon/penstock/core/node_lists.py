"""Slurm's compressed lists of nodes: `gpu[01-03,7],login1`.

Pure. The rule guarded here: a list that is not well formed raises, and never names fewer nodes than it means.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

EXPANDED_NODES_MAX = 100_000
"""No cluster has more nodes; a longer list is a misreading and would fill the memory."""


class ParseError(ValueError):
    """Text of Slurm that this release cannot read. The message quotes the start of it."""


def expand_nodes(text: str) -> tuple[str, ...]:
    """The names in a compressed node list: `gpu[01-03,7],login1` is gpu01, gpu02, gpu03, gpu7, login1.

    Several brackets in one name multiply: `r[1-2]n[1-2]`. Raises ParseError when the list is not well formed.
    """
    if text.strip() in ("", "(null)", "None", "n/a"):
        return ()
    names: list[str] = []
    for part in outside_brackets(text.strip()):
        for name in _expand_name(part):
            names.append(name)
            if len(names) > EXPANDED_NODES_MAX:
                raise ParseError(f"more than {EXPANDED_NODES_MAX} nodes in {quote(text)}")
    return tuple(names)


@functools.lru_cache(maxsize=4096)  # A tick asks for those of many jobs, and they seldom change.
def known_nodes(text: str) -> tuple[str, ...]:
    """The same for a list that was stored: one that cannot be read names no node."""
    try:
        return expand_nodes(text)
    except ParseError:
        return ()


def outside_brackets(text: str) -> Iterator[str]:
    """Split at commas that stand outside brackets (and parentheses, for gres)."""
    depth, start = 0, 0
    for index, character in enumerate(text):
        if character in "[(":
            depth += 1
        elif character in "])":
            depth -= 1
        elif character == "," and depth == 0:
            yield text[start:index]
            start = index + 1
    if depth:
        raise ParseError(f"brackets do not match in {quote(text)}")
    yield text[start:]


def _expand_name(text: str) -> Iterator[str]:
    head, bracket, rest = text.partition("[")
    if not bracket:
        if not head or "]" in head:
            raise ParseError(f"not a node name: {quote(text)}")
        yield head
        return
    ranges, bracket, tail = rest.partition("]")
    if not bracket:
        raise ParseError(f"brackets do not match in {quote(text)}")
    for number in _expand_ranges(ranges):
        yield from (f"{head}{number}{end}" for end in _expand_name(tail)) if tail else (f"{head}{number}",)


def _expand_ranges(text: str) -> Iterator[str]:
    for part in text.split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
            raise ParseError(f"not a range of numbers: {quote(part)}")
        if int(last) - int(first) >= EXPANDED_NODES_MAX:
            raise ParseError(f"more than {EXPANDED_NODES_MAX} nodes in {quote(text)}")
        for number in range(int(first), int(last) + 1):
            yield str(number).zfill(len(first))


def quote(text: str, limit: int = 80) -> str:
    """The start of a text, for an error message: free text is escaped and cannot break the line."""
    return repr(text if len(text) <= limit else text[:limit] + "…")
