"""What a new spec makes of a deployment."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.core.changes import change_of
from penstock.core.model import RolloutRecord
from penstock.core.spec import Resources, Rollout, Spec
from tests.worlds import SPEC, deployment


def spec(gpus: int) -> Spec:
    return replace(SPEC, resources=Resources(gpus=gpus))


@pytest.mark.parametrize(
    ("says", "wanted", "specs", "proven", "promoted", "adopted"),
    [
        ("another spec", spec(3), {1: spec(1), 2: spec(2)}, False, False, set()),
        ("the stable one again", spec(1), {1: spec(1), 2: spec(2)}, False, True, {1}),
        (
            "one that ran and was never stable",
            spec(3),
            {1: spec(1), 2: spec(2), 3: spec(3)},
            False,
            False,
            {3},
        ),
        ("and is known to be good", spec(3), {1: spec(1), 3: spec(3)}, True, True, {3}),
        ("a trusted one again", spec(4), {1: spec(1), 2: spec(2), 3: spec(3), 4: spec(4)}, False, True, {4}),
        ("a restart", spec(2), {1: spec(1), 2: spec(2)}, False, False, set()),
        ("the stable spec is not kept any more", spec(3), {2: spec(2)}, False, False, set()),
    ],
)
def test_a_new_revision(
    says: str, wanted: Spec, specs: dict[int, Spec], proven: bool, promoted: bool, adopted: set[int]
) -> None:
    record = RolloutRecord(stable_revision=1, trusted_revisions=(4,))
    old = deployment(spec=spec(2), revision=6, record=record)
    found = change_of(old, wanted, specs, new_revision=True, proven=proven)
    assert found.after == replace(old, spec=wanted, revision=7, promoted_revision=7 if promoted else 0)
    assert found.adopted == adopted


def test_the_same_revision_with_other_limits_is_tried_again() -> None:
    failed = RolloutRecord(stable_revision=1, failed_revision=2, failed_message="it died", cannot_go_back=2)
    old = deployment(revision=2, record=failed)
    for wanted, record in (
        (replace(old.spec, replicas=5), failed),
        (replace(old.spec, rollout=Rollout(progress_deadline_s=900)), RolloutRecord(stable_revision=1)),
    ):
        found = change_of(old, wanted, {}, new_revision=False)
        assert found.after == replace(old, spec=wanted, rollout=record)
        assert not found.adopted
