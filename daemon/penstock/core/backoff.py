"""How long a failed replica waits before its next attempt."""

from __future__ import annotations

from datetime import datetime, timedelta

from penstock.core.model import Attempt, Replica
from penstock.core.spec import RestartPolicy


def failures_after(replica: Replica, attempt: Attempt, ended_at: datetime, policy: RestartPolicy) -> int:
    """Failures in a row, this one included. An attempt that was ready for `reset_after_s` begins a new row.

    `ended_at` is when its job ended, as well as that is known: the time in which nobody looked is no service.
    """
    served = ended_at - attempt.ready_at if attempt.ready_at is not None else timedelta(0)
    return 1 if served >= timedelta(seconds=policy.reset_after_s) else replica.failures + 1


def delay(failures: int, policy: RestartPolicy) -> timedelta:
    """The first wait doubled with each further failure in a row, at most `backoff_max_s`.

    >>> [int(delay(n, RestartPolicy(10, 300)).total_seconds()) for n in (1, 2, 3, 6, 60)]
    [10, 20, 40, 300, 300]
    """
    doublings = min(failures - 1, 20)  # Beyond 2^20 every limit is reached; keeps the number small.
    return timedelta(
        seconds=min(
            policy.backoff_initial_s * 2**doublings, max(policy.backoff_max_s, policy.backoff_initial_s)
        )
    )
