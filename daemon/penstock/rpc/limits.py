"""Whether this cluster could ever run a spec: pure, Spec and Cluster in, violations with the cluster's own
numbers out.

Speaks of what the cluster has, never of what is free: waiting in Slurm's queue is not a failure. Knows core,
and neither the protos nor Slurm. A node that is down now counts as well, since it may come back; one that no
partition lists does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from penstock.contract import quoted
from penstock.core.jobs import Cluster, Node, Partition
from penstock.core.spec import Handover, Spec
from penstock.rpc.quantities import as_memory, as_time
from penstock.rpc.refusals import Fault, Violation

MAX_NAMES = 20
"""How many names of partitions, accounts and the like a sentence lists."""


def check(spec: Spec, cluster: Cluster) -> list[Violation]:
    """What this cluster can never give the spec at one of its placements; empty: all is well."""
    paths = {f"spec.placements[{index}]": one for index, one in enumerate(spec.placements)}
    if spec.burst is not None:
        paths |= {f"spec.burst.placements[{index}]": one for index, one in enumerate(spec.burst.placements)}
    found: list[Violation] = []
    for path, placement in paths.items():
        found += _check_one(replace(spec, placement=placement), cluster, path)
    return list(dict.fromkeys(found))


def _check_one(spec: Spec, cluster: Cluster, path: str) -> list[Violation]:
    """The same for `spec.placement`, which stands at `path`."""
    found: list[Violation] = []
    partitions = _partitions(spec, cluster, path, found)
    if partitions:
        found += _time(spec, path, partitions)
        found += _margin(spec, partitions)
        found += _accounts(spec, cluster, path, partitions)
        found += _nodes(spec, cluster, path, partitions)
    return found


def _partitions(spec: Spec, cluster: Cluster, path: str, found: list[Violation]) -> list[Partition]:
    by_name = {partition.name: partition for partition in cluster.partitions}
    if not spec.placement.partition:
        if default := [partition for partition in cluster.partitions if partition.is_default]:
            return default
        found.append(
            _cannot(
                f"{path}.partition",
                f"must be given: the cluster has no default partition; it has {_list(by_name)}",
            )
        )
        return []
    wanted = [name for name in spec.placement.partition.split(",") if name]
    for name in wanted:
        if name not in by_name:
            found.append(
                _cannot(
                    f"{path}.partition",
                    f"the cluster has no partition {quoted(name)}; it has {_list(by_name)}",
                )
            )
    return [by_name[name] for name in wanted if name in by_name]


def _time(spec: Spec, path: str, partitions: list[Partition]) -> Iterable[Violation]:
    wanted_s = spec.placement.time_limit_s
    limits = [partition.max_time_s for partition in partitions]
    if wanted_s is None or any(limit is None or wanted_s <= limit for limit in limits):
        return
    best = max(partitions, key=lambda partition: partition.max_time_s or 0)
    yield _cannot(
        f"{path}.time_limit",
        f"{quoted(spec.placement.time_limit)} is longer than partition {best.name} allows,"
        f" {as_time(best.max_time_s or 0)}",
    )


def _margin(spec: Spec, partitions: list[Partition]) -> Iterable[Violation]:
    """Where no time limit is given the partition's own counts, and a margin that was given must fit into it."""
    margin_s = spec.handover.margin_s
    if (
        not spec.handover.enabled
        or spec.placement.time_limit_s is not None
        or margin_s == Handover().margin_s
    ):
        return
    for partition in partitions:
        limit_s = partition.default_time_s or partition.max_time_s
        if limit_s is not None and margin_s >= limit_s:
            yield _cannot(
                "spec.handover.margin_s",
                f"must be shorter than the time limit that partition {partition.name} gives a job,"
                f" {as_time(limit_s)}, not {margin_s} s",
            )
            return


def _accounts(spec: Spec, cluster: Cluster, path: str, partitions: list[Partition]) -> Iterable[Violation]:
    account, qos = spec.placement.account, spec.placement.qos
    if account and isinstance(cluster.accounts, tuple) and account not in cluster.accounts:
        may = (
            f"this user may charge {_list(cluster.accounts)}"
            if cluster.accounts
            else "this user may charge none"
        )
        yield _cannot(f"{path}.account", f"there is no account {quoted(account)} for this user; {may}")
        return
    allowed = _allowed(account, partitions, lambda partition: partition.allowed_accounts)
    if allowed is not None:
        yield _cannot(f"{path}.account", f"{_of(partitions)} takes {_list(allowed)}, not {quoted(account)}")
    allowed = _allowed(qos, partitions, lambda partition: partition.allowed_qos)
    if allowed is not None:
        yield _cannot(f"{path}.qos", f"{_of(partitions)} takes {_list(allowed)}, not {quoted(qos)}")


def _allowed(
    word: str, partitions: list[Partition], names: Callable[[Partition], tuple[str, ...] | None]
) -> list[str] | None:
    """None: the word is unset or one of the partitions takes it; else what they take."""
    taken: list[str] = []
    for partition in partitions:
        allowed = names(partition)
        if not word or allowed is None or word in allowed:
            return None
        taken += allowed
    return sorted(set(taken))


