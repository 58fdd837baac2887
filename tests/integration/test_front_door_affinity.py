"""Which requests go to the same replica, by a header or by how their prompts begin, while it is not overloaded."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

import grpc
import pytest

from penstock.core.routing import Endpoint, Route
from penstock.core.spec import Admission, Routing
from penstock.v1 import inference_pb2 as pb
from tests.integration.front_door_kit import House, route, texts, until
from tests.integration.front_door_replica import Replica
from tests.patience import PATIENCE_S

HEADER = "x-session-id"
SESSIONS = Routing(session_header=HEADER, max_load_percent=1000)
"""So many that none of ten replicas is ever overloaded."""
AT_ONCE = 16

Record = Callable[[str, object], None]
Placed = dict[str, str]
"""Session -> the replica that answered."""


def affine(routing: Routing, *replicas: Replica, weights: tuple[tuple[int, int], ...] = ()) -> Route:
    return replace(route("m", *replicas), routing=routing, weights=weights)


async def start(house: House, names: Iterable[str]) -> list[Replica]:
    return [await house.replica(name) for name in names]


async def ask(house: House, session: str = "", prompt: str = "x") -> str:
    """By REST; the replica that answered."""
    headers = {HEADER: session} if session else {}
    answer = await house.rest.post("/v1/completions", json={"model": "m", "prompt": prompt}, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def call(house: House, session: str = "", prompt: str = "x") -> str:
    """By gRPC."""
    metadata = ((HEADER, session),) if session else ()
    return (await house.generate("m", prompt, metadata=metadata)).id


async def all_of(count: int, one: Callable[[int], Awaitable[str]]) -> list[str]:
    """Some at once."""
    room = asyncio.Semaphore(AT_ONCE)

    async def bounded(number: int) -> str:
        async with room:
            return await one(number)

    return await asyncio.gather(*map(bounded, range(count)))


async def placed(house: House, count: int) -> Placed:
    found = await all_of(count, lambda number: ask(house, f"session-{number}"))
    return {f"session-{number}": who for number, who in enumerate(found)}


async def used(house: House, *names: str) -> None:
    """Waits until each of them gets requests, and no other."""

    async def are() -> bool:
        return set((await placed(house, 64)).values()) == set(names)

    await until(are, what=f"{names} are in use")


def moved(before: Placed, after: Placed, less: str = "") -> float:
    """Share of the sessions, without those of one replica, that another one answers now."""
    stayed = [session for session, who in before.items() if who != less]
    return sum(before[session] != after[session] for session in stayed) / len(stayed)


async def test_a_session_stays_at_its_replica_by_rest_and_grpc_and_many_are_spread(
    record_property: Record,
) -> None:
    async with House() as house:
        names = ("a", "b", "c", "d")
        await house.serve(affine(SESSIONS, *await start(house, names)))
        await used(house, *names)

        first = await placed(house, 400)
        for _ in range(3):
            assert await placed(house, 400) == first
        by_grpc = await all_of(400, lambda number: call(house, f"session-{number}"))
        assert by_grpc == list(first.values()), "the same replica, whichever of the two ways"

        counts = Counter(first.values())
        record_property("sessions a replica, of 400 over 4", dict(counts))
        print(f"sessions a replica, of 400 over 4: {sorted(counts.values())}")
        # Of a fair draw three in a thousand differ by more than three standard deviations (26).
        assert all(70 <= count <= 130 for count in counts.values()), counts
        assert house.door.refusals == 0


async def test_who_names_no_session_is_spread() -> None:
    async with House() as house:
        await house.serve(affine(SESSIONS, *await start(house, "ab")))
        await used(house, "a", "b")
        assert set(await all_of(60, lambda _: ask(house))) == {"a", "b"}
        assert set(await all_of(60, lambda _: call(house))) == {"a", "b"}


async def test_a_replica_that_leaves_moves_its_share_and_gets_it_back(record_property: Record) -> None:
    async with House() as house:
        a, b, c, d = await start(house, "abcd")
        await house.serve(affine(SESSIONS, a, b, c, d))
        await used(house, "a", "b", "c", "d")
        before = await placed(house, 600)

        await house.serve(affine(SESSIONS, a, b, c))
        await used(house, "a", "b", "c")
        without = await placed(house, 600)
        others = moved(before, without, less="d")
        record_property("sessions of other replicas that moved", f"{others:.1%}")
        print(f"sessions of other replicas that moved: {others:.1%}")
        assert others < 0.05
        took = Counter(who for session, who in without.items() if before[session] == "d")
        assert set(took) == {"a", "b", "c"}, "its own are spread over all that stay"

        # It comes back as another process at another port: by its name it gets what it had.
        again = await house.replica("d")
        known = affine(SESSIONS, a, b, c, again)
        was = Endpoint(f"a{again.port}", f"r{d.port}", "127.0.0.1", again.port, again.engine_port)
        await house.serve(replace(known, endpoints=(*known.endpoints[:3], was)))
        await used(house, "a", "b", "c", "d")
        assert moved(before, await placed(house, 600)) == 0


async def test_an_overloaded_replica_is_passed_over(record_property: Record) -> None:
    async with House() as house:
        replicas = await start(house, "abcd")
        for percent in (150, 1000):
            await house.serve(affine(replace(SESSIONS, max_load_percent=percent), *replicas))
            await used(house, "a", "b", "c", "d")
            home = await call(house, "busy")
            # One after the other: what still waits for its connection to a replica is not counted there yet.
            streams, where = [], Counter[str]()
            for _ in range(40):
                streams.append(_stream(house, "busy"))
                where[(await anext(aiter(streams[-1]))).id] += 1
            record_property(f"40 streams of one session at {percent} %", dict(where))
            print(f"40 streams of one session at {percent} %: {dict(where)}")
            if percent == 1000:
                assert where == {home: 40}
            else:
                assert where.most_common(1)[0][0] == home
                # 1.5 times the mean of ten, rounded up.
                assert max(where.values()) <= 16
                assert len(where) >= 3
                # Who belongs elsewhere is not disturbed, and who belongs nowhere does not make it worse.
                strangers = Counter(await asyncio.gather(*(call(house) for _ in range(20))))
                assert strangers[home] < 10
            for stream in streams:
                stream.cancel()


def _stream(house: House, session: str) -> Any:
    request = pb.StreamGenerateRequest(model="m", prompt="2:600")
    return house.stub.StreamGenerate(request, metadata=((HEADER, session),))


async def test_conversations_find_the_replica_that_has_their_beginning(record_property: Record) -> None:
    """Forty conversations of eight turns each over a beginning that all have in common, sixteen at a time."""
    rates: dict[str, float] = {}
    async with House() as house:
        replicas = await start(house, "abcd")
        common = "You are the assistant of a library. " * 8
        for name, routing in (
            ("least request", Routing()),
            ("prefix", Routing(prefix_bytes=512)),
            ("prefix, never overloaded", Routing(prefix_bytes=512, max_load_percent=1000)),
        ):
            await house.serve(affine(routing, *replicas))
            await used_by_prompts(house)
            for way in ("rest", "grpc"):
                hits = await all_of(40, lambda number, way=way: _conversation(house, way, common, number))  # type: ignore[misc]
                rates[f"{name}, {way}"] = sum(map(int, hits)) / (40 * 7)
    record_property("turns that found their conversation's replica", rates)
    print(
        "turns that found their conversation's replica:",
        {name: f"{rate:.0%}" for name, rate in rates.items()},
    )
    for way in ("rest", "grpc"):
        assert rates[f"least request, {way}"] < 0.5
        # Sixteen over four replicas are often more than six at one of them: those go elsewhere.
        assert rates[f"prefix, {way}"] > 0.7
        assert rates[f"prefix, never overloaded, {way}"] == 1


async def used_by_prompts(house: House) -> None:
    async def are() -> bool:
        found = await all_of(64, lambda number: ask(house, prompt=f"{number:03}" * 300))
        return len(set(found)) == 4

    await until(are, what="all four are in use")


async def _conversation(house: House, way: str, common: str, number: int) -> str:
    """How many of its turns after the first were answered by the replica that answered the one before."""
    words = random.Random(number)
    said = common + f"I am reader {number}: " + "".join(words.choices("abcdefgh ", k=300))
    last, hits = "", 0
    for _ in range(8):
        if way == "rest":
            messages = [{"role": "user", "content": said}]
            answer = await house.rest.post("/v1/chat/completions", json={"messages": messages, "model": "m"})
            who = str(answer.json()["id"])
        else:
            who = await call(house, prompt=said)
        hits += who == last
        last = who
        said += "".join(words.choices("abcdefgh ", k=100))
    return str(hits)


async def test_long_bodies_and_chats_are_looked_at_and_short_prompts_are_not() -> None:
    async with House() as house:
        await house.serve(
            affine(Routing(prefix_bytes=1024, max_load_percent=1000), *await start(house, "abcd"))
        )
        await used_by_prompts(house)
        start_of = "The quick brown fox. " * 100

        async def chat(begins: str, number: int) -> str:
            """The beginning in two messages, an image between them, and an end that is longer and longer."""
            image = pb.ContentPart(image=pb.Image(data=bytes(100)))
            end = pb.ContentPart(text=begins[700:] + "z" * number * 1000)
            messages = [
                pb.Message(role=pb.ROLE_SYSTEM, content=[pb.ContentPart(text=begins[:700])]),
                pb.Message(role=pb.ROLE_USER, content=[image, end]),
            ]
            answer = await house.stub.Chat(pb.ChatRequest(model="m", messages=messages), timeout=PATIENCE_S)
            return answer.id

        for number in range(5):
            assert await ask(house, prompt=start_of + "z" * number * 1_000_000) == await ask(
                house, prompt=start_of
            )
            assert await call(house, prompt=start_of + "z" * number * 1_000_000) == await call(
                house, prompt=start_of
            )
            assert await chat(start_of, number) == await call(house, prompt=start_of), (
                "the same text, otherwise sent"
            )
        homes = {await ask(house, prompt=f"{number}" + start_of) for number in range(40)}
        assert len(homes) == 4
        assert len(set(await all_of(40, lambda _: ask(house, prompt="short")))) > 1
        assert len(set(await all_of(40, lambda _: call(house, prompt="short")))) > 1


async def test_a_canary_gets_its_share_of_the_sessions_and_keeps_them(record_property: Record) -> None:
    async with House() as house:
        a, b, c, d = await start(house, "abcd")
        for weights in (((1, 80), (2, 20)), ((1, 95), (2, 5))):
            made = affine(SESSIONS, a, b, c, d, weights=weights)
            canary = made.endpoints[3]
            ends = (*(replace(end, revision=1) for end in made.endpoints[:3]), replace(canary, revision=2))
            await house.serve(replace(made, endpoints=ends))
            await used(house, "a", "b", "c", "d")
            first = await placed(house, 600)
            assert await placed(house, 600) == first
            share = sum(who == "d" for who in first.values()) / 600
            record_property(f"share of a canary of {weights[1][1]} %", f"{share:.1%}")
            print(f"share of a canary of {weights[1][1]} %: {share:.1%}")
            # Three standard deviations of a draw of 600.
            assert abs(share - weights[1][1] / 100) < 0.05


async def test_an_adapters_sessions_stay_at_replicas_that_have_it() -> None:
    async with House() as house:
        made = affine(SESSIONS, *await start(house, "abcd"))
        ends = tuple(
            replace(end, adapters=("fine",) if number < 2 else ())
            for number, end in enumerate(made.endpoints)
        )
        await house.serve(replace(made, adapters=("fine",), endpoints=ends))
        await used(house, "a", "b", "c", "d")

        async def fine(number: int) -> str:
            metadata = ((HEADER, f"session-{number}"),)
            return (await house.generate("fine", metadata=metadata)).id

        first = await all_of(100, fine)
        assert await all_of(100, fine) == first
        assert set(first) == {"a", "b"}


async def test_what_is_not_answered_is_tried_elsewhere_and_then_explained() -> None:
    async with House() as house:
        a, b = await start(house, "ab")
        await house.serve(affine(SESSIONS, a, b))
        await used(house, "a", "b")
        homes = await placed(house, 40)
        a.engine.fail_with = 500
        assert set((await placed(house, 40)).values()) == {"b"}
        a.engine.fail_with = 0
        await used(house, "a", "b")
        assert await placed(house, 40) == homes, "once it is well again it gets back what it had"

        a.engine.fail_with = b.engine.fail_with = 500
        answer = await house.rest.post(
            "/v1/completions", json={"model": "m", "prompt": "x"}, headers={HEADER: "1"}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replica_failed")
        assert answer.json()["error"]["message"].startswith("2 tries at replicas of deployment 'm' ended")
        a.engine.fail_with = b.engine.fail_with = 0

        before = a.engine.requests + b.engine.requests
        answers = [await house.rest.post(
            "/v1/completions", json={"model": "m", "prompt": f"fail:{400 + number}"}, headers={HEADER: "1"}
        ) for number in range(20)]  # fmt: skip
        assert [answer.status_code for answer in answers] == [400 + number for number in range(20)]
        assert a.engine.requests + b.engine.requests == before + 20, "a 4xx is not tried again"


async def test_an_only_replica_that_is_killed_is_explained_and_too_many_are_refused() -> None:
    async with House() as house:
        killed, port = await house.replica_process("killed")
        limited = replace(
            route("m", port), routing=SESSIONS, admission=Admission(max_in_flight=2, max_held=0)
        )
        await house.serve(limited)
        await until(lambda: _is(house, "killed"))
        streams = [_stream(house, "busy") for _ in range(2)]
        for stream in streams:
            await anext(aiter(stream))
        assert await house.status("m") == grpc.StatusCode.RESOURCE_EXHAUSTED
        for stream in streams:
            stream.cancel()
        await until(lambda: _is(house, "killed"))

        killed.kill()
        await killed.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(house, "1")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "no replica of deployment 'm' answers the front door at this moment" in str(
            caught.value.details()
        )


async def test_a_change_of_routing_cuts_nothing_and_refuses_nobody() -> None:
    async with House() as house:
        a, b = await start(house, "ab")
        await house.serve(affine(Routing(), a, b))
        await until(lambda: _answers(house))
        stream = house.stream("m", 300, 0.01)
        await anext(aiter(stream))
        failed: list[str] = []
        over = asyncio.Event()

        async def load() -> None:
            while not over.is_set():
                for way in (ask, call):
                    try:
                        await way(house, "1", "p" * 100)
                    except (grpc.aio.AioRpcError, AssertionError) as error:
                        failed.append(str(error))

        loading = asyncio.create_task(load())
        for routing in (
            SESSIONS,
            Routing(prefix_bytes=64),
            replace(SESSIONS, max_load_percent=200),
            Routing(),
        ) * 2:
            await house.serve(affine(routing, a, b))
            for _ in range(5):
                await ask(house, "2")
        over.set()
        await loading
        assert not failed
        assert texts([chunk async for chunk in stream]) == [str(number) for number in range(1, 300)]


async def test_held_requests_find_their_replica_too() -> None:
    async with House() as house:
        replicas = await start(house, "abcd")
        hold = Admission(max_held=100, max_hold_s=30)
        await house.serve(affine(SESSIONS, *replicas))
        await used(house, "a", "b", "c", "d")
        homes = await placed(house, 40)
        await house.serve(replace(affine(SESSIONS), admission=hold))
        waiting = asyncio.create_task(placed(house, 40))
        await until(lambda: house.door._hold.room.held.get("m", 0) == AT_ONCE)
        await house.serve(replace(affine(SESSIONS, *replicas), admission=hold))
        assert await waiting == homes


async def _is(house: House, who: str) -> bool:
    return await house.answered_by("m") == who


async def _answers(house: House) -> bool:
    answer = await house.rest.post("/v1/completions", json={"model": "m", "prompt": "x"})
    return answer.status_code == 200 and (await house.answered_by("m")) in ("a", "b")
