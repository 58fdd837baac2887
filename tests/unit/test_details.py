"""google.rpc's details of an error."""

from __future__ import annotations

import pytest
from google.rpc import error_details_pb2

from penstock import details
from penstock.contract import Broken

TWO = [Broken("metadata.name", "must be given"), Broken("spec.replicas", "must be at least 0, not -1")]


def test_a_field_is_told_with_its_sentence_and_the_reason() -> None:
    (told,) = details.bad_request([Broken("model", "is empty")]).field_violations
    assert (told.field, told.description, told.reason) == ("model", "is empty", "BAD_VALUE")


@pytest.mark.parametrize("less", [0, 1])
def test_what_is_told_is_no_longer_than_it_may_be(less: int) -> None:
    """To the byte: every text here is short, and so its length is one byte."""
    whole = details.bad_request(TWO)
    # The frames are counted at 12 bytes each; these have 8: the tags and lengths of three texts and of the violation.
    counted = whole.ByteSize() + 4 * len(TWO)
    told = details.bad_request(TWO, max_bytes=counted - less)
    assert len(told.field_violations) == 2 - less
    assert told.ByteSize() <= counted - less


def test_a_status_carries_its_details() -> None:
    status = details.status(
        8, "enough", details.error_info("TOO_MANY_WAIT", {"limit": "max_held"}), details.retry_info(5)
    )
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.domain, info.reason, dict(info.metadata)) == (
        "penstock",
        "TOO_MANY_WAIT",
        {"limit": "max_held"},
    )
    assert retry.retry_delay.seconds == 5
