"""Whether an engine can be spread over a replica's GPUs and nodes as its own arguments say: pure.

vLLM would say so too, minutes after the job has started and in a stack trace. Knows core, and neither the protos nor
the cluster.
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.contract import quoted
from penstock.core import parallel
from penstock.core.arguments import options
from penstock.core.spec import Spec
from penstock.rpc.refusals import Violation

ARGS = "spec.engine.args"
_BACKEND = "--distributed-executor-backend"


def check(spec: Spec) -> Iterator[Violation]:
    """What no cluster could start."""
    args, gpus, nodes = spec.engine.args, spec.resources.gpus, spec.resources.nodes
    given, workers, room = parallel.sizes(args), parallel.workers(args), parallel.room(spec.resources)
    for name, size in given.items():
        if not size:
            yield Violation(ARGS, f"{name} must be a number of at least 1")
    if workers is not None and room is not None and workers > room:
        words = " times ".join(f"{name} {size}" for name, size in given.items())
        yield Violation(
            ARGS,
            f"{words} is {workers} GPUs, but a replica has {room}: {gpus} a node (spec.resources.gpus), on"
            f" {nodes} (spec.resources.nodes)",
        )
    elif workers is not None and workers % nodes:
        yield Violation(
            ARGS, f"make {workers} workers; {nodes} nodes (spec.resources.nodes) must have equally many"
        )
    for index, name, value in options(args):
        if nodes > 1 and name == _BACKEND and value != "mp":
            yield Violation(
                f"{ARGS}[{index}]",
                f"{_BACKEND} must be mp for a replica of {nodes} nodes, whose ranks Penstock starts itself,"
                f" not {quoted(value)}",
            )


def warnings(spec: Spec) -> list[str]:
    """What is legal and probably not meant, in sentences."""
    workers, room = parallel.workers(spec.engine.args), parallel.room(spec.resources)
    if workers is None or room is None or workers >= room:
        return []
    return [f"{ARGS}: its parallelism uses {workers} of the {room} GPUs that a replica has"]
