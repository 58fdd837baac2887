"""Whether a request that failed is sent again, and when. The clients only sleep and send.

The rule guarded here: no token is ever repeated. After the first piece of an answer nothing is sent again, whatever
ended it. Before that, a request is sent again where that can help and costs nobody:

- The server says when to come again (RetryInfo): not before that.
- A limit is reached (RESOURCE_EXHAUSTED) without that: never; the same request would be refused for the same reason.
- No connection came about: always. One that broke: where the call generates nothing unseen, as a stream without a
  piece, or an embedding.
- A whole answer (`chat`, `generate`) may have been generated, and paid for, before it was lost on its way: only where
  the reason says that no replica had the request.
- A replica or its engine ended over the request: never. The front door has tried another one by then, and a
  request that kills engines must not be given more of them.
"""

from __future__ import annotations

import math
import random
import reprlib
import time
from dataclasses import dataclass

import grpc

from penstock.client.errors import (
    InvalidRequest,
    Overloaded,
    PenstockError,
    Unavailable,
    error_of,
    invalid,
)

NO_REPLICA_HAD_IT = frozenset({"NO_READY_REPLICA", "UNREACHABLE"})
A_REPLICA_ENDED = frozenset({"ENGINE_GONE", "REPLICA_ENDED"})
MOST_LATER = 0.25
"""Those who were all told the same time come again spread over this part of it more."""
FOREVER_S = 1e9
"""30 years. What ends after that has no end: gRPC takes times that are longer still for ones that are over."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and how patiently. `Retry(attempts=1)`: never again."""

    attempts: int = 4
    """How often a request is sent at most. Four last 2 to 4 s: a front door that restarts is back by then."""
    first_s: float = 0.5
    """Before the second; twice as long before each further one, and by chance up to half as long less."""
    longest_s: float = 30.0
    """No wait is longer. A server that asks for a longer one is not asked again: the caller hears it."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts}")
        if not 0 <= self.first_s <= self.longest_s:
            raise ValueError(f"0 <= first_s <= longest_s must hold, not {self.first_s} and {self.longest_s}")


class Attempts:
    """One call's: how often it was sent, and the time that is left to it."""

    def __init__(self, retry: Retry, timeout_s: float | None) -> None:
        self._retry = retry
        self._deadline = _deadline(timeout_s)
        self._failed = 0

    def left_s(self) -> float | None:
        """Of the caller's timeout. None: it has none."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def after(
        self, error: grpc.RpcError, *, generates: bool = False, received: list[str] | None = None
    ) -> float:
        """Seconds to wait before it is sent again. Raises PenstockError where it is not.

        `generates`: a whole answer is generated before anything of it is seen. `received`: the pieces of a stream that
        came; None: none did.
        """
        self._failed += 1
        failure = error_of(error)
        failure.attempts = self._failed
        if received is not None:
            failure.received = "".join(received)
            raise failure from error
        if self._failed >= self._retry.attempts or not may_repeat(failure, generates):
            raise failure from error
        wait_s = self._wait_s(failure)
        left_s = self.left_s()
        if wait_s is None or (left_s is not None and wait_s >= left_s):
            raise failure from error
        return wait_s

    def _wait_s(self, failure: PenstockError) -> float | None:
        retry = self._retry
        doublings = min(self._failed - 1, 32)  # Beyond any longest_s, and within a float.
        backoff_s = min(retry.first_s * 2.0**doublings, retry.longest_s) * random.uniform(0.5, 1)
        asked_s = failure.retry_after_s
        if asked_s is None:
            return backoff_s
        if asked_s > retry.longest_s:
            return None
        return max(backoff_s, asked_s * random.uniform(1, 1 + MOST_LATER))


def _deadline(timeout_s: float | None) -> float | None:
    if timeout_s is None:
        return None
    try:
        until = time.monotonic() + timeout_s
    except (TypeError, OverflowError) as error:
        raise _no_time(timeout_s) from error
    if math.isnan(until):
        raise _no_time(timeout_s)
    return until if until < FOREVER_S else None


def _no_time(timeout_s: object) -> InvalidRequest:
    return invalid("timeout", f"must be a number of seconds, or None, not {reprlib.repr(timeout_s)}")


def may_repeat(failure: PenstockError, generates: bool) -> bool:
    """Whether the request that failed so, before anything of its answer came, may be sent again."""
    if failure.usage is not None and failure.usage.completion_tokens:
        return False
    if isinstance(failure, Overloaded):
        return failure.retry_after_s is not None
    if not isinstance(failure, Unavailable) or failure.reason in A_REPLICA_ENDED:
        return False
    return failure.unreached or not generates or failure.reason in NO_REPLICA_HAD_IT
