"""How long the machine stood still while a test measured something.

    with Stalls() as stalls:
        ...
    assert took_s < PROMISED_S + stalls.total_s

A machine that others share stops for seconds at times, and everything on it with it. That is no fault of what is
measured: a thread that sleeps for moments notices, and a bound on a time lets so much more pass.

It is blind twice. It sees nothing of another process that alone gets no processor. And it cannot tell whose fault a
stall is: a C call of the test's own process that holds the GIL, and cores that are busy with what Penstock itself does,
count as the machine's. So it suits what Penstock promises while it waits for another, and not how much work it is.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

EVERY_S = 0.02
FREELY_S = 0.1
"""Being woken so much late is usual on busy cores, and no stall."""


class Stalls:
    """A context manager that watches until it is left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._ended_s = 0.0
        self._due_at = 0.0
        self._thread = threading.Thread(target=self._watch, name="stalls", daemon=True)

    @property
    def total_s(self) -> float:
        """Seconds so far, with those of a stall that has only just ended."""
        with self._lock:
            return self._ended_s + self._late_s()

    def __enter__(self) -> Stalls:
        self._due_at = time.monotonic() + EVERY_S
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._count()
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            self._count()

    def _count(self) -> None:
        with self._lock:
            self._ended_s += self._late_s()
            self._due_at = time.monotonic() + EVERY_S

    def _late_s(self) -> float:
        late_s = 0.0 if self._over.is_set() else time.monotonic() - self._due_at
        return late_s if late_s > FREELY_S else 0.0
