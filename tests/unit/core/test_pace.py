"""The pace of what comes to nothing: growing, bounded, and of each effect by itself."""

from __future__ import annotations

from datetime import timedelta

import pytest

from penstock.core.decisions import Cancel, CancelOrphan, Decision, Drain, Leave, Reason, Resubmit, Submit
from penstock.core.model import Vain
from penstock.core.pace import FIRST_S, MAX_S, again_at, key, paced, why
from tests.worlds import NOW, at, drawn

CANCEL = Cancel(drawn(1), 7, f"penstock-chat-{drawn(1)}")


@pytest.mark.parametrize(
    ("times", "wait_s"), [(1, FIRST_S), (2, 2 * FIRST_S), (3, 4 * FIRST_S), (7, MAX_S), (10**6, MAX_S)]
)
def test_the_pace_doubles_up_to_a_bound(times: int, wait_s: int) -> None:
    assert again_at(Vain(times, NOW, "no")) == NOW + timedelta(seconds=wait_s)


def test_an_effect_is_known_over_its_tries() -> None:
    assert key(Submit("r1"), drawn(1)) == key(Resubmit("r1", drawn(1), exclude=("gpu1",))) == drawn(1)
    apart = {key(CANCEL), key(Drain("r1", drawn(1), 7, "n")), key(CancelOrphan(7, "n")), key(Leave("r1"))}
    assert len(apart) == 4


def test_only_what_is_not_due_is_left_out() -> None:
    decision = Decision("chat", "chat-1", Reason.CANCEL, "job 7 is cancelled", (Leave("r1"), CANCEL))
    vain = {key(CANCEL): Vain(1, NOW, "scancel: no")}
    assert paced(decision, vain, at(FIRST_S - 1)).actions == (Leave("r1"),)
    assert paced(decision, vain, at(FIRST_S)) is decision
    assert paced(decision, {}, NOW) is decision


def test_the_sentence_says_why_and_holds_no_clock() -> None:
    decision = Decision("chat", "chat-1", Reason.CANCEL, "job 7 is cancelled", (CANCEL,))
    said = {why(decision, {key(CANCEL): Vain(times, at(times), "scancel: no")}) for times in range(1, 50)}
    assert said == {": scancel: no; tried again within 5 min"}
    assert why(decision, {key(CANCEL): Vain(1, NOW, "")}) == ""
    assert why(decision, {drawn(1): Vain(1, NOW, "full")}, drawn(1)) == ": full; tried again within 5 min"
    assert why(decision, {drawn(1): Vain(1, NOW, "full")}) == ""
