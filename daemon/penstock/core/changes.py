"""What differs between two specs, and whether the difference makes a new revision. Pure; knows core only
through values.
"""

from __future__ import annotations

from dataclasses import replace

from penstock.core.adapters import fixed
from penstock.core.spec import Model, Spec


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
