"""What follows from failures beyond one replica's back-off: the budget, the suspected nodes, the crash loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from penstock.core.backoff import JITTER, delay
from penstock.core.budget import HeldBack, held_back
from penstock.core.conditions import LAST_CHARACTERS, conditions_of, crash_loop, worst_loop
from penstock.core.decisions import Decision, Reason, Submit
from penstock.core.jobs import Cluster, JobState, Node, Partition
from penstock.core.model import ConditionStatus, Deployment, Failure, Phase, Replica, ReplicaState
from penstock.core.plan import plan
from penstock.core.spec import Placement, Resources, RestartPolicy
from penstock.core.suspects import EXCLUDED_MAX, Suspect, avoided, suspects, told
from tests.worlds import NOW, SPEC, at, attempt, deployment, drawn, ready_attempt, replica, world


def failed(
    seconds: float,
    *,
    of: str = "chat",
    revision: int = 1,
    state: JobState | None = JobState.FAILED,
    nodes: tuple[str, ...] = ("gpu1",),
) -> Failure:
    return Failure(of, revision, f"{of}-1", at(seconds), state, nodes)


def failures(count: int, **facts: Any) -> tuple[Failure, ...]:
    """One a minute, the last one a minute ago."""
    return tuple(failed(-60 * (number + 1), **facts) for number in range(count))


def waiting(number: int = 1, **changes: Any) -> Replica:
    return replica(number, its=attempt(ended_at=at(-9)), state=ReplicaState.WAITING, **changes)


def budget(of: int | None, replicas: int = 1) -> Deployment:
    made = deployment(replicas=replicas)
    return replace(made, spec=replace(made.spec, restart=RestartPolicy(max_failures_per_hour=of)))


class TestBudget:
    def test_by_default_ten_or_five_for_each_replica(self) -> None:
        allowed = [RestartPolicy().failures_allowed(count) for count in (0, 1, 2, 3, 100)]
        assert allowed == [10, 10, 10, 15, 500]
        assert RestartPolicy(max_failures_per_hour=2).failures_allowed(100) == 2

    def test_until_the_oldest_of_them_is_an_hour_old(self) -> None:
        held = held_back(budget(3), [waiting()], failures(3), NOW)
        assert held == {"r1": HeldBack(3, 3, at(3600 - 180))}
        assert held_back(budget(3), [waiting()], failures(3), at(3600 - 180)) == {}

    def test_of_more_than_allowed_so_many_must_grow_old(self) -> None:
        """The budget was made smaller since."""
        assert held_back(budget(2), [waiting()], failures(5), NOW)["r1"].until == at(3600 - 120)

    @pytest.mark.parametrize(
        "counted",
        [
            failures(2),
            failures(9, revision=2),
            failures(9, of="embed"),
            failures(9, state=JobState.PREEMPTED),
            failures(9, state=JobState.NODE_FAIL),
            failures(9, state=None),
            tuple(failed(-3600 - number) for number in range(9)),
        ],
        ids=["fewer", "another revision", "another one's", "preempted", "dead node", "no job", "old"],
    )
    def test_what_does_not_count(self, counted: tuple[Failure, ...]) -> None:
        assert held_back(budget(3), [waiting()], counted, NOW) == {}

    def test_what_is_under_way_may_fail_too(self) -> None:
        trying = replica(1, its=attempt(), state=ReplicaState.STARTING)
        serving = replica(2, its=ready_attempt(token=drawn(2)), state=ReplicaState.READY)
        held = held_back(
            budget(5, 5), [trying, serving, waiting(3), waiting(4), waiting(5)], failures(2), NOW
        )
        assert held == {"r5": HeldBack(2, 5, None)}

    def test_nothing_failed_so_everything_may_start(self) -> None:
        assert held_back(budget(1, 9), [replica(number) for number in range(1, 10)], (), NOW) == {}

    def test_in_a_plan(self) -> None:
        made = plan(world([budget(3)], [waiting(failures=3)], failures=failures(3)))
        (said,) = [decision for decision in made.decisions if decision.replica]
        assert (said.reason, said.actions) == (Reason.BUDGET_SPENT, ())


GPU = Node("", "IDLE", cpus=8, memory_mib=16000, gpus={"a100": 4}, partitions=("gpu",))


def cluster(count: int, **changes: Any) -> Cluster:
    nodes = tuple(replace(GPU, name=f"gpu{number}", **changes) for number in range(1, count + 1))
    names = tuple(node.name for node in nodes)
    partition = Partition("gpu", True, True, None, None, None, count, 8 * count, names)
    return Cluster("test", "26.05.5", (partition,), nodes)


def suspect(node: str = "gpu1") -> Suspect:
    return Suspect(node, 3, ("chat",), at(3000))


class TestSuspects:
    def test_three_within_an_hour_whoever_they_were_of(self) -> None:
        told_of = [failed(-60), failed(-600, of="embed"), failed(-1200, of="embed")]
        assert suspects(told_of, NOW) == (Suspect("gpu1", 3, ("chat", "embed"), at(2400)),)
        assert suspects(told_of[:2], NOW) == ()
        assert suspects(told_of, at(2400)) == ()

    def test_a_revision_that_fails_everywhere_accuses_nobody(self) -> None:
        here_and_there = [*failures(4), failed(-5, nodes=("gpu2",)), failed(-6, nodes=("gpu3",))]
        assert suspects(here_and_there, NOW) == ()
        assert [one.node for one in suspects([*here_and_there, *failures(3, of="embed")], NOW)] == ["gpu1"]

    def test_one_deployments_failures_keep_no_other_away(self) -> None:
        (own,) = suspects(failures(3), NOW)
        assert avoided(SPEC, [own], cluster(2), "chat") == (own,)
        assert avoided(SPEC, [own], cluster(2), "embed") == ()
        assert "avoided by its replicas until" in own.sentence(NOW)
        for more in (failures(1, of="embed"), failures(1, state=JobState.NODE_FAIL)):
            (of_all,) = suspects([*failures(3), *more], NOW)
            assert avoided(SPEC, [of_all], cluster(2), "other") == (of_all,)

    def test_slurms_own_decisions_accuse_nobody(self) -> None:
        assert suspects(failures(9, state=JobState.PREEMPTED), NOW) == ()
        assert suspects(failures(9, state=None, nodes=()), NOW) == ()
        assert [one.node for one in suspects(failures(3, state=JobState.NODE_FAIL), NOW)] == ["gpu1"]

    @pytest.mark.parametrize(("nodes", "left_out"), [(1, 0), (2, 1), (4, 1), (5, 2), (8, 2), (1000, 16)])
    def test_never_all_of_them(self, nodes: int, left_out: int) -> None:
        found = [suspect(f"gpu{number}") for number in range(1, nodes + 1)]
        assert len(avoided(SPEC, found, cluster(nodes), "chat")) == left_out <= EXCLUDED_MAX

    def test_the_job_keeps_its_room(self) -> None:
        wide = replace(SPEC, resources=Resources(nodes=2))
        assert avoided(wide, [suspect()], cluster(2), "chat") == ()
        assert avoided(wide, [suspect()], cluster(3), "chat") == (suspect(),)
        assert avoided(SPEC, [suspect()], cluster(2, state="DOWN"), "chat") == ()

    @pytest.mark.parametrize(
        "placement",
        [
            Placement(reservation="weekend"),
            Placement(constraint="a100&nvlink"),
            Placement(constraint="nvlink"),
            Placement(partition="cpu"),
            Placement(options={"nodelist": "gpu1"}),
        ],
        ids=["reservation", "expression", "feature that none has", "another partition", "chosen nodes"],
    )
    def test_where_a_person_has_chosen(self, placement: Placement) -> None:
        assert avoided(replace(SPEC, placement=placement), [suspect()], cluster(8), "chat") == ()

    def test_nodes_that_could_not_run_it_are_not_counted(self) -> None:
        assert avoided(replace(SPEC, resources=Resources(gpus=8)), [suspect()], cluster(8), "chat") == ()
        assert (
            avoided(
                replace(SPEC, resources=Resources(gpus=1, gpu_type="h100")), [suspect()], cluster(8), "chat"
            )
            == ()
        )
        assert avoided(
            replace(SPEC, resources=Resources(gpus=4, gpu_type="a100")), [suspect()], cluster(8), "chat"
        )

    def test_not_without_knowing_the_nodes(self) -> None:
        assert avoided(SPEC, [suspect()], None, "chat") == ()

    def test_many_are_said_in_one_sentence(self) -> None:
        said = told([suspect(f"gpu{number}") for number in range(1, 6)], NOW)
        assert said.startswith(
            "; not on gpu1: 3 attempts of chat failed there within an hour; avoided until 14:50:00;"
        )
        assert said.endswith("; nor on 2 more")
        assert told([], NOW) == ""

    def test_in_a_plan(self) -> None:
        found = plan(world([deployment()], [waiting()], failures=failures(3), cluster=cluster(2)))
        actions = [action for decision in found.decisions for action in decision.actions]
        assert actions == [Submit("r1", ("gpu1",))]


LOOPING = 4
"""Its place among the conditions."""


class TestCrashLoop:
    def loop(self, **changes: Any) -> Replica:
        its = attempt(
            ended_at=at(-9), end_message="job 7 ended as FAILED with exit code 1", exit_code=1, **changes
        )
        return replica(its=its, state=ReplicaState.WAITING, failures=3)

    def test_says_how_often_how_and_what_the_engine_said(self) -> None:
        words = "\n".join(f"line {number}" for number in range(9)) + "\n\n"
        assert crash_loop(self.loop(last_words=words)) == (
            "chat-1 failed 3 times in a row, the last time with exit code 1: job 7 ended as FAILED with exit code 1;"
            " the engine's last lines: line 4 | line 5 | line 6 | line 7 | line 8"
        )

    def test_is_bounded(self) -> None:
        said = crash_loop(self.loop(last_words="x" * 100_000))
        assert len(said) < LAST_CHARACTERS + 200
        assert "\n" not in said

    @pytest.mark.parametrize(
        ("changes", "looping"),
        [
            ({}, True),
            ({"failures": 2}, False),
            ({"leaving": True}, False),
            ({"state": ReplicaState.READY}, False),
            ({"state": ReplicaState.STARTING}, True),
        ],
    )
    def test_when(self, changes: dict[str, Any], looping: bool) -> None:
        assert (worst_loop([replace(self.loop(), **changes)]) is not None) is looping

    def test_what_was_said_stands_while_the_next_try_is_under_way(self) -> None:
        own = Decision("chat", "", Reason.PROGRESSING, "0 of 1 ready")
        before = conditions_of(deployment(), own, [], [self.loop()], NOW)
        trying = replica(its=attempt(token=drawn(2)), state=ReplicaState.STARTING, failures=3)
        after = conditions_of(deployment(conditions=before), own, [], [trying], at(60))
        assert after[LOOPING] == before[LOOPING]
        assert (after[LOOPING].status, after[LOOPING].reason) == (ConditionStatus.TRUE, "CrashLooping")
        ready = replica(its=ready_attempt(phase=Phase.READY), state=ReplicaState.READY, failures=3)
        over = conditions_of(deployment(conditions=after), own, [], [ready], at(90))[LOOPING]
        assert (over.status, over.message, over.since) == (ConditionStatus.FALSE, "", at(90))


def test_waits_differ_but_never_pass_the_limit(with_jitter: None) -> None:
    policy = RestartPolicy(10, 300)
    waits = {delay(3, policy, f"chat-{number}/3").total_seconds() for number in range(200)}
    assert len(waits) > 190
    assert 40 * (1 - JITTER) <= min(waits) < 31 < 39 < max(waits) <= 40
    assert delay(3, policy, "chat-1/3") == delay(3, policy, "chat-1/3")
