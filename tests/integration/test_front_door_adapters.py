"""Requests for adapters, with the real Envoy: they go to the replicas that have it, and to no others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from penstock.core.prospect import Prospect
from penstock.core.routing import Route, RoutingState
from penstock.core.spec import Admission
from penstock.gateway import hold
from tests.integration.front_door_kit import House, endpoint, route, texts, until
from tests.integration.front_door_replica import Replica
from tests.patience import PATIENCE_S

ASKED = 40


def adapted(*replicas: tuple[Replica, Iterable[str]], adapters: Iterable[str], max_held: int = 0) -> Route:
    """Deployment `m` with these adapters, and replicas that have some of them."""
    made = route("m", *(replica for replica, _ in replicas), names=["org/M"])
    ends = [replace(end, adapters=tuple(has)) for end, (_, has) in zip(made.endpoints, replicas, strict=True)]
    return replace(
        made,
        endpoints=tuple(ends),
        adapters=tuple(adapters),
        admission=Admission(max_held=max_held, max_hold_s=30),
    )


async def rest(house: House, model: str) -> httpx.Response:
    return await house.rest.post("/v1/completions", json={"model": model, "prompt": "hello"})


async def rest_by(house: House, model: str) -> str:
    """Who answered, or the error's code."""
    answer = (await rest(house, model)).json()
    return str(answer["id"] if "id" in answer else answer["error"]["code"])


async def who(house: House, model: str) -> set[str]:
    """All that answer, by gRPC and by REST alike."""
    grpc_ = Counter([await house.answered_by(model) for _ in range(ASKED)])
    rest_ = Counter([await rest_by(house, model) for _ in range(ASKED)])
    assert set(grpc_) == set(rest_), (grpc_, rest_)
    return set(grpc_)


async def all_up(house: House, **wanted: str) -> None:
    """Waits until Envoy has found each of these replicas well, for gRPC and for REST."""
    for model, name in wanted.items():
        model = {"org": "org/M"}.get(model, model)
        await until(lambda: _is(house.answered_by(model), name), what=f"{name} for {model}")  # noqa: B023
        await until(lambda: _is(rest_by(house, model), name), what=f"{name} for {model}")  # noqa: B023


async def _is(answer: object, name: str) -> bool:
    return bool(await answer == name)  # type: ignore[misc]


async def test_an_adapters_requests_go_to_those_that_have_it() -> None:
    async with House() as house:
        a, b, c = [await house.replica(name) for name in "abc"]
        await house.serve(adapted((a, "x"), (b, "xy"), (c, "z"), adapters="xyz"))
        for name in "abc":
            await all_up(house, m=name)
        assert await who(house, "m") == set("abc")
        assert await who(house, "org/M") == set("abc")
        assert await who(house, "x") == set("ab")
        assert await who(house, "y") == {"b"}
        assert await who(house, "z") == {"c"}
        assert house.door.refusals == 0


async def test_what_is_loaded_and_unloaded_is_followed_at_once() -> None:
    async with House() as house:
        a, b = [await house.replica(name) for name in "ab"]
        await house.serve(adapted((a, "x"), (b, ""), adapters="x"))
        for name in "ab":
            await all_up(house, m=name)
        stream = aiter(house.stream("x", 60, 0.02))
        await anext(stream)
        assert await who(house, "x") == {"a"}
        await house.serve(adapted((a, "x"), (b, "x"), adapters="x"))
        assert await who(house, "x") == {"a", "b"}
        await house.serve(adapted((a, ""), (b, "x"), adapters="x"))
        assert await who(house, "x") == {"b"}
        # One more is wanted, and not loaded anywhere yet.
        await house.serve(adapted((a, ""), (b, "x"), adapters=["x", "org/y"]))
        assert await who(house, "x") == {"b"}
        assert await house.answered_by("org/y") == "UNAVAILABLE"
        assert await rest_by(house, "org/y") == "no_ready_replica"
        await house.serve(adapted((a, ["org/y"]), (b, "x"), adapters=["x", "org/y"]))
        assert await who(house, "org/y") == {"a"}
        # No adapter is wanted any more; the model itself has not noticed anything.
        await house.serve(adapted((a, ""), (b, ""), adapters=""))
        assert await house.answered_by("x") == "NOT_FOUND"
        assert await rest_by(house, "x") == "model_not_found"
        assert await who(house, "m") == {"a", "b"}
        assert texts([chunk async for chunk in stream]) == [str(number) for number in range(1, 60)]
        assert house.door.refusals == 0


