"""Every action of the planner has a word and a target in the log."""

from __future__ import annotations

import typing

from penstock.core import decisions as core
from penstock.core.jobs import Job, JobState
from penstock.core.model import RolloutRecord
from penstock.store.records import DecidedAction, decided

JOB = Job(7, "n", "", JobState.RUNNING)

SHOWN: dict[core.Action, DecidedAction] = {
    core.CreateReplica("d", 2): DecidedAction("create-replica", "revision 2"),
    core.Submit("r"): DecidedAction("submit", "replica r"),
    core.Resubmit("r", "t"): DecidedAction("resubmit", "attempt t"),
    core.RecordMissing("t", None): DecidedAction("record-missing", "attempt t"),
    core.BeginHandover("t"): DecidedAction("begin-handover", "attempt t"),
    core.EndAttempt("r", "t", 1, None, 1, None, ""): DecidedAction("end-attempt", "attempt t"),
    core.Drain("r", "t", 7, "n"): DecidedAction("drain", "job 7"),
    core.Cancel("t", 7, "n"): DecidedAction("cancel", "job 7"),
    core.Withdraw("t", 7, "n"): DecidedAction("withdraw", "job 7"),
    core.CancelOrphan(7, "n"): DecidedAction("cancel-orphan", "job 7"),
    core.Adopt("t", JOB): DecidedAction("adopt", "job 7"),
    core.RecordJob("t", JOB): DecidedAction("record-job", "job 7"),
    core.Leave("r"): DecidedAction("leave", "replica r"),
    core.RemoveReplica("r"): DecidedAction("remove-replica", "replica r"),
    core.RecordRollout("d", RolloutRecord()): DecidedAction("record-rollout", "deployment d"),
    core.GoBack("d", 3, 2, RolloutRecord(), ""): DecidedAction("go-back", "revision 2"),
    core.RemoveDeployment("d"): DecidedAction("remove-deployment", "deployment d"),
}


def test_each_action_is_shown() -> None:
    assert {type(action) for action in SHOWN} == set(typing.get_args(core.Action))
    assert {action: decided(action) for action in SHOWN} == SHOWN


def test_by_name_where_it_is_known() -> None:
    names = {"r": "chat-1", "d": "chat"}
    targets = [
        decided(action, names).target
        for action in (core.Submit("r"), core.Leave("r"), core.RemoveDeployment("d"))
    ]
    assert targets == ["replica chat-1", "replica chat-1", "deployment chat"]
