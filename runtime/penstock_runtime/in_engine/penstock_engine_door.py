"""The door of an engine's HTTP server: who may pass is in a file that only the agent's user can read.

vLLM imports this as a middleware (`--middleware penstock_engine_door.Guard`), from a copy beside the file, with
whatever Python it has: so this file stands alone. vLLM's own `--api-key` would guard some paths and leave others open,
among them some that answer prompts; this guards all of them, and touches a request at its start and its end, never a
token.

    agent       its own key: always let in, and told at GET /penstock/door how many requests of gateways are inside
    gateways    the attempt's key, once the agent has written it down: let in while the door is open, and counted; told
                of paths that this engine has not in the shape of all other errors, which the engine's own is not
    others      401, whatever they ask for

The rule guarded here: fail closed. A file that is not there, or cannot be read, lets nobody in.
"""

from __future__ import annotations

import hmac
import json
import os
from typing import Any

FILE_VARIABLE = "PENSTOCK_ENGINE_DOOR"
"""Names the file: JSON with `agent` (key), `gateways` (key) and `closed` (why, or empty)."""
KEY_HEADER = "x-penstock-engine-key"
STATUS_PATH = "/penstock/door"
ANSWERED_BY_HEADER = "x-penstock-answered-by"
"""On the refusal of a closed door, so that whoever asked tries another replica and holds nothing against this one."""

_MAX_PATHS = 256

AGENT = "agent"
GATEWAYS = "gateways"


class Refusal(Exception):
    """Not let in: an HTTP status and a sentence."""

    def __init__(self, status: int, message: str, kind: str, code: str) -> None:
        super().__init__(message)
        self.status = status
        error = {"message": message, "type": kind, "param": None, "code": code}
        self.body = json.dumps({"error": error}).encode()
        self.headers: dict[str, str] = {}
        if status == 503:
            self.headers[ANSWERED_BY_HEADER] = "door"
            self.headers["retry-after"] = "1"


class Door:
    """The file as it is now; and how many gateways' requests are inside this process."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._read_at: tuple[int, int] | None = None
        self._keys: dict[str, str] = {}
        self.inside = 0

    def admit(self, key: str) -> str:
        """Who comes with `key`: AGENT or GATEWAYS. Raises Refusal."""
        self._look()
        # Both are compared always, so that the time it takes tells nothing.
        agent = _same(key, self._keys.get("agent", ""))
        gateway = _same(key, self._keys.get("gateways", ""))
        if agent:
            return AGENT
        if not gateway:
            raise Refusal(
                401, "this engine answers its own gateways only", "authentication_error", "invalid_api_key"
            )
        if self._keys.get("closed"):
            raise Refusal(503, self._keys["closed"], "service_unavailable_error", "replica_leaving")
        return GATEWAYS

    def status(self) -> bytes:
        """What the agent is told."""
        return json.dumps({"inside": self.inside}).encode()

    def _look(self) -> None:
        """One stat a request; the file is read when it was replaced."""
        try:
            found = os.stat(self._path)
            if self._read_at != (found.st_mtime_ns, found.st_ino):
                with open(self._path, encoding="utf-8") as file:
                    self._keys = json.load(file)
                self._read_at = (found.st_mtime_ns, found.st_ino)
        except (OSError, ValueError):
            self._keys = {}
            self._read_at = None


def not_offered(method: str, path: str) -> Refusal:
    """For a path that this engine has not, or that takes another method."""
    return Refusal(404, f"the engine has no {method} {path}", "invalid_request_error", "not_offered")


def _same(given: str, wanted: str) -> bool:
    return bool(wanted) and hmac.compare_digest(given.encode(), wanted.encode())


class Guard:
    """ASGI, around the engine's application."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._door = Door(os.environ[FILE_VARIABLE])
        self._offered: dict[tuple[str, str], bool] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Lets the request through, or answers it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == KEY_HEADER.encode()]
        try:
            who = self._door.admit(given[0].decode("latin-1") if len(given) == 1 else "")
            if who == GATEWAYS and not self._offers(scope):
                raise not_offered(scope["method"], scope["path"])
        except Refusal as refusal:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await _answer(send, refusal.status, refusal.body, refusal.headers)
            return
        if who == AGENT and scope["path"] == STATUS_PATH:
            await _answer(send, 200, self._door.status(), {})
            return
        # The engine has no use for the key, and might write it down.
        headers = [header for header in scope["headers"] if header[0] != KEY_HEADER.encode()]
        counts = who == GATEWAYS
        self._door.inside += counts
        try:
            await self._app({**scope, "headers": headers}, receive, send)
        finally:
            self._door.inside -= counts

    def _offers(self, scope: Any) -> bool:
        """Whether the application, Starlette's, has a route for the request. Looked for once a path, of which gateways
        let through a fixed few."""
        if scope["type"] != "http" or "app" not in scope:
            return True
        asked = (scope["method"], scope["path"])
        if asked not in self._offered:
            if len(self._offered) >= _MAX_PATHS:
                self._offered.clear()
            matches = (route.matches(scope)[0] for route in scope["app"].routes)
            self._offered[asked] = any(match.name == "FULL" for match in matches)
        return self._offered[asked]


async def _answer(send: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    encoded = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
