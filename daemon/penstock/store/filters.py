"""Label filters, as people write them: `team=search,tier!=test,gpu`. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from penstock.store.errors import FilterError

MAX_TERMS = 32
"""As many as a deployment may have labels."""


class Match(enum.Enum):
    """How a term asks about its label."""

    EQUAL = "="
    NOT_EQUAL = "!="
    """Also holds where the label is not set, as in Kubernetes."""
    SET = ""


@dataclass(frozen=True, slots=True)
class Term:
    """One thing that must hold of a deployment's labels."""

    label: str
    match: Match
    value: str = ""


def parse_filter(text: str) -> tuple[Term, ...]:
    """The terms of a filter, all of which must hold; none for an empty text. Raises FilterError.

    >>> parse_filter("team=search,gpu")
    (Term(label='team', match=<Match.EQUAL: '='>, value='search'), Term(label='gpu', match=<Match.SET: ''>, value=''))
    """
    if not text.strip():
        return ()
    parts = text.split(",")
    if len(parts) > MAX_TERMS:
        raise FilterError(parts[MAX_TERMS].strip(), f"is one too many (at most {MAX_TERMS})")
    return tuple(_term(part.strip()) for part in parts)


def _term(text: str) -> Term:
    label, separator, value = text.partition("=")
    if not separator:
        match = Match.SET
    elif label.endswith("!"):
        label, match = label[:-1], Match.NOT_EQUAL
    else:
        match = Match.EQUAL
    label, value = label.strip(), value.strip()
    if not label:
        raise FilterError(text, "has no label")
    if "!" in label or "=" in value:
        raise FilterError(text, "cannot be read")
    return Term(label, match, value)
