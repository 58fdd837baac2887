"""Which ids of requests are passed on."""

from __future__ import annotations

from typing import Any, cast

import grpc
import pytest

from penstock_runtime.inference import request_id


class Call:
    """As much of a call's context as request_id looks at."""

    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._metadata


def of(*metadata: tuple[str, str | bytes]) -> str:
    return request_id(cast(grpc.aio.ServicerContext[Any, Any], Call(*metadata)))


def test_the_front_doors_request_id_is_kept() -> None:
    assert of(("user-agent", "x"), ("x-request-id", "0b5c-41.A_z")) == "0b5c-41.A_z"


@pytest.mark.parametrize("given", ["", "a b", "a\r\nHost: b", "x" * 129, b"\x00"])
def test_what_cannot_be_a_header_gets_a_new_id(given: str | bytes) -> None:
    made = of(("x-request-id", given))
    assert made != given
    assert len(made) == 32
    assert made != of(("x-request-id", given))
