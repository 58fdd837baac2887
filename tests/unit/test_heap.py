"""The measure of what the daemon remembers: it sees each kind of leak, and nothing of the tests' own."""

from __future__ import annotations

import asyncio
import gc
import importlib
from collections.abc import Callable
from functools import _lru_cache_wrapper

from penstock.core.model import Unknown
from penstock.core.node_lists import known_nodes
from penstock.core.prospect import Prospect
from penstock.core.routing import Route, RoutingState
from penstock.gateway.served import Served
from tests.heap import measure

MANY = 1000
ROUTE = Route("chat", ("chat",), "s", ())


class Somebody:
    """Something that the simulation would hold."""

    def __init__(self) -> None:
        self.story: list[str] = []

    async def explain(self, deployment: str, adapter: str) -> Prospect:
        self.story += [f"{deployment} {adapter} {number}" for number in range(MANY)]
        return await asyncio.Future[Prospect]()


def grown(part: object, leak: Callable[[], object]) -> int:
    """Objects more after the leak than before it."""
    before = measure(part).objects
    leak()
    return measure(part).objects - before


def test_it_sees_what_an_object_keeps() -> None:
    part = Served(Somebody().explain)
    assert grown(part, lambda: vars(part).update(kept={number: str(number) for number in range(MANY)})) > MANY


def test_it_sees_what_a_class_keeps() -> None:
    part = Served(Somebody().explain)
    try:
        assert grown(part, lambda: setattr(Served, "kept", [str(number) for number in range(MANY)])) > MANY
    finally:
        del Served.kept  # type: ignore[attr-defined]


def test_it_sees_what_a_cache_keeps() -> None:
    try:
        assert grown(None, lambda: [known_nodes(f"node[1-2]x{number}") for number in range(MANY)]) > MANY
    finally:
        known_nodes.cache_clear()


async def test_it_sees_what_waits_for_ever() -> None:
    part = Served(Somebody().explain)
    part.set_state(RoutingState((ROUTE,)))
    before = measure(part).alive
    waits = asyncio.create_task(part.prospect(ROUTE))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert measure().alive > before
    waits.cancel()


def test_and_nothing_of_the_tests() -> None:
    somebody = Somebody()
    part = Served(somebody.explain)
    assert grown(part, lambda: somebody.story.extend(str(number) for number in range(MANY))) < MANY / 10


def test_garbage_is_nothing() -> None:
    def waste() -> None:
        for number in range(MANY):
            one: list[object] = [Unknown(str(number), None)]  # type: ignore[arg-type]
            one.append(one)

    before = measure().alive
    waste()
    assert measure().alive < before + MANY / 10


def test_every_cache_of_the_daemon_has_a_limit() -> None:
    """Rule 11. Without one are those alone whose keys are the code's own types, or that have no key."""
    importlib.import_module("penstock.app")  # And with it all of the daemon's modules.
    unlimited = {
        f"{one.__module__}.{one.__qualname__}"
        for one in gc.get_objects()
        if isinstance(one, _lru_cache_wrapper)
        and str(one.__module__).startswith("penstock.")
        and one.cache_parameters()["maxsize"] is None
    }
    assert unlimited <= {
        "penstock.store.documents._field_names",
        "penstock.store.documents._reader",
        "penstock.slurm.process.leash",
    }
