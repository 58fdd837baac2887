"""How long a failed replica waits before its next attempt.

Doubled with each failure in a row, and shortened by a share that is another one for each attempt: replicas that died
together (a file system, a switch) must not come back together, and again, and again. The share comes from the attempt's
own name and not from chance, so that the same world gives the same plan.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from penstock.core.model import Attempt, Replica
from penstock.core.spec import RestartPolicy

JITTER = 0.25
"""At most this share of a wait is left out: the waits still double, and none is longer than the policy says."""


def failures_after(replica: Replica, attempt: Attempt, ended_at: datetime, policy: RestartPolicy) -> int:
    """Failures in a row, this one included. An attempt that was ready for `reset_after_s` begins a new row.

    `ended_at` is when its job ended, as well as that is known: the time in which nobody looked is no service.
    """
    return 1 if has_served(attempt, ended_at, policy) else replica.failures + 1


def has_served(attempt: Attempt, ended_at: datetime, policy: RestartPolicy) -> bool:
    """Whether the attempt was ready for so long that its end tells nothing about its start."""
    return attempt.ready_at is not None and ended_at - attempt.ready_at >= timedelta(
        seconds=policy.reset_after_s
    )


def delay(failures: int, policy: RestartPolicy, of: str = "") -> timedelta:
    """The first wait doubled with each further failure in a row, at most `backoff_max_s`, less the share of `of`.

    >>> [int(delay(n, RestartPolicy(10, 300)).total_seconds()) for n in (1, 2, 3, 6, 60)]
    [10, 20, 40, 300, 300]
    """
    doublings = min(failures - 1, 20)  # Beyond 2^20 every limit is reached; keeps the number small.
    whole_s = min(
        policy.backoff_initial_s * 2**doublings, max(policy.backoff_max_s, policy.backoff_initial_s)
    )
    return timedelta(milliseconds=round(1000 * whole_s * (1 - JITTER * _share(of))))


def _share(of: str) -> float:
    """From 0 to 1, the same for the same text; 0 for none."""
    return int.from_bytes(hashlib.sha256(of.encode()).digest()[:4]) / 2**32 if of else 0.0
