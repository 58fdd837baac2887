"""What schemathesis is told beside the documents: whom it may play with, and what no answer may hold.

It is loaded by `schemathesis` itself (SCHEMATHESIS_HOOKS). Cases aim at the deployments that are there to be aimed at,
most of the time; and one machine runs what they ask for, so no case asks for many replicas.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response

TRACES = ("Traceback (most recent call", '.py", line ', "\n  at ")
MOST_REPLICAS = 2
_POOLED = ("embed", "rerank", "score", "classify", "pooling")


def _chance(value: Any) -> float:
    """Between 0 and 1, the same for the same value: a run replays by its seed."""
    return zlib.crc32(json.dumps(value, sort_keys=True, default=str).encode()) / 2**32


@schemathesis.hook
def map_path_parameters(context: HookContext, path_parameters: dict[str, Any]) -> dict[str, Any]:
    """Half of the names are those of something that is there."""
    for name, value in (path_parameters or {}).items():
        if _chance(value) < 0.5:
            of_replica = context.operation is not None and "/replicas/" in context.operation.path
            path_parameters[name] = "target-1" if of_replica else "target"
    return path_parameters


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """The last look, as names are learned from answers too: the bystander is nobody's target, and a log that is
    followed has no end while its job runs."""
    for name, value in (case.path_parameters or {}).items():
        if "bystander" in str(value):
            case.path_parameters[name] = "target-1" if "-" in str(value) else "target"
    (case.query or {}).pop("follow", None)


@schemathesis.hook
def map_body(context: HookContext, body: Any) -> Any:
    """Most models are those that are there; numbers of replicas are small."""
    if not isinstance(body, dict):
        return body
    if "model" in body and _chance(body) < 0.8:
        path = context.operation.path if context.operation is not None else ""
        body["model"] = "pool" if any(word in path for word in _POOLED) else "target"
    spec = body.get("spec")
    for holder in (body, spec if isinstance(spec, dict) else {}):
        if isinstance(holder.get("replicas"), int):
            holder["replicas"] = min(holder["replicas"], MOST_REPLICAS)
    return body


@schemathesis.check
def no_stack_trace(ctx: CheckContext, response: Response, case: Case[Any]) -> None:
    """Nobody is shown the inside."""
    text = response.content.decode(errors="replace")
    for trace in TRACES:
        assert trace not in text, f"a stack trace in the answer: {text[:2000]}"
