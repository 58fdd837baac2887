"""What a cluster can never run, each with the cluster's own numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from penstock.core.jobs import Cluster, Node, Partition
from penstock.core.spec import Burst, Model, Placement, Resources, Spec
from penstock.rpc.limits import check
from penstock.rpc.refusals import Fault


def node(name: str, partitions: tuple[str, ...], gpus: dict[str, int] | None = None, **rest: Any) -> Node:
    sizes = {"cpus": 8, "memory_mib": 16000} | rest
    return Node(name, "IDLE", gpus=gpus or {}, partitions=partitions, **sizes)


def partition(name: str, **rest: Any) -> Partition:
    defaults: dict[str, Any] = {
        "up": True,
        "is_default": name == "gpu",
        "max_time_s": None,
        "default_time_s": None,
        "max_nodes": None,
        "total_nodes": 2,
        "total_cpus": 16,
        "nodes": (),
    }
    return Partition(name, **(defaults | rest))


CLUSTER = Cluster(
    name="c",
    slurm_version="22.05.8",
    partitions=(
        partition("gpu", max_time_s=86400),
        partition("mixed"),
        partition("cpu", max_time_s=3600, allowed_accounts=("physics",), allowed_qos=("normal", "high")),
        partition("empty"),
    ),
    nodes=(
        node("n1", ("gpu", "mixed"), {"a100": 4, "t4": 1}),
        node("n2", ("gpu",), {"a100": 2}, memory_mib=64000, cpus=4),
        node("n3", ("cpu", "mixed"), cpus=64),
    ),
    accounts=("physics", "chemistry"),
)


def spec(placement: Placement | None = None, **resources: Any) -> Spec:
    return Spec(Model(path="/a"), resources=Resources(**resources), placement=placement or Placement())


def limited(time_limit: str, seconds: int, **rest: Any) -> Placement:
    return Placement(time_limit=time_limit, time_limit_s=seconds, **rest)


FITS = [
    spec(),
    spec(gpus=5),
    spec(gpus=4, gpu_type="a100", cpus=8, memory_mib=16000),
    spec(Placement(partition="cpu", account="physics", qos="high"), cpus=64),
    spec(Placement(partition="cpu,gpu"), gpus=4),
    spec(limited("1-0", 86400)),
    spec(limited("30d", 2592000, partition="mixed")),
    spec(limited("2h", 7200, partition="cpu,gpu")),
    spec(Placement(account="chemistry")),
]


@pytest.mark.parametrize("wanted", FITS)
def test_what_fits_is_not_refused(wanted: Spec) -> None:
    assert check(wanted, CLUSTER) == []


REFUSED = [
    (
        spec(Placement(partition="debug")),
        'spec.placements[0].partition: the cluster has no partition "debug"; it has cpu, empty, gpu, mixed',
    ),
    (spec(Placement(partition="empty")), "spec.placements[0].partition: partition empty has no node"),
    (
        spec(gpus=8),
        "spec.resources.gpus: 8 GPUs a node cannot be had:"
        " the most that a node of partition gpu has is 5 GPUs (node n1)",
    ),
    (
        spec(gpus=2, gpu_type="t4"),
        "spec.resources.gpus: 2 GPUs of type t4 a node cannot be had: the most that a node of partition gpu has is"
        " 1 GPU of type t4 (node n1)",
    ),
    (
        spec(gpus=1, gpu_type="h100"),
        'spec.resources.gpu_type: partition gpu has no GPU of type "h100"; it has a100, t4',
    ),
    (
        spec(Placement(partition="cpu"), gpus=1),
        "spec.resources.gpus: 1 GPU a node cannot be had: no node of partition cpu has any",
    ),
    (
        spec(cpus=9),
        "spec.resources.cpus: 9 CPUs a node cannot be had:"
        " the most that a node of partition gpu has is 8 CPUs (node n1)",
    ),
    (
        spec(memory="64GiB", memory_mib=65536),
        "spec.resources.memory: 64GiB a node cannot be had:"
        " the most that a node of partition gpu has is 64000MiB (node n2)",
    ),
    (
        spec(gpus=4, memory="32GiB", memory_mib=32768),
        "spec.resources: no node of partition gpu has 4 GPUs and 32GiB of memory together",
    ),
    (
        spec(limited("2d", 172800)),
        'spec.placements[0].time_limit: "2d" is longer than partition gpu allows, 1-00:00:00',
    ),
    (
        spec(Placement(account="biology")),
        'spec.placements[0].account: there is no account "biology" for this user;'
        " this user may charge chemistry, physics",
    ),
    (
        spec(Placement(partition="cpu", account="chemistry")),
        'spec.placements[0].account: partition cpu takes physics, not "chemistry"',
    ),
    (
        spec(Placement(partition="cpu", qos="low")),
        'spec.placements[0].qos: partition cpu takes high, normal, not "low"',
    ),
    (
        spec(nodes=3),
        "spec.resources.nodes: a job in partition gpu may have at most 2, not 3",
    ),
]


@pytest.mark.parametrize(("wanted", "message"), REFUSED, ids=[message[:70] for _, message in REFUSED])
def test_what_can_never_run_is_refused_with_the_clusters_numbers(wanted: Spec, message: str) -> None:
    found = check(wanted, CLUSTER)
    assert [str(violation) for violation in found] == [message]
    assert found[0].fault is Fault.CLUSTER_CANNOT


def test_no_default_partition() -> None:
    cluster = replace(CLUSTER, partitions=CLUSTER.partitions[1:])
    assert str(check(spec(), cluster)[0]) == (
        "spec.placements[0].partition: must be given: the cluster has no default partition; it has cpu, empty, mixed"
    )


def test_a_site_without_accounting_takes_any_account() -> None:
    assert check(spec(Placement(account="anything")), replace(CLUSTER, accounts=None)) == []


def test_a_node_that_is_down_now_counts() -> None:
    down = replace(CLUSTER, nodes=tuple(replace(each, state="DOWN") for each in CLUSTER.nodes))
    assert check(spec(gpus=5), down) == []


def test_a_long_list_of_names_is_cut() -> None:
    many = replace(CLUSTER, partitions=tuple(partition(f"p{number:02}") for number in range(30)))
    assert str(check(spec(Placement(partition="x")), many)[0]).endswith("p18, p19 and 10 more")


def test_every_placement_is_looked_at() -> None:
    wanted = replace(
        spec(),
        fallbacks=(Placement(partition="mixed"), Placement(partition="debug")),
        burst=Burst(1, (Placement(partition="spot"),)),
    )
    found = [f"{one.field}: {one.message}" for one in check(wanted, CLUSTER)]
    assert len(found) == 2
    assert found[0].startswith('spec.placements[2].partition: the cluster has no partition "debug"; it has ')
    assert found[1].startswith(
        'spec.burst.placements[0].partition: the cluster has no partition "spot"; it has '
    )
