"""Rollouts on real Slurm with the stand-in engine, under a steady load of which nothing is cut or refused."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.steady_load import SteadyLoad
from tests.penstocks import Penstock, standin, wait_until

pytestmark = pytest.mark.xdist_group("rollouts")

SPEED = ["--tokens-per-second", "20"]


@pytest.fixture
def served(penstock: Penstock) -> Iterator[str]:
    """A deployment of two ready replicas."""
    penstock.apply(standin("rolled", replicas=2, args=SPEED))
    penstock.wait_ready("rolled", 2)
    yield "rolled"
    penstock.cli("delete", "rolled", "--wait")


def jobs(penstock: Penstock) -> set[str]:
    return set(penstock.cluster.run("squeue", "-h", "-o", "%i").split())


def test_the_load_notices_what_is_cut(penstock: Penstock, served: str) -> None:
    with SteadyLoad(penstock.server, served, min_ready=2) as load:
        # Not by scancel: what people cancel is made anew only after a minute.
        for pid in penstock.cluster.daemons.job_processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not load.whole, 60, "streams are cut")
        wait_until(lambda: load.figures.least_ready < 2, 60, "the dead are not counted as ready")
        penstock.wait_ready(served, 2)
    assert load.figures.cut >= 1
    assert load.figures.least_ready < 2
    with pytest.raises(AssertionError, match="violations"):
        load.assert_unhurt()


def test_a_rolling_update_under_load(penstock: Penstock, served: str) -> None:
    before = jobs(penstock)
    with SteadyLoad(penstock.server, served, min_ready=2) as load:
        began = time.monotonic()
        penstock.apply(standin(served, replicas=2, args=[*SPEED, "--seed", "2"]))
        wait_until(lambda: not before & jobs(penstock), 180, lambda: penstock.cli("why", served).stdout)
        penstock.wait_ready(served, 2)
        took_s = time.monotonic() - began
    load.assert_unhurt()
    print(f"\nrolling update of 2 replicas: {took_s:.1f} s from change to done; {load.figures}")


def canary_share(penstock: Penstock, name: str, revision: int, before: dict[str, int]) -> float:
    """Of the tokens since `before`, the share that replicas of this revision made; as their agents reported."""
    mine = total = 0
    for one in penstock.get("replicas", name)["items"]:
        made = tokens(one) - before.get(one["name"], 0)
        total += made
        mine += made if int(one["revision"]) == revision else 0
    return mine / total if total else 0.0


def tokens(replica: dict[str, Any]) -> int:
    return int(replica.get("load", {}).get("generation_tokens_total", 0))


def revisions(penstock: Penstock, name: str) -> dict[str, int]:
    """Each ready replica's revision."""
    return {
        one["name"]: int(one["revision"])
        for one in penstock.get("replicas", name)["items"]
        if one["state"] == "REPLICA_STATE_READY"
    }


def test_a_canary_gets_its_share_and_is_undone_under_load(penstock: Penstock, served: str) -> None:
    canary = "  rollout: {strategy: canary, canary: {percent: 20}}"
    penstock.apply(standin(served, replicas=2, args=SPEED, more=canary))
    with SteadyLoad(penstock.server, served, min_ready=2) as load:
        began = time.monotonic()
        penstock.apply(standin(served, replicas=2, args=[*SPEED, "--seed", "2"], more=canary))
        wait_until(
            lambda: sorted(revisions(penstock, served).values()) == [1, 2] and len(jobs(penstock)) == 2,
            120,
            lambda: f"one of each: {penstock.cli('why', served).stdout}",
        )
        up_s = time.monotonic() - began
        before = {one["name"]: tokens(one) for one in penstock.get("replicas", served)["items"]}
        time.sleep(20)  # What is measured is a share over time.
        share = canary_share(penstock, served, 2, before)
        (old,) = [name for name, revision in revisions(penstock, served).items() if revision == 1]
        began = time.monotonic()
        done = penstock.cli("rollout", "undo", served, "--reason", "it answers badly")
        assert "as revision 3" in done.stdout
        done = penstock.cli("rollout", "status", served, "--timeout", "110s")
        assert "runs revision 3" in done.stdout
        undone_s = time.monotonic() - began
        assert revisions(penstock, served)[old] == 3, (
            "the old replica is the new revision's, and was not touched"
        )
    load.assert_unhurt()
    assert 0.1 < share < 0.35, share
    assert "it answers badly" in penstock.cli("rollout", "history", served).stdout
    print(
        f"\ncanary of 1 in 2 replicas: {up_s:.1f} s from change to canary, {share:.0%} of the tokens for 20% asked,"
        f" {undone_s:.1f} s from undo to done; {load.figures}"
    )


