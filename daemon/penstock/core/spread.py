"""Replicas on as many nodes as there are: which nodes a submission stays away from, and when it waits for another one.

Slurm has no wish for this between jobs, only --exclude. So a submission leaves out the nodes that run more replicas of
its deployment than others do, as long as enough nodes remain that have room now; where none has, any node is good, and
nothing is left out: waiting for a place of one's own is worse than sharing one. What Slurm then starts stays where it
is; nothing is moved.

The look at the cluster may be old, and a job that is requeued keeps what it was told: one that waits for PACK_WAIT_S is
withdrawn (`waiting`), and the next one may run anywhere.

Several that are submitted at once would all go to the first node. So they go one after the other: each waits until the
one before has its node, and a queue that is longer than SPREAD_WAIT_S is not waited for.

Where replicas are is read from the queue of this tick; which nodes have room, from the last look at the cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from penstock.core.decisions import Decision, Reason, Submit
from penstock.core.jobs import Cluster, Job, Node
from penstock.core.model import Deployment, Replica, ReplicaState
from penstock.core.node_lists import known_nodes
from penstock.core.scene import Outlook
from penstock.core.spec import NodeSpread, Spec
from penstock.core.suspects import able, chosen_by_hand

SPREAD_WAIT_S = 15
"""A free cluster starts a job within a few seconds; a full one makes every wait a queue's."""
SPREAD_MAX = 128
"""Names on sbatch's command line."""


def spreads(deployment: Deployment) -> bool:
    """Whether its replicas are to lie on as many nodes as there are."""
    return deployment.spec.node_spread is NodeSpread.SPREAD


def crowded(
    spec: Spec, there: Mapping[str, int], cluster: Cluster | None, left_out: Sequence[str] = ()
) -> tuple[str, ...]:
    """Nodes that a submission of this spec leaves to the replicas that they run already.

    `there`: node -> how many of the deployment's replicas it runs. `left_out`: nodes that are left out anyway.
    """
    nodes = choice(spec, there, cluster, left_out)
    free = sorted(there.get(node.name, 0) for node in nodes if has_room(spec, node))
    if len(free) < spec.resources.nodes:
        return ()
    level = free[spec.resources.nodes - 1]
    fuller = [node.name for node in nodes if there.get(node.name, 0) > level]
    return tuple(sorted(fuller, key=lambda name: (-there[name], name))[:SPREAD_MAX])


def choice(
    spec: Spec,
    there: Mapping[str, int],
    cluster: Cluster | None,
    left_out: Sequence[str],
    among: Container[str] | None = None,
) -> tuple[Node, ...]:
    """Nodes among which a submission chooses by what they run already; none: it does not, or a person has chosen.

    `among`: as in `able`.
    """
    if cluster is None or not there or chosen_by_hand(spec.placement):
        return ()
    return able(spec, cluster, left_out, among)


def has_room(spec: Spec, node: Node) -> bool:
    """Whether a job of this spec would start there now, as far as the totals tell."""
    wanted = spec.resources
    if spec.placement.exclusive:
        return node.cpus_allocated == 0
    return (
        node.cpus - node.cpus_allocated >= (wanted.cpus or 1)
        and node.memory_mib - node.memory_allocated_mib >= (wanted.memory_mib or 0)
        and node.total_gpus - node.gpus_allocated >= wanted.gpus
    )


def occupied(jobs: Iterable[Job | None]) -> Mapping[str, int]:
    """How many of these jobs each node runs."""
    return Counter(
        name for job in jobs if job is not None and not job.ended for name in known_nodes(job.nodes)
    )


def one_by_one(
    deployment: Deployment,
    replicas: Sequence[Replica],
    jobs: Mapping[str, Job | None],
    outlooks: Mapping[str, Outlook],
    reason: Reason,
    now: datetime,
) -> Mapping[str, Outlook]:
    """The outlooks of replicas that are not submitted yet, for this reason: another one has no node yet."""
    wait = timedelta(seconds=SPREAD_WAIT_S)
    ahead: Replica | None = None
    for replica in replicas:
        attempt, job = replica.live_attempt, jobs[replica.uid]
        if attempt is not None and (job is None or job.waiting) and now < attempt.intended_at + wait:
            ahead = replica
    waiting: dict[str, Outlook] = {}
    for replica in replicas:
        outlook = outlooks[replica.uid]
        if not any(isinstance(action, Submit) for action in outlook.decision.actions):
            continue
        if ahead is None:
            ahead = replica
            continue
        message = (
            f"{ahead.name} is to have its node first; no queue of more than {SPREAD_WAIT_S} s is waited for"
        )
        decision = Decision(deployment.name, replica.name, reason, message)
        waiting[replica.uid] = replace(
            outlook, decision=decision, state=ReplicaState.WAITING, message=message
        )
    return waiting
