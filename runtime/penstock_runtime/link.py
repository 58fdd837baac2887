"""The connection between the head's agent and the agent of another node, for as long as both live.

    head -> rank    {"nonce"}
    rank -> head    {"rank", "node", "address", "nonce", "proof"}
    head -> rank    {"proof", "master_address", "master_port"}      and now both know the other for one of this attempt
    rank -> head    {"failed", "exit_code", "last_words"}           once, if its engine ends unasked
    head -> rank    {"stop"}                                        once

Lines of JSON over TCP. Its end is a message too: whoever is gone, for whatever reason, is noticed by the other within
SILENT_S, long before Slurm misses a node. It knows nothing of engines.

The rule guarded here: both prove that they know the attempt's secret, and it is never sent. Ports of shared nodes are
used again, and anybody on the network may connect.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import socket
from typing import Any

SILENT_S = 15
"""After so many seconds without a sign of life of its machine, the other side is gone."""
GREETING_TIMEOUT_S = 10.0
MAX_LINE_BYTES = 64 * 1024
"""An engine's last words are at most 16 KiB, before JSON quotes them."""


class LinkError(Exception):
    """Not one of ours, or gone before it had said what it should; one sentence."""


class Link:
    """One side of the connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        _keep_alive(writer.get_extra_info("socket"))

    @property
    def own_address(self) -> str:
        """This machine's address, as the other side reaches it."""
        return str(self._writer.get_extra_info("sockname")[0])

    def send(self, **message: Any) -> None:
        """Never waits: all that is ever sent fits into the kernel's buffer."""
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None once the other side is gone."""
        try:
            line = await self._reader.readline()
            message = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    async def close(self) -> None:
        """Ends it, once what was sent is on its way."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            pass


async def connect(host: str, port: int) -> Link:
    """Raises OSError."""
    return Link(*await asyncio.open_connection(host, port, limit=MAX_LINE_BYTES))


async def greet(link: Link, secret: str, **tell: Any) -> dict[str, Any]:
    """The head's side. Tells `tell`, and returns what the rank says of itself. Raises LinkError."""
    nonce = secrets.token_hex(16)
    link.send(nonce=nonce)
    said = await _expected(link, ("rank", "node", "nonce", "proof"))
    if not hmac.compare_digest(str(said["proof"]), _proof(secret, f"rank {said['rank']} {nonce}")):
        raise LinkError("it does not know the attempt's secret")
    link.send(proof=_proof(secret, f"head {said['nonce']}"), **tell)
    return said


async def join(link: Link, secret: str, rank: int, node: str) -> dict[str, Any]:
    """The rank's side. Returns what the head tells. Raises LinkError."""
    nonce = secrets.token_hex(16)
    asked = await _expected(link, ("nonce",))
    link.send(rank=rank, node=node, nonce=nonce, proof=_proof(secret, f"rank {rank} {asked['nonce']}"))
    told = await _expected(link, ("proof",))
    if not hmac.compare_digest(str(told["proof"]), _proof(secret, f"head {nonce}")):
        raise LinkError("the head does not know the attempt's secret")
    return told


async def _expected(link: Link, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(GREETING_TIMEOUT_S):
            message = await link.receive()
    except TimeoutError:
        raise LinkError(f"no word within {GREETING_TIMEOUT_S:g} s") from None
    if message is None or not set(keys) <= set(message):
        raise LinkError("it left, or is no agent of Penstock")
    return message


def _proof(secret: str, text: str) -> str:
    return hmac.digest(secret.encode(), text.encode(), "sha256").hex()


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, SILENT_S // 3),
        (socket.TCP_KEEPINTVL, SILENT_S // 3),
        (socket.TCP_KEEPCNT, 2),
        (socket.TCP_USER_TIMEOUT, SILENT_S * 1000),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