async def test_an_adapter_that_nobody_has_is_explained_by_its_name() -> None:
    async with House() as house:
        a = await house.replica("a")
        house.prospect = Prospect("0 of 1 ready replicas have it; m-1: adapter 'x' cannot be loaded")
        await house.serve(adapted((a, ""), adapters="x"))
        await all_up(house, m="a")
        sentence = f"no ready replica of deployment 'm' has adapter 'x': {house.prospect.sentence}"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await house.generate("x")
        assert (caught.value.code().name, caught.value.details()) == ("UNAVAILABLE", sentence)
        status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
        info = error_details_pb2.ErrorInfo()
        assert status is not None
        assert status.details[0].Unpack(info)
        assert dict(info.metadata) == {"deployment": "m", "adapter": "x"}
        answer = await rest(house, "x")
        assert (answer.status_code, answer.json()["error"]["message"]) == (503, sentence)
        assert set(house.explained) == {"m/x"}


async def test_when_those_that_have_it_are_gone_the_others_do_not_get_it() -> None:
    async with House() as house:
        a = await house.replica("a")
        process, port, engine_port = await house.rest_process("b")
        made = adapted((a, ""), adapters="x")
        end = replace(endpoint(port, engine_port=engine_port), adapters=("x",))
        await house.serve(replace(made, endpoints=(*made.endpoints, end)))
        await all_up(house, x="b", m="a")
        process.kill()
        await process.wait()
        asked = [await house.answered_by("x") for _ in range(ASKED)]
        asked += [await rest_by(house, "x") for _ in range(ASKED)]
        assert set(asked) == {"UNAVAILABLE", "no_ready_replica"} | (set(asked) & {"replica_failed"})
        assert await house.answered_by("m") == "a"


async def test_requests_wait_until_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "FIRST_PROGRESS_S", 0.0)
    async with House() as house:
        a = await house.replica("a")
        house.prospect = Prospect("0 of 1 ready replicas have it; m-1: 1 adapter not loaded yet: x")
        await house.serve(adapted((a, ""), adapters="x", max_held=64))
        await all_up(house, m="a")
        waiting = [asyncio.create_task(house.generate("x", timeout=PATIENCE_S)) for _ in range(20)]
        over_rest = [asyncio.create_task(rest(house, "x")) for _ in range(20)]
        await until(lambda: house.door.held == {"m": 40}, what="all wait")
        # They wait in a line of their own: the model's requests do not notice.
        assert await who(house, "m") == {"a"}
        await house.serve(adapted((a, "x"), adapters="x", max_held=64))
        assert {(await task).id for task in waiting} == {"a"}
        assert {(await task).json()["id"] for task in over_rest} == {"a"}
        assert not house.door.held


async def test_an_adapter_that_is_not_wanted_any_more_ends_the_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hold, "FIRST_PROGRESS_S", 0.0)
    monkeypatch.setattr(hold, "PROGRESS_EVERY_S", 0.1)
    async with House() as house:
        a = await house.replica("a")
        await house.serve(adapted((a, ""), adapters="x", max_held=64))
        await all_up(house, m="a")
        waiting = asyncio.create_task(house.status("x", timeout=PATIENCE_S))
        await until(lambda: house.door.held == {"m": 1}, what="it waits")
        await house.serve(adapted((a, ""), adapters="", max_held=64))
        assert await waiting is grpc.StatusCode.UNAVAILABLE


async def test_a_canarys_share_holds_for_adapters_too() -> None:
    async with House() as house:
        stable, canary = await house.replica("stable"), await house.replica("canary")
        made = adapted((stable, "x"), (canary, "x"), adapters="x")
        ends = (made.endpoints[0], replace(made.endpoints[1], revision=2))
        await house.serve(replace(made, endpoints=ends, weights=((1, 80), (2, 20))))
        for name in ("stable", "canary"):
            await all_up(house, x=name)
        answered = Counter([await house.answered_by("x") for _ in range(300)])
        assert answered["canary"] / 300 == pytest.approx(0.2, abs=0.05)


async def test_they_are_listed_with_what_they_are_of() -> None:
    async with House() as house:
        await house.serve(adapted(adapters=["x", "org/y"]))
        listed = (await house.rest.get("/v1/models")).json()["data"]
        assert {card["id"]: card.get("parent") for card in listed} == {
            "m": None, "org/M": None, "org/y": "org/M", "x": "org/M",
        }  # fmt: skip
        assert (await house.rest.get("/v1/models/org/y")).json()["parent"] == "org/M"


async def test_clients_cannot_choose_an_adapter_by_header() -> None:
    async with House() as house:
        a, b = await house.replica("a"), await house.replica("b")
        await house.serve(adapted((a, ""), (b, "x"), adapters="x"))
        for name in "ab":
            await all_up(house, m=name)
        forged = (("x-penstock-deployment-adapter", "x"),)
        answers = {(await house.generate("m", metadata=forged)).id for _ in range(ASKED)}
        assert answers == {"a", "b"}
        await house.door.set_state(RoutingState((adapted(adapters="x"),)))
        assert await house.door.applied(PATIENCE_S)
        house.explained.clear()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await house.generate("m", metadata=forged)
        assert "adapter" not in (caught.value.details() or "")
        assert house.explained == ["m"]
