"""Times between core (aware UTC datetimes, None: not set) and the contract (Timestamp, unset: not set)."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp


def time_out(moment: datetime | None) -> Timestamp | None:
    """None stays None: a message field given None is left unset."""
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment.astimezone(UTC))
    return stamp
