"""Decisions: those in the log, and those that a plan would make now."""

from __future__ import annotations

from datetime import datetime

from penstock.core import decisions as core
from penstock.rpc.convert.time import time_out
from penstock.store.records import DecidedAction, DecisionRecord, decided
from penstock.v1 import decision_pb2


def decision_out(record: DecisionRecord) -> decision_pb2.Decision:
    """A row of the log."""
    return decision_pb2.Decision(
        id=record.id,
        tick=record.tick,
        deployment=record.deployment,
        replica=record.replica,
        reason=record.reason,
        message=record.message,
        actions=[_action_out(action) for action in record.actions],
        first_at=time_out(record.first_at),
        last_at=time_out(record.last_at),
        count=record.count,
    )


def planned_out(decision: core.Decision, now: datetime) -> decision_pb2.Decision:
    """A decision that is not in the log: no id, no tick."""
    uids = {uid for action in decision.actions if (uid := getattr(action, "replica_uid", None)) is not None}
    names = dict.fromkeys(uids, decision.replica) if decision.replica else {}
    return decision_pb2.Decision(
        deployment=decision.deployment,
        replica=decision.replica,
        reason=decision.reason.word,
        message=decision.message,
        actions=[_action_out(decided(action, names)) for action in decision.actions],
        first_at=time_out(now),
        last_at=time_out(now),
        count=1,
    )


def _action_out(action: DecidedAction) -> decision_pb2.DecidedAction:
    return decision_pb2.DecidedAction(action=action.action, target=action.target, outcome=action.outcome)
