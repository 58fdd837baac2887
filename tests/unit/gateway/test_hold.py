"""Holding without a front door: who may wait, what is heard meanwhile, and what being lost comes to."""

from __future__ import annotations

import asyncio
import math
from contextlib import ExitStack
from datetime import datetime, timedelta

import pytest

from penstock.core.jobs import Job, JobState
from penstock.core.prospect import Prospect
from penstock.core.routing import Endpoint, Route, RoutingState
from penstock.core.sentences import estimate
from penstock.core.spec import Admission
from penstock.gateway import hold as module
from penstock.gateway.hold import TURNS, Held, Hold, Progress, Refused, losses
from penstock.gateway.relay import waiting
from penstock.gateway.served import Served

READY = (Endpoint("a1", "m-1", "127.0.0.1", 1),)
UNKNOWN = Prospect("0 of 1 ready")


def route(*, endpoints: tuple[Endpoint, ...] = READY, max_held: int = 10, max_hold_s: int = 60) -> Route:
    return Route("m", ("m",), "secret", endpoints, Admission(max_held=max_held, max_hold_s=max_hold_s))


def holding(one: Route, *answers: bool | Exception) -> Hold:
    """The last of `answers` is given again and again."""

    async def explain(deployment: str, adapter: str) -> Prospect:
        return UNKNOWN

    left = list(answers)

    async def asked(route: Route) -> bool:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    served = Served(explain)
    served.set_state(RoutingState((one,)))
    return Hold(served, asked)


async def called(held: Held) -> list[Progress]:
    return [progress async for progress in held.wait()]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP_S", 0.01)


async def test_a_line_waits_until_a_replica_answers_whatever_asking_for_it_raises(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hold = holding(route(), False, RuntimeError("a bug"), True)
    with hold.enter(route(), UNKNOWN, 5, math.inf, 0) as held:
        assert hold.room.held == {"m": 1}
        await asyncio.wait_for(called(held), 60)
        held.answered()
        assert hold.room.held == {}
    assert "a bug" in caplog.text


async def test_nobody_is_called_while_no_replica_is_known_and_time_runs_out() -> None:
    hold = holding(route(endpoints=()), True)
    with hold.enter(route(endpoints=()), UNKNOWN, 5, 0.05, 0) as held:
        with pytest.raises(Refused, match=r"was held for 0 s \(its own deadline\)"):
            await called(held)
    assert hold.room.held == {}


async def test_a_request_that_was_lost_twice_or_called_in_vain_too_often_waits_no_more() -> None:
    hold = holding(route(), True)
    with hold.enter(route(), UNKNOWN, 5, math.inf, 1) as held:
        await called(held)
        held.returned_at_attempt = 1  # No replica was tried.
        held.lost()
        await called(held)
        held.returned_at_attempt = 2
        with pytest.raises(Refused, match="2 replicas of deployment 'm' ended"):
            held.lost()
    with hold.enter(route(), UNKNOWN, 5, math.inf, 0) as held:
        for _ in range(TURNS):
            held.returned_at_attempt = 1
            held.lost()
        held.returned_at_attempt = 1
        with pytest.raises(Refused, match="took this request in"):
            held.lost()


@pytest.mark.parametrize(
    ("endpoints", "attempt", "lost"), [(0, 1, 0), (1, 1, 0), (1, 2, 1), (1, 3, 1), (2, 3, 2), (0, 3, 1)]
)
def test_what_envoys_attempts_may_have_cost(endpoints: int, attempt: int, lost: int) -> None:
    assert losses(route(endpoints=READY * endpoints), attempt) == lost


async def test_who_may_wait() -> None:
    async def why(one: Route, patience_s: float = math.inf, lost: int = 0) -> str:
        with pytest.raises(Refused) as caught:
            await holding(one, True).consider(one, patience_s, lost)
        assert caught.value.losses == lost
        return f"{caught.value.limit}|{caught.value.sentence}"

    standing = "no replica of deployment 'm' answers the front door at this moment: 0 of 1 ready"
    assert await why(route(max_held=0)) == f"|{standing}"
    assert await why(route(max_hold_s=0)) == f"|{standing}"
    assert await why(route(max_hold_s=0), lost=1) == f"|{standing}"
    assert (await why(route(), lost=2)).startswith("|2 replicas of deployment 'm' ended")
    hold = holding(route(), False)
    with ExitStack() as stack:
        for _ in range(2):
            await hold.consider(route(max_held=2), math.inf, 0)
            stack.enter_context(hold.enter(route(max_held=2), UNKNOWN, 5, math.inf, 0))
        with pytest.raises(Refused) as caught:
            await hold.consider(route(max_held=2), math.inf, 0)
        assert caught.value.limit == "spec.admission.max_held"
    hold.close()


def test_progress_on_a_line() -> None:
    job = Job(71, "n", "c", JobState.PENDING, reason="Priority")
    assert Progress(3, Prospect("s", job=job)).sentence == "waiting, position 3, job 71 PENDING (Priority)"
    start = datetime.now().astimezone().replace(hour=14, minute=5) + timedelta(days=400)
    later = Job(71, "n", "c", JobState.PENDING, reason="Resources", started_at=start)
    assert Progress(1, Prospect("s", job=later)).sentence.endswith(
        f", estimated start {start:%Y-%m-%d} 14:05"
    )
    assert Progress(1, Prospect("two\nlines")).sentence == "waiting, position 1, two lines"
    running = Job(71, "n", "c", JobState.RUNNING, reason="None", started_at=start)
    assert Progress(1, Prospect("s", job=running)).sentence == "waiting, position 1, job 71 RUNNING"
    soon = datetime.now().astimezone() + timedelta(seconds=90)
    at = estimate(soon, datetime.now().astimezone())
    ready = Progress(1, Prospect("s", job=running, ready_at=soon))
    assert ready.sentence == f"waiting, position 1, job 71 RUNNING, probably ready {at}"
    assert waiting(ready).message == f"s, probably ready {at}"
