"""The stand-in's door: the same file and the same answers as in_engine/penstock_engine_door.py has for vLLM."""

from __future__ import annotations

import dataclasses

from penstock_runtime.in_engine.penstock_engine_door import (
    AGENT,
    GATEWAYS,
    KEY_HEADER,
    STATUS_PATH,
    Door,
    Refusal,
)
from penstock_runtime.standin_http import Exchange, Handler, Request


def guarded(handler: Handler, path: str) -> Handler:
    """`handler` behind the door whose file is at `path`."""
    door = Door(path)

    async def handle(request: Request, exchange: Exchange) -> None:
        try:
            who = door.admit(request.headers.get(KEY_HEADER, ""))
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