def test_a_revision_that_fails_leaves_the_old_replicas_alone(penstock: Penstock, served: str) -> None:
    budget = "  restart: {backoff_initial_s: 1, backoff_max_s: 4, max_failures_per_hour: 2}"
    manifest = standin(served, replicas=2, args=SPEED).replace(
        "  restart: {backoff_initial_s: 1, backoff_max_s: 4}\n", ""
    )
    penstock.apply(manifest + budget)
    before = jobs(penstock)
    with SteadyLoad(penstock.server, served, min_ready=2) as load:
        began = time.monotonic()
        penstock.apply(manifest.replace('"20"', '"20", "--exit-at-start", "2"') + budget)
        done = penstock.cli("rollout", "status", served, "--timeout", "110s", check=False)
        failed_s = time.monotonic() - began
        assert done.returncode == 1, done.stdout + done.stderr
        assert "revision 2 failed" in done.stderr
        wait_until(lambda: jobs(penstock) == before, 60, "only the old replicas are left")
        done = penstock.cli("rollout", "promote", served, check=False)
        assert "no canary to promote" in done.stderr
        done = penstock.cli("rollout", "undo", served, "--to-revision", "9", check=False)
        assert "has no revision 9; it has 1 to 2" in done.stderr
        began = time.monotonic()
        going_back = "\n  rollout: {rollback_on_failure: true}"
        penstock.apply(manifest.replace('"20"', '"20", "--exit-at-start", "2"') + budget + going_back)
        wait_until(
            lambda: penstock.get("deployments", served)["status"]["current_revision"] == "3",
            60,
            "it goes back",
        )
        penstock.cli("rollout", "status", served, "--timeout", "110s")
        back_s = time.monotonic() - began
        assert jobs(penstock) == before, "going back restarts nothing"
    load.assert_unhurt()
    assert "rolled back by itself" in penstock.cli("rollout", "history", served).stdout
    print(
        f"\nfailed revision: {failed_s:.1f} s until it is stopped, {back_s:.1f} s to go back; {load.figures}"
    )


def test_each_word_of_rollout(penstock: Penstock, served: str) -> None:
    """A canary that is looked at, paused, promoted, and taken back by a revision that ran everywhere: no canary."""

    def rollout(word: str, *arguments: str, code: int = 0) -> str:
        done = penstock.cli("rollout", word, served, *arguments, check=False)
        assert done.returncode == code, (word, done.stdout, done.stderr)
        return done.stdout + done.stderr

    canary = "  rollout: {strategy: canary, canary: {percent: 50}}"
    assert "runs revision 1" in rollout("status", "--timeout", "110s")
    penstock.apply(standin(served, replicas=2, args=[*SPEED, "--seed", "2"], more=canary))
    wait_until(
        lambda: sorted(revisions(penstock, served).values()) == [1, 2] and len(jobs(penstock)) == 2,
        120,
        lambda: f"one of each: {penstock.cli('why', served).stdout}",
    )
    assert "is not rolled out" in rollout("status", "--timeout", "1s", code=4)
    assert "rollouts paused" in rollout("pause", "--reason", "lunch")
    assert "revision 2 promoted" in rollout("promote", "--reason", "as fast as before")
    wait_until(
        lambda: "stands still until `penstock rollout resume" in penstock.cli("why", served).stdout,
        60,
        "it stands still",
    )
    assert sorted(revisions(penstock, served).values()) == [1, 2]
    assert "rollouts resumed" in rollout("resume")
    assert "runs revision 2" in rollout("status", "--timeout", "110s")
    said = rollout("undo", "--reason", "answers in French")
    assert said == f"deployment/{served} rolled back, as revision 3\n"
    assert "runs revision 3" in rollout("status", "--timeout", "110s")
    assert set(revisions(penstock, served).values()) == {3}
    assert "is not the wanted one" in rollout("status", "--revision", "2", code=1)
    assert "has that spec" in rollout("undo", "--to-revision", "1")
    history = rollout("history")
    for what in ("lunch", "as fast as before", "undone", "rollback to revision 1: answers in French"):
        assert what in history
