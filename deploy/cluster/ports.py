"""Ports on loopback that nobody has."""

from __future__ import annotations

import random
import socket

from deploy.cluster.settings import ClusterError

LOOPBACK = "127.0.0.1"
PORTS = range(20000, 32000)
"""Below the kernel's ephemeral ports, so that no outgoing connection takes a port between choosing and using it."""


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody has now. Random, so that clusters started at the same moment differ."""
    candidates = random.SystemRandom().sample(PORTS, len(PORTS))
    found = [port for port, _ in zip(filter(is_free, candidates), range(count), strict=False)]
    if len(found) < count:
        raise ClusterError(f"no {count} free ports between {PORTS.start} and {PORTS.stop}")
    return found
