"""Nodes on which attempts fail again and again: who is suspected, and which of them a submission stays away from.

A suspicion is counted from the recorded failures of the last hour, whichever deployments they were of, and ends as they
grow old. It is bounded on all sides. A revision that fails on many nodes is broken itself and accuses none. Where all
the failures are one deployment's, and Slurm blames the node for none, the node may be as good as any: only that
deployment stays away, so that a broken model takes no node from others. Only so few nodes are left out that the job has
room, and never one where a person has chosen the nodes: `nodelist`, a reservation, or a constraint that only Slurm can
read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass
from datetime import datetime

from penstock.core.budget import WINDOW
from penstock.core.jobs import Cluster, Node
from penstock.core.model import Failure
from penstock.core.sentences import clock, count
from penstock.core.slurm_words import ACCUSING_STATES, STATES, Blame
from penstock.core.spec import Placement, Spec

FAILURES = 3
"""On one node within the window: once is chance, and twice may be."""
NODES_OF_A_BROKEN_REVISION = 3
"""A revision that failed on so many nodes is not the nodes' fault."""
SHARE = 4
"""At most one in so many of the nodes that could run the job is left out, though one always may be."""
EXCLUDED_MAX = 16
"""A command line of sbatch stays readable, and more broken nodes than that is not Penstock's to work around."""
NAMED = 3

_PLAIN_FEATURE = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Suspect:
    """A node that failed attempts repeatedly."""

    node: str
    failures: int
    deployments: tuple[str, ...]
    until: datetime
    """When too few of the failures will be young enough, unless more come."""
    only_by: str = ""
    """The one deployment that stays away, whose failures they all are; empty: all stay away."""

    def sentence(self, now: datetime) -> str:
        """Such as `3 attempts of chat failed there within an hour; avoided until 14:50:10`."""
        of = ", ".join(self.deployments[:NAMED]) + (", ..." if len(self.deployments) > NAMED else "")
        return (
            f"{count(self.failures, 'attempt')} of {of} failed there within an hour;"
            f" avoided{' by its replicas' if self.only_by else ''} until {clock(self.until, now)}"
        )


def suspects(failures: Sequence[Failure], now: datetime) -> tuple[Suspect, ...]:
    """The nodes under suspicion, those with the most failures first."""
    young = [
        failure
        for failure in failures
        if failure.ended_at > now - WINDOW
        and failure.nodes
        and (failure.state is None or failure.state in ACCUSING_STATES)
    ]
    places: dict[tuple[str, int], set[str]] = {}
    for failure in young:
        places.setdefault((failure.deployment, failure.revision), set()).update(failure.nodes)
    accused: dict[str, list[Failure]] = {}
    for failure in young:
        if len(places[failure.deployment, failure.revision]) < NODES_OF_A_BROKEN_REVISION:
            for node in failure.nodes:
                accused.setdefault(node, []).append(failure)
    found = [_suspect(node, against) for node, against in accused.items() if len(against) >= FAILURES]
    return tuple(sorted(found, key=lambda suspect: (-suspect.failures, suspect.node)))


def _suspect(node: str, against: Sequence[Failure]) -> Suspect:
    deployments = tuple(sorted({failure.deployment for failure in against}))
    blamed = any(
        failure.state is not None and STATES[failure.state].blame is Blame.NODE for failure in against
    )
    return Suspect(
        node,
        len(against),
        deployments,
        sorted(failure.ended_at for failure in against)[-FAILURES] + WINDOW,
        only_by="" if blamed or len(deployments) > 1 else deployments[0],
    )


def avoided(
    spec: Spec, found: Sequence[Suspect], cluster: Cluster | None, deployment: str
) -> tuple[Suspect, ...]:
    """Those of the suspects that a submission of this spec, for the deployment of this name, stays away from."""
    if not found or cluster is None:
        return ()
    if chosen_by_hand(spec.placement):
        return ()
    fitting = {node.name for node in cluster.nodes if could_run(spec, node, cluster)}
    usable = {node.name for node in cluster.nodes if node.name in fitting and node.usable}
    left_out: list[Suspect] = []
    limit = min(EXCLUDED_MAX, -(-len(fitting) // SHARE))
    for suspect in found:
        if (
            len(left_out) < limit
            and suspect.only_by in ("", deployment)
            and suspect.node in fitting
            and len(usable - {suspect.node}) >= spec.resources.nodes
        ):
            left_out.append(suspect)
            usable.discard(suspect.node)
    return tuple(left_out)


def chosen_by_hand(placement: Placement) -> bool:
    """Whether a person has chosen the nodes, or Slurm alone can read which ones may be used."""
    if placement.reservation or placement.options.keys() & {
        "nodelist",
        "nodefile",
        "constraint",
        "partition",
    }:
        return True
    return bool(placement.constraint) and not _PLAIN_FEATURE.fullmatch(placement.constraint)


def could_run(spec: Spec, node: Node, cluster: Cluster) -> bool:
    """Whether the node has what a replica asks for, if it were empty."""
    resources, placement = spec.resources, spec.placement
    wanted = {name for name in placement.partition.split(",") if name}
    wanted = wanted or {partition.name for partition in cluster.partitions if partition.is_default}
    gpus = node.gpus.get(resources.gpu_type, 0) if resources.gpu_type else node.total_gpus
    return (
        bool(wanted & set(node.partitions))
        and gpus >= resources.gpus
        and node.cpus >= (resources.cpus or 1)
        and node.memory_mib >= (resources.memory_mib or 0)
        and (not placement.constraint or placement.constraint in node.features)
    )


def able(
    spec: Spec, cluster: Cluster, left_out: Collection[str] = (), among: Container[str] | None = None
) -> tuple[Node, ...]:
    """The nodes that take jobs, have what a replica asks for, and are not left out.

    `among`: no others are looked at, which is what it costs on a large cluster; None: all.
    """
    return tuple(
        node
        for node in cluster.nodes
        if (among is None or node.name in among)
        and node.usable
        and node.name not in left_out
        and could_run(spec, node, cluster)
    )


def told(avoiding: Sequence[Suspect], now: datetime) -> str:
    """What a submission's sentence says of the nodes it stays away from; empty where there are none."""
    if not avoiding:
        return ""
    named = "; ".join(f"not on {suspect.node}: {suspect.sentence(now)}" for suspect in avoiding[:NAMED])
    return f"; {named}" + (f"; nor on {len(avoiding) - NAMED} more" if len(avoiding) > NAMED else "")
