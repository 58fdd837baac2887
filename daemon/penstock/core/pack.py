"""Replicas on as few nodes as possible: which nodes a submission asks for, and for how long.

Where a site has not told Slurm to seek out idle nodes (CR_LLN, or LLN of a partition) it fills one node after the
other by itself, but with everybody's jobs alike; it has no wish for a deployment's replicas to lie together. What there
is is --nodelist, which is a must and no wish: a job that asks for a node waits for it while others are idle. So a
submission asks for a node only where one runs a replica of its deployment and has room by the last look at the cluster,
and it is withdrawn when it has waited there for PACK_WAIT_S (`waiting`) all the same: somebody was faster. The next
asks for none, and Slurm chooses. Where no node that runs one has room, none is asked for in the first place.

As with spreading they are submitted one after the other, so that each sees where the one before went, and what runs is
never moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penstock.core.jobs import Cluster, Node
from penstock.core.model import Deployment
from penstock.core.spec import NodeSpread, Spec
from penstock.core.spread import choice, has_room


def packs(deployment: Deployment) -> bool:
    """Whether its replicas are to lie on as few nodes as possible."""
    return deployment.spec.node_spread is NodeSpread.PACK


def company(
    spec: Spec, there: Mapping[str, int], cluster: Cluster | None, left_out: Sequence[str] = ()
) -> tuple[str, ...]:
    """Nodes that a submission of this spec asks for, at most as many as it takes; none: Slurm chooses.

    `there`: node -> how many of the deployment's replicas it runs. `left_out`: nodes that are left out anyway.
    """
    nodes = [
        node
        for node in choice(spec, there, cluster, left_out, among=there)
        if _takes_another(spec, node, there[node.name])
    ]
    # The fullest first, so that the others become empty one day.
    nodes.sort(key=lambda node: (-there[node.name], -node.cpus_allocated, node.name))
    return tuple(node.name for node in nodes[: spec.resources.nodes])


def _takes_another(spec: Spec, node: Node, mine: int) -> bool:
    """Whether a job of this spec would start there now. The last look may be older than the jobs that are there."""
    wanted, all_of_them = spec.resources, mine + 1
    if spec.placement.exclusive:
        return False
    return (
        has_room(spec, node)
        and node.cpus >= all_of_them * (wanted.cpus or 1)
        and node.memory_mib >= all_of_them * (wanted.memory_mib or 0)
        and node.total_gpus >= all_of_them * wanted.gpus
    )
