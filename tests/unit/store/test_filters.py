"""Label filters: what is understood, and what is said of the rest."""

from __future__ import annotations

import pytest

from penstock.store.errors import FilterError
from penstock.store.filters import MAX_TERMS, Match, Term, parse_filter


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", ()),
        ("  ", ()),
        ("a=b", (Term("a", Match.EQUAL, "b"),)),
        ("a=", (Term("a", Match.EQUAL, ""),)),
        ("a!=b", (Term("a", Match.NOT_EQUAL, "b"),)),
        ("a", (Term("a", Match.SET),)),
        (
            " a = b , c != d,e ",
            (Term("a", Match.EQUAL, "b"), Term("c", Match.NOT_EQUAL, "d"), Term("e", Match.SET)),
        ),
    ],
)
def test_understood(text: str, terms: tuple[Term, ...]) -> None:
    assert parse_filter(text) == terms


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,,b", "filter term '' has no label"),
        ("=b", "filter term '=b' has no label"),
        ("!=b", "has no label"),
        ("a==b", "'a==b' cannot be read"),
        ("!a", "'!a' cannot be read"),
        ("a!b=c", "cannot be read"),
        (",".join("a" * (MAX_TERMS + 1)), f"is one too many .at most {MAX_TERMS}."),
    ],
)
def test_refused(text: str, problem: str) -> None:
    with pytest.raises(FilterError, match=problem) as caught:
        parse_filter(text)
    assert "accepted: terms joined by commas, each label=value, label!=value or label" in str(caught.value)
