"""Over how many GPUs and nodes an engine is spread: what its arguments say, and what is added where they say nothing.

Whoever asks for eight GPUs expects eight to be used, and vLLM alone would take one. Where no argument is about
parallelism, a node's GPUs share each layer (tensor parallel, which needs the fast links inside a node) and the nodes
have layers of their own (pipeline parallel), as vLLM's documentation recommends. One argument about it, and all of it
is the manifest's: nothing is added to a wish that is only half understood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penstock.core.arguments import options
from penstock.core.spec import Resources, Spec

TENSOR, PIPELINE = "--tensor-parallel-size", "--pipeline-parallel-size"

_SIZES: Mapping[str, str] = {
    TENSOR: TENSOR,
    "-tp": TENSOR,
    PIPELINE: PIPELINE,
    "-pp": PIPELINE,
    "--data-parallel-size": "--data-parallel-size",
    "-dp": "--data-parallel-size",
    "--prefill-context-parallel-size": "--prefill-context-parallel-size",
    "-pcp": "--prefill-context-parallel-size",
}
"""vLLM's arguments whose product is the number of its workers."""


def sizes(args: Sequence[str]) -> dict[str, int | None]:
    """The sizes that the arguments give, by their long names; None for one that is no number.

    >>> sizes(["-tp", "4", "--pipeline_parallel_size=2", "--dtype", "auto"])
    {'--tensor-parallel-size': 4, '--pipeline-parallel-size': 2}
    """
    found: dict[str, int | None] = {}
    for _, written, value in options(args):
        if (name := _SIZES.get(written)) is not None:
            found[name] = int(value) if value.isascii() and value.isdigit() else None
    return found


def added(spec: Spec) -> tuple[str, ...]:
    """The arguments that Penstock adds, none where the manifest's own are about parallelism."""
    if sizes(spec.engine.args):
        return ()
    wanted = {TENSOR: spec.resources.gpus, PIPELINE: spec.resources.nodes}
    return tuple(word for name, size in wanted.items() if size > 1 for word in (name, str(size)))


def workers(args: Sequence[str]) -> int | None:
    """How many workers the arguments make, one a GPU; None where they do not say, or not in numbers."""
    found = sizes(args)
    product = 1
    for size in found.values():
        if not size:
            return None
        product *= size
    return product if found else None


def room(resources: Resources) -> int | None:
    """For how many workers a replica has GPUs; None without GPUs, where a node has as many workers as it likes."""
    return resources.gpus * resources.nodes or None
