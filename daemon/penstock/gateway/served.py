"""What is served, for whoever has to explain it: the names, and why a deployment has no ready replica.

It asks one injected function for the sentence and reads no table. Shared by the gRPC and the REST side, so that
clients that try again in a loop cost one question to the database, whichever way they come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from penstock.core.prospect import Prospect
from penstock.core.routing import Route, RoutingState
from penstock.gateway.routes import names

log = logging.getLogger(__name__)

Explain = Callable[[str, str], Awaitable[Prospect]]
"""Deployment's name, and an adapter's or nothing, to how it is, and what a client may hope for."""

NAMES_SHOWN = 20
NAME_SHOWN_CHARACTERS = 200
EXPLAIN_TIMEOUT_S = 2.0
"""Longer than any healthy database takes, shorter than anyone waits for an error."""
REASON_KEPT_S = 0.5
"""For each deployment and adapter, how long an answer is good for all who ask."""


class Served:
    """Given the routing state at each change."""

    def __init__(self, explain: Explain) -> None:
        self._explain = explain
        self._lines: dict[str, Route] = {}
        self._names: dict[str, Route] = {}
        self._reasons: dict[str, tuple[float, asyncio.Task[Prospect]]] = {}

    def set_state(self, state: RoutingState) -> None:
        """What is served from now on."""
        self._names = names(state.routes)
        self._lines = {route.line: route for route in self._names.values()}
        self._reasons = {line: reason for line, reason in self._reasons.items() if line in self._lines}

    @property
    def models(self) -> dict[str, Route]:
        """What clients may put into `model`, by name, and what each leads to."""
        return self._names

    def route(self, deployment: str, adapter: str = "") -> Route | None:
        """The way to the deployment, or to an adapter of it; None: there is none of this name."""
        return self._lines.get(f"{deployment}/{adapter}" if adapter else deployment)

    def now(self, route: Route) -> Route | None:
        """The same way as it is by now; None: it is gone."""
        return self._lines.get(route.line)

    def unknown(self, model: str) -> str:
        """The sentence for a model that nobody serves; for an empty one too."""
        known = list(self._names)
        shown = ", ".join(known[:NAMES_SHOWN]) or "none"
        more = len(known) - NAMES_SHOWN
        there_are = f"models that exist: {shown}" + (f", and {more} more" if more > 0 else "")
        shown_model = repr(model[:NAME_SHOWN_CHARACTERS])
        wrong = f"model {shown_model} does not exist" if model else "the field `model` is empty"
        return f"{wrong}; {there_are}"

    async def prospect(self, route: Route) -> Prospect:
        """How it is, as of half a second ago at most; never raises for want of an answer."""
        asked_at, task = self._reasons.get(route.line, (0.0, None))
        now = time.monotonic()
        if task is None or now - asked_at > REASON_KEPT_S:
            task = asyncio.create_task(self._ask(route.deployment, route.adapter))
            self._reasons[route.line] = (now, task)
        return await asyncio.shield(task)

    async def _ask(self, deployment: str, adapter: str) -> Prospect:
        try:
            return await asyncio.wait_for(self._explain(deployment, adapter), EXPLAIN_TIMEOUT_S)
        except TimeoutError:
            return Prospect(f"the reason could not be read within {EXPLAIN_TIMEOUT_S:g} s")
        except Exception:
            # The client still gets its UNAVAILABLE; the cause is for the operator.
            log.exception("cannot say why deployment %r has no ready replica", deployment)
            return Prospect("the reason cannot be read now")


def standing(route: Route, prospect: Prospect) -> str:
    """Why no replica of a deployment takes a request now, in one sentence."""
    name = repr(route.deployment)
    whose = f" that has adapter {route.adapter!r}" if route.adapter else ""
    if route.adapter and not route.endpoints:
        return f"no ready replica of deployment {name} has adapter {route.adapter!r}: {prospect.sentence}"
    if route.endpoints:
        return f"no replica{whose} of deployment {name} answers the front door at this moment: {prospect.sentence}"
    return f"deployment {name} has no ready replica: {prospect.sentence}"
