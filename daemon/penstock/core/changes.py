"""What differs between two specs, whether that makes a new revision, and what becomes of a deployment by it. Pure;
knows core only through values. What is written and what a dry run shows are both made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from penstock.core.adapters import fixed
from penstock.core.model import Deployment
from penstock.core.spec import Model, Spec


@dataclass(frozen=True, slots=True)
class Change:
    """What a new spec makes of a deployment."""

    after: Deployment
    adopted: frozenset[int] = frozenset()
    """Revisions whose replicas run just this spec already: those that stay belong to the new one and are kept."""


def change_of(
    old: Deployment, spec: Spec, specs: Mapping[int, Spec], *, new_revision: bool, proven: bool = False
) -> Change:
    """`old` with this spec: as its next revision, or as the one that it has. `specs`: of the stable revision, of the
    trusted ones and of those that its replicas run, needed for a new revision only.

    Neither the stable spec nor a trusted one has anything to prove to a canary: one that is it again counts as
    promoted, like one that is said to be `proven`. A revision that has failed is tried again where its progress
    deadline or its restart policy differs.
    """
    if not new_revision:
        record = old.rollout
        if _gives_more_tries(old, spec):
            record = replace(record, failed_revision=0, failed_message="", cannot_go_back=0)
        return Change(replace(old, spec=spec, rollout=record))
    number = old.revision + 1
    same = frozenset(one for one, its in specs.items() if not needs_revision(its, spec))
    trusted = {old.rollout.stable_revision, *old.rollout.trusted_revisions}
    promoted = number if proven or same & trusted else old.promoted_revision
    after = replace(old, spec=spec, revision=number, promoted_revision=promoted)
    return Change(after, same if needs_revision(old.spec, spec) else frozenset())


def _gives_more_tries(old: Deployment, spec: Spec) -> bool:
    """Whether the current revision has failed by limits that are others now, so that it is to be judged anew."""
    before = old.spec
    return old.rollout.failed_revision == old.revision and (
        (before.rollout.progress_deadline_s, before.restart)
        != (spec.rollout.progress_deadline_s, spec.restart)
    )


def needs_revision(old: Spec, new: Spec) -> bool:
    """Whether a running replica depends on the difference.

    How many there are, and how they are rolled out, restarted, spread and handed over, is the controller's affair; whom
    they let in, the gateway's. So is how long their jobs wait and where they go then, which no running one depends on.
    Adapters are loaded and unloaded as it runs, where its engine has the room and can.
    """
    followed = replace(old, model=_followed(old, new))
    return with_count_and_policies_of(new, followed) != new


def with_room_kept(old: Spec, new: Spec) -> Spec:
    """`new`, with the room for adapters that running replicas have, if they would not be replaced but for that.

    So a revision's replicas all have the same room, also those that were started after its last adapter was removed.
    """
    if new.model.adapter_room is not None or needs_revision(old, new):
        return new
    return replace(new, model=replace(new.model, adapter_room=old.model.adapter_room))


def _followed(old: Spec, new: Spec) -> Model:
    """What a running replica of `old` can make itself be without being replaced, as far as it is about adapters."""
    if fixed(new.engine):
        return old.model
    room = old.model.adapter_room if new.model.adapter_room is not None else None
    return replace(old.model, adapters=new.model.adapters, adapter_room=room)


def with_count_and_policies_of(spec: Spec, other: Spec) -> Spec:
    """`other` with everything of `spec` that is not part of a revision."""
    return replace(
        other,
        replicas=spec.replicas,
        rollout=spec.rollout,
        restart=spec.restart,
        placement=replace(other.placement, patience_s=spec.placement.patience_s),
        fallbacks=spec.fallbacks,
        burst=spec.burst,
        node_spread=spec.node_spread,
        handover=spec.handover,
        outside_changes=spec.outside_changes,
        admission=spec.admission,
        routing=spec.routing,
    )
