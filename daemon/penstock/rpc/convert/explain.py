"""Why things are as they are, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.core import model as core
from penstock.rpc.convert.decision import decision_out
from penstock.rpc.convert.deployment import deployment_out
from penstock.store.records import DecisionRecord
from penstock.v1 import decision_pb2


def explanation_out(
    summary: str,
    deployment: core.Deployment,
    replicas: Sequence[core.Replica],
    decisions: Sequence[DecisionRecord],
) -> decision_pb2.ExplainResponse:
    """The deployment's whole answer, or a replica's where it alone was asked for. `summary`: of the deployment."""
    return decision_pb2.ExplainResponse(
        summary=summary,
        conditions=deployment_out(deployment).status.conditions,
        replicas=[
            decision_pb2.ReplicaExplanation(
                replica=replica.name, message=f"{replica.state}: {replica.message}"
            )
            for replica in replicas
        ],
        decisions=[decision_out(decision) for decision in decisions],
    )