def _nodes(spec: Spec, cluster: Cluster, path: str, partitions: list[Partition]) -> Iterable[Violation]:
    wanted = spec.resources
    names = {partition.name for partition in partitions}
    nodes = [node for node in cluster.nodes if names & set(node.partitions)]
    if not nodes:
        yield _cannot(f"{path}.partition", f"{_of(partitions)} has no node")
        return
    most = max(min(len(_in(nodes, partition)), partition.max_nodes or len(nodes)) for partition in partitions)
    if wanted.nodes > most:
        yield _cannot(
            "spec.resources.nodes", f"a job in {_of(partitions)} may have at most {most}, not {wanted.nodes}"
        )

    problems = [
        *_most(nodes, partitions, "spec.resources.cpus", wanted.cpus or 0, lambda node: node.cpus, _cpus),
        *_most(
            nodes,
            partitions,
            "spec.resources.memory",
            wanted.memory_mib or 0,
            lambda node: node.memory_mib,
            as_memory,
        ),
        *_gpus(spec, nodes, partitions),
    ]
    yield from problems
    fitting = [node for node in nodes if _fits(spec, node)]
    together = max(len(_in(fitting, partition)) for partition in partitions)
    if not problems and fitting and together < wanted.nodes <= most:
        yield _cannot(
            "spec.resources.nodes",
            f"only {together} of a partition's nodes ({_of(partitions)}) have what spec.resources asks of each, not"
            f" {wanted.nodes}",
        )
    if not problems and not fitting:
        asked = [f"{_gpu_words(spec)}"] if wanted.gpus else []
        asked += [_cpus(wanted.cpus)] if wanted.cpus else []
        asked += [f"{as_memory(wanted.memory_mib)} of memory"] if wanted.memory_mib else []
        yield _cannot("spec.resources", f"no node of {_of(partitions)} has {' and '.join(asked)} together")


def _gpus(spec: Spec, nodes: list[Node], partitions: list[Partition]) -> Iterable[Violation]:
    wanted = spec.resources
    if not wanted.gpus:
        return
    if not wanted.gpu_type:
        yield from _most(
            nodes, partitions, "spec.resources.gpus", wanted.gpus, lambda node: node.total_gpus, _gpu
        )
        return
    types = sorted({kind for node in nodes for kind in node.gpus if kind})
    if wanted.gpu_type not in types:
        has = f"it has {_list(types)}" if types else "its nodes name no type"
        yield _cannot(
            "spec.resources.gpu_type",
            f"{_of(partitions)} has no GPU of type {quoted(wanted.gpu_type)}; {has}",
        )
        return
    yield from _most(
        nodes,
        partitions,
        "spec.resources.gpus",
        wanted.gpus,
        lambda node: node.gpus.get(wanted.gpu_type, 0),
        lambda count: f"{_gpu(count)} of type {wanted.gpu_type}",
    )


def _most(
    nodes: list[Node],
    partitions: list[Partition],
    field: str,
    wanted: int,
    has: Callable[[Node], int],
    words: Callable[[int], str],
) -> Iterable[Violation]:
    """A violation if no node has as much as is wanted, naming the one that has most."""
    best = max(nodes, key=has)
    if wanted > has(best):
        most = f"the most that a node of {_of(partitions)} has is {words(has(best))} (node {best.name})"
        if not has(best):
            most = f"no node of {_of(partitions)} has any"
        yield _cannot(field, f"{words(wanted)} a node cannot be had: {most}")


def _fits(spec: Spec, node: Node) -> bool:
    wanted = spec.resources
    gpus = node.gpus.get(wanted.gpu_type, 0) if wanted.gpu_type else node.total_gpus
    return (
        gpus >= wanted.gpus
        and node.cpus >= (wanted.cpus or 0)
        and node.memory_mib >= (wanted.memory_mib or 0)
    )


def _in(nodes: list[Node], partition: Partition) -> list[Node]:
    return [node for node in nodes if partition.name in node.partitions]


def _of(partitions: list[Partition]) -> str:
    names = ", ".join(partition.name for partition in partitions)
    return f"partition {names}" if len(partitions) == 1 else f"partitions {names}"


def _gpu(count: int) -> str:
    return f"{count} GPU" if count == 1 else f"{count} GPUs"


def _cpus(count: int) -> str:
    return f"{count} CPU" if count == 1 else f"{count} CPUs"


def _gpu_words(spec: Spec) -> str:
    return _gpu(spec.resources.gpus) + (
        f" of type {spec.resources.gpu_type}" if spec.resources.gpu_type else ""
    )


def _list(names: Iterable[str]) -> str:
    known = sorted(names)
    if not known:
        return "none"
    more = f" and {len(known) - MAX_NAMES} more" if len(known) > MAX_NAMES else ""
    return ", ".join(known[:MAX_NAMES]) + more


def _cannot(field: str, message: str) -> Violation:
    return Violation(field, message, Fault.CLUSTER_CANNOT)
