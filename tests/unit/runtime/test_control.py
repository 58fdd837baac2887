"""Trying again: how long between tries, and from which address."""

from __future__ import annotations

from itertools import islice

import grpc
import pytest

from penstock.v1 import runtime_pb2
from penstock_runtime.control import BACKOFF_MAX_S, Control, Refused, Unreachable, address_towards, backoff


def test_waits_double_up_to_a_limit_and_are_spread() -> None:
    waits = list(islice(backoff(), 10))
    for i, wait in enumerate(waits):
        top = min(BACKOFF_MAX_S, 0.25 * 2**i)
        assert top / 2 <= wait <= top


@pytest.mark.parametrize(("endpoint", "address"), [("127.0.0.1:8600", "127.0.0.1"), ("localhost:1", None)])
def test_the_address_that_routes_there(endpoint: str, address: str | None) -> None:
    assert address_towards(endpoint) in ([address] if address else ["127.0.0.1", "::1"])


async def test_an_endpoint_that_is_no_host_is_unreachable_and_makes_way() -> None:
    control = Control(("no-such-host.invalid:1", "127.0.0.1:1"), "a", "s")
    try:
        for name in ("no-such-host.invalid:1", "127.0.0.1:1", "no-such-host.invalid:1"):
            with pytest.raises(Unreachable, match=name):
                await control.register(job_id=1, advertise="", port=1, engine_port=2, version="")
    finally:
        await control.close()


async def test_nobody_answers_a_drain() -> None:
    control = Control(("127.0.0.1:1", "127.0.0.1:2"), "a", "s")
    try:
        with pytest.raises(Unreachable, match="127.0.0.1:2"):
            await control.drain("SIGTERM")
        with pytest.raises(Unreachable):
            await control.report(runtime_pb2.ReportRequest())
    finally:
        await control.close()


def test_a_refusal_says_why() -> None:
    refused = Refused(grpc.StatusCode.FAILED_PRECONDITION, "attempt a1 was superseded by a2")
    assert str(refused) == (
        "the control plane refused: attempt a1 was superseded by a2 (FAILED_PRECONDITION)"
    )
