"""Which status a failure becomes, and which ids of requests are passed on."""

from __future__ import annotations

from typing import Any, cast

import grpc
import pytest

from penstock_runtime.engine import EngineError
from penstock_runtime.gate import Closed
from penstock_runtime.inference import NoSuchModel, NotSupported, failure, request_id
from penstock_runtime.merge import EngineFault
from penstock_runtime.pipe import Unfinished
from penstock_runtime.translate import BadAnswer, BadRequest


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (Closed("leaving"), "UNAVAILABLE", "leaving"),
        (NoSuchModel("no such"), "NOT_FOUND", "no such"),
        (NotSupported("not here"), "UNIMPLEMENTED", "not here"),
        (BadRequest("n is 0"), "INVALID_ARGUMENT", "n is 0"),
        (EngineError(0, "connection lost"), "UNAVAILABLE", "connection lost"),
        (EngineError(400, "too long"), "INVALID_ARGUMENT", "the engine says: too long"),
        (EngineError(404, "Not Found"), "UNIMPLEMENTED", "the engine says: Not Found"),
        (EngineError(405, "Method Not Allowed"), "UNIMPLEMENTED", "the engine says: Method Not Allowed"),
        (EngineError(413, "too large"), "INVALID_ARGUMENT", "the engine says: too large"),
        (EngineError(422, "type"), "INVALID_ARGUMENT", "the engine says: type"),
        (EngineError(429, "full"), "RESOURCE_EXHAUSTED", "the engine says: full"),
        (EngineError(500, "oops"), "INTERNAL", "the engine says: oops"),
        (EngineError(501, "no"), "UNIMPLEMENTED", "the engine says: no"),
        (EngineError(503, "dead"), "UNAVAILABLE", "the engine says: dead"),
        (EngineFault("oops", 500), "INTERNAL", "the engine says: oops"),
        (EngineFault("bad", 400), "INVALID_ARGUMENT", "the engine says: bad"),
        (Unfinished(), "UNAVAILABLE", "the engine closed the stream before it was finished"),
        (BadAnswer("no choices"), "INTERNAL", "no choices"),
        (RuntimeError("bug"), "INTERNAL", "the agent failed: RuntimeError('bug')"),
    ],
)
def test_the_one_status(error: Exception, code: str, words: str) -> None:
    status, message = failure(error)
    assert (status.name, message) == (code, words)


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
