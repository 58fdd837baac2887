"""What differs between two specs, and whether the difference makes a new revision. Pure; knows core only
through values.
"""

from __future__ import annotations

from dataclasses import replace

from penstock.core.spec import Spec


def needs_revision(old: Spec, new: Spec) -> bool:
    """Whether a running replica depends on the difference.

    How many there are, and how they are rolled out, restarted, spread and handed over, is the controller's affair; whom
    they let in, the gateway's. So is how long their jobs wait and where they go then, which no running one depends on.
    """
    return with_count_and_policies_of(new, old) != new


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
