"""The parts that Penstock leans on, as conditions."""

from __future__ import annotations

from penstock.rpc.convert.time import time_out
from penstock.rpc.vitals import Vital
from penstock.v1 import metadata_pb2

_STATUSES = {
    True: metadata_pb2.CONDITION_STATUS_TRUE,
    False: metadata_pb2.CONDITION_STATUS_FALSE,
    None: metadata_pb2.CONDITION_STATUS_UNKNOWN,
}
_REASONS = {True: "Answers", False: "Silent", None: "Unknown"}


def vital_out(vital: Vital) -> metadata_pb2.Condition:
    """One part's condition."""
    return metadata_pb2.Condition(
        type=vital.part,
        status=_STATUSES[vital.is_well],
        reason=_REASONS[vital.is_well],
        message=vital.message,
        since=time_out(vital.since),
    )
