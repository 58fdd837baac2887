"""The stand-in's door: the same file and the same answers as in_engine/penstock_engine_door.py has for vLLM."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from penstock_runtime.in_engine.penstock_engine_door import (
    AGENT,
    GATEWAYS,
    KEY_HEADER,
    STATUS_PATH,
    Door,
    Refusal,
    not_offered,
)
from penstock_runtime.standin_http import Exchange, Handler, Request


def guarded(handler: Handler, path: str, offers: Callable[[str, str], bool]) -> Handler:
    """`handler` behind the door whose file is at `path`. `offers`: whether it has this method and path."""
    door = Door(path)

    async def handle(request: Request, exchange: Exchange) -> None:
        try:
            who = door.admit(request.headers.get(KEY_HEADER, ""))
            if who == GATEWAYS and not offers(request.method, request.path):
                raise not_offered(request.method, request.path)
        except Refusal as refusal:
            exchange.respond(refusal.status, refusal.body, **refusal.headers)
            return
        if who == AGENT and request.path == STATUS_PATH:
            exchange.respond(200, door.status())
            return
        headers = {name: value for name, value in request.headers.items() if name != KEY_HEADER}
        counts = who == GATEWAYS
        door.inside += counts
        try:
            await handler(dataclasses.replace(request, headers=headers), exchange)
        finally:
            door.inside -= counts

    return handle
