"""A port that is ours before anybody listens at it."""

from __future__ import annotations

import socket


class HeldPort:
    """A free port of this machine, ours from now on. Raises OSError where none of `host` can be had.

    Bound and never listened at: the kernel gives it to nobody who asks for any port, and the engine, which is told its
    number and allows addresses to be reused, can still listen there.
    """

    def __init__(self, host: str) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, 0))
        except OSError:
            self._socket.close()
            raise
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Gives it back."""
        self._socket.close()
