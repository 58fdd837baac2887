"""Canaries: how many replicas run a new revision beside the stable one, until when, and which requests they get.

Pure arithmetic on a deployment as it is stored. There is a canary only where there is something to compare it with: a
stable revision. Nothing here moves a replica; `rollout` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd

from penstock.core.model import Deployment, RolloutRecord
from penstock.core.spec import Rollout, share


def is_canary(deployment: Deployment) -> bool:
    """Whether the current revision is to run on a canary only."""
    return (
        deployment.spec.replicas > 0
        and deployment.rollout.failed_revision != deployment.revision
        and _is_unproven(
            deployment.spec.rollout, deployment.rollout, deployment.revision, deployment.promoted_revision
        )
    )


def failed_as_canary(deployment: Deployment) -> bool:
    """Whether the current revision's rollout was stopped before its canary was promoted."""
    return deployment.rollout.failed_revision == deployment.revision and _is_unproven(
        deployment.spec.rollout, deployment.rollout, deployment.revision, deployment.promoted_revision
    )


def is_past_canary(deployment: Deployment) -> bool:
    """Whether the current revision was promoted or stood its bake time, and has not failed."""
    passed = max(deployment.promoted_revision, deployment.rollout.baked_revision) >= deployment.revision
    return passed and deployment.rollout.failed_revision != deployment.revision


def canary_counts(rollout: Rollout, want: int) -> tuple[int, int]:
    """Of `want` replicas those of the new revision, at least one, and those of the stable one beside them.

    Together as many as wanted; of a single one the canary is above that number, where the surge allows one.
    """
    percent = rollout.canary.percent if rollout.canary is not None else 0
    new = max(1, min(share(f"{percent}%", want, up=True), want - 1))
    beside = min(1, share(rollout.max_surge, want, up=True))
    return new, max(want - new, beside)


def request_weights(
    rollout: Rollout,
    want: int,
    record: RolloutRecord,
    revision: int,
    promoted_revision: int,
    ready: Mapping[int, int],
) -> Mapping[int, int]:
    """How requests are spread over the revisions in `ready` (revision -> its ready replicas): each one's weight, and 0
    for one that gets none as long as another one has a replica. Empty: over all replicas alike.

    `want`: replicas of all revisions together. The canary gets its percentage when it is whole, and before that the
    part of it that its ready replicas are for, so that none of them bears what several are to bear. A canary that has
    failed, and one that another revision has taken the place of before it was promoted, get nothing. What the canary
    leaves is shared among the stable revision and the trusted ones by their ready replicas.
    """
    if rollout.canary is None or not record.stable_revision:
        return {}
    trusted = {record.stable_revision, *record.trusted_revisions} - {record.failed_revision}
    if _is_unproven(rollout, record, revision, promoted_revision):
        failed = record.failed_revision == revision
        percent = 0 if failed else _canary_percent(rollout, want, ready.get(revision, 0))
        beside = {one: replicas for one, replicas in ready.items() if one in trusted and one != revision}
        parts = gcd(*beside.values()) or 1
        weights = {one: (100 - percent) * replicas // parts for one, replicas in beside.items()}
        weights[revision] = percent * max(1, sum(beside.values()) // parts)
        return {one: weights.get(one, 0) for one in ready}
    trusted.add(revision)
    if ready.keys() <= trusted:
        return {}
    return {one: replicas if one in trusted else 0 for one, replicas in ready.items()}


def _canary_percent(rollout: Rollout, want: int, ready: int) -> int:
    """Of the requests, for so many ready replicas of a canary; at least 1 for any, as nothing is learned without."""
    new, _ = canary_counts(rollout, want)
    percent = rollout.canary.percent if rollout.canary is not None else 0
    return max(min(ready, 1), percent * min(ready, new) // new)


def _is_unproven(rollout: Rollout, record: RolloutRecord, revision: int, promoted_revision: int) -> bool:
    """Whether nobody has promoted the revision, and its bake time has not passed."""
    return (
        rollout.canary is not None
        and record.stable_revision not in (0, revision)
        and max(promoted_revision, record.baked_revision) < revision
    )
