"""What jobs ask of a node, and whether it has that free: the arithmetic of the fake's scheduler.

Pure. It does not know time, partitions or which job comes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from penstock.core.jobs import Node, Submission
from penstock.slurm import parse
from penstock.testing.jobs import FakeJob

MEMORY_PER_CPU_MIB = 1000
"""What a job gets that asks for no memory; the development cluster's DefMemPerCPU."""


def cpus(submission: Submission) -> int:
    """CPUs on each node."""
    return (submission.cpus_per_task or 1) * submission.tasks_per_node


def memory_mib(submission: Submission) -> int:
    """Memory on each node."""
    if submission.memory_per_node_mib is None:
        return MEMORY_PER_CPU_MIB * cpus(submission)
    return submission.memory_per_node_mib


def gpus(submission: Submission) -> dict[str, int]:
    """GPUs on each node by type; ValueError for a resource that is no GPU."""
    text = submission.gres or ""
    if any(part and part.split(":")[0] != "gpu" for part in text.split(",")):
        raise ValueError(text)
    return parse.parse_gpus(text)


def take_gpus(wanted: Mapping[str, int], there: Mapping[str, int]) -> dict[str, int]:
    """From which types the wanted GPUs are taken; an untyped wish takes any, in order."""
    taken: dict[str, int] = {}
    for kind, count in wanted.items():
        left = count
        for candidate in (kind,) if kind else tuple(there):
            share = min(left, there.get(candidate, 0) - taken.get(candidate, 0))
            taken[candidate] = taken.get(candidate, 0) + share
            left -= share
    return taken


def fits(submission: Submission, node: Node) -> bool:
    """Whether the node, with what it has left, can take one node's share of the job."""
    wanted = gpus(submission)
    return (
        node.name not in submission.exclude_nodes
        and (submission.constraint is None or submission.constraint in node.features)
        and cpus(submission) <= node.cpus
        and memory_mib(submission) <= node.memory_mib
        and sum(take_gpus(wanted, node.gpus).values()) == sum(wanted.values())
    )


def compressed(names: Sequence[str]) -> str:
    """A node list the way Slurm writes it, for names that differ in one trailing number."""
    stems = {name.rstrip("0123456789") for name in names}
    if len(names) < 2 or len(stems) != 1:
        return ",".join(names)
    stem = stems.pop()
    return f"{stem}[{','.join(name.removeprefix(stem) for name in names)}]"


def free(submission: Submission, node: Node, others: Sequence[FakeJob]) -> bool:
    """Whether the node can take one node's share of the job beside `others`, who hold it."""
    if others and (submission.exclusive or any(job.submission.exclusive for job in others)):
        return False
    taken: Counter[str] = Counter()
    for job in others:
        taken.update(take_gpus(gpus(job.submission), node.gpus))
    holds = described(node, others)
    left = replace(
        node,
        cpus=node.cpus - holds.cpus_allocated,
        memory_mib=node.memory_mib - holds.memory_allocated_mib,
        gpus={kind: count - taken[kind] for kind, count in node.gpus.items()},
    )
    return fits(submission, left)


def described(node: Node, jobs: Sequence[FakeJob]) -> Node:
    """The node with what its jobs hold, and the state that follows from it."""
    held = sum(node.cpus if job.submission.exclusive else cpus(job.submission) for job in jobs)
    state = node.state
    if state.startswith("IDLE") and jobs:
        state = state.replace("IDLE", "ALLOCATED" if held >= node.cpus else "MIXED")
    return replace(
        node,
        state=state,
        cpus_allocated=held,
        memory_allocated_mib=sum(memory_mib(job.submission) for job in jobs),
        gpus_allocated=sum(sum(gpus(job.submission).values()) for job in jobs),
    )
