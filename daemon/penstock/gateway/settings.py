"""What the front door can be told: where it listens, whom it speaks to, and its limits.

Addresses are strings: `unix:/path` or `IP:port` (`[::1]:8600` for IPv6). Names are not taken: Envoy would
have to resolve them.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1024 * 1024

MAX_SOCKET_PATH_BYTES = 107
"""The kernel's limit for a Unix socket's path, less its final zero."""

ADDED_HEADERS = 24
"""At most, to those of a client: Envoy's own, and ours on the way to a replica, to the gateway, and back from there."""
ADDED_HEADERS_BYTES = 12 * 1024
"""Of them, with the 32 bytes that HTTP/2 counts for each header of a client's too."""


class AddressError(ValueError):
    """An address that Envoy could not use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontDoorSettings:
    """Fixed while the gateway runs."""

    state_folder: Path
    """Holds Envoy's bootstrap, its log and its admin socket; its contents grant control over the front door
    (mode 0700)."""
    control: str
    """The control API's server: the control services, health and reflection."""
    gateway: str
    """Where the gateway takes the gRPC requests that no replica can; for Envoy only."""
    gateway_rest: str
    """The same for REST."""
    xds: str
    """Where the gateway serves Envoy its configuration. It carries the deployments' secrets: a socket of mode
    0600, or loopback."""
    listen: str = "127.0.0.1:8600"
    runtime_listen: str | None = None
    """A second listener, for the cluster's network, that carries nothing but RuntimeService. Unset: agents
    use `listen`."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may use models from a browser; `*`: any."""
    hosts: tuple[str, ...] = ()
    """Names, in lower case, by which clients may call `listen`, beside addresses and `localhost`. Unset: any."""

    worker_threads: int = 2
    """Envoy's `--concurrency`. One thread carries some 90,000 tokens a second; health checks and streams
    share it."""
    max_connections: int = 4096
    """Clients' connections, all listeners together; beyond it new ones are closed at once."""
    max_heap_bytes: int = 2048 * MIB
    """Envoy's memory; near it new requests are refused, and then bodies that are on their way."""
    max_streams_per_connection: int = 1024
    max_request_bytes: int = 16 * MIB
    """Envoy reads the whole message before it knows the model, so this is also what one request may hold of
    its memory."""
    max_headers: int = 100
    """Of one request."""
    max_header_kib: int = 60
    """All headers of one request together, as its client sends them."""
    request_headers_timeout_s: int = 10
    """From a request's first byte to the end of its headers."""
    request_timeout_s: int = 60
    """From a request's first byte to the end of its body: for so long may a client that stalls hold memory."""
    connection_idle_timeout_s: int = 3600
    """A connection without a request is closed after this."""
    stream_idle_timeout_s: int = 3600
    """A stream on which nothing moved for so long is ended. An engine may think for minutes before its first
    token."""
    health_interval_s: float = 0.4
    health_timeout_s: float = 1.5
    """Interval and time-out together stay under the 2 s in which a dead replica must be out of use, however it died.
    Most of it is time-out: an agent on a busy node may be slow to answer, and a process that is gone refuses at once.
    """

    @property
    def largest_headers_bytes(self) -> int:
        """What every server behind the front door must take, for the front door has let it in."""
        return self.max_header_kib * 1024 + ADDED_HEADERS_BYTES


def header_options(largest_bytes: int) -> tuple[tuple[str, int], ...]:
    """For a gRPC server that is to take headers of so many bytes; by default one that sends 8 KiB may be refused."""
    return (("grpc.max_metadata_size", largest_bytes), ("grpc.absolute_max_metadata_size", largest_bytes))


def envoy_address(address: str) -> dict[str, Any]:
    """The address as Envoy's `core.v3.Address`, in JSON form. Raises AddressError."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path.startswith("/") or len(path.encode()) > MAX_SOCKET_PATH_BYTES:
            raise AddressError(
                f"{address!r}: a socket's path must be absolute and at most {MAX_SOCKET_PATH_BYTES} bytes long"
            )
        return {"pipe": {"path": path}}
    host, _, port = address.rpartition(":")
    try:
        ip = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise AddressError(f"{address!r}: neither unix:/path nor IP:port") from None
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise AddressError(f"{address!r}: the port must be 1 to 65535")
    return {"socket_address": {"address": str(ip), "port_value": int(port)}}
