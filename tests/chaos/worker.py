"""One thread of a chaos run: a step repeated until it is told to stop, with randomness of its own.

Each worker draws from a generator seeded by the run's seed and its own name, so that what one does never
shifts what another draws. What happens between them is the machine's timing, and no seed repeats that.
"""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections import Counter
from datetime import datetime

FINISH_WITHIN_S = 180


class Worker(ABC, threading.Thread):
    """Repeats `step`. `counts`: what it has done, by kind."""

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self.random = random.Random(f"{seed}/{name}")
        self.stopping = threading.Event()
        self.counts: Counter[str] = Counter()
        self.done_at: list[tuple[datetime, str]] = []
        """When it began to do what, as the logs tell the time."""
        self.error: BaseException | None = None

    @abstractmethod
    def step(self) -> None:
        """One piece of work. What it raises ends the worker, and `finish` raises it again."""

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                self.step()
        except BaseException as error:  # pytest's own failures are no Exception.
            self.error = error

    def note(self, what: str, began: datetime) -> None:
        """Counts what it has done."""
        self.counts[what] += 1
        self.done_at.append((began, what))

    def pause(self, least_s: float, most_s: float) -> None:
        """Waits a drawn time, or until told to stop."""
        self.stopping.wait(self.random.uniform(least_s, most_s))

    def finish(self) -> None:
        """Tells it to stop and waits until it has. Raises what ended it before."""
        self.stopping.set()
        self.join(FINISH_WITHIN_S)
        if self.error is not None:
            raise self.error
        if self.is_alive():
            raise TimeoutError(f"{self.name} does not stop")
