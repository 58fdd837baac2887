"""Which status a failure becomes, and what its details say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.rpc import error_details_pb2, status_pb2

from penstock import details
from penstock.contract import Broken, Unreadable
from penstock.v1 import inference_pb2 as pb
from penstock_runtime.endings import (
    MAX_DETAIL_BYTES,
    MAX_MESSAGE_BYTES,
    BrokenRules,
    Ending,
    NoSuchModel,
    NotSupported,
    ending,
)
from penstock_runtime.engine import EngineError
from penstock_runtime.gate import Closed
from penstock_runtime.merge import EngineFault
from penstock_runtime.pipe import Unfinished
from penstock_runtime.translate import BadAnswer, BadRequest


@pytest.mark.parametrize(
    ("error", "code", "reason", "words"),
    [
        (Closed("leaving"), "UNAVAILABLE", "REPLICA_CLOSED", "leaving"),
        (NoSuchModel("no such"), "NOT_FOUND", "MODEL_NOT_FOUND", "no such"),
        (NotSupported("not here"), "UNIMPLEMENTED", "NOT_SUPPORTED", "not here"),
        (BadRequest("n", "is 0"), "INVALID_ARGUMENT", "BAD_VALUE", "n: is 0"),
        (Unreadable("", "is cut off"), "INVALID_ARGUMENT", "BAD_VALUE", "is cut off"),
        (BrokenRules([Broken("a", "is bad")]), "INVALID_ARGUMENT", "BAD_VALUE", "a: is bad"),
        (EngineError(0, "connection lost"), "UNAVAILABLE", "ENGINE_GONE", "connection lost"),
        (EngineError(400, "too long"), "INVALID_ARGUMENT", "ENGINE_REFUSED", "the engine says: too long"),
        (EngineError(404, "Not Found"), "UNIMPLEMENTED", "NOT_SUPPORTED", "the engine says: Not Found"),
        (
            EngineError(404, "no `a`", "NotFoundError"),
            "NOT_FOUND",
            "ENGINE_REFUSED",
            "the engine says: no `a`",
        ),
        (EngineError(405, "Method"), "UNIMPLEMENTED", "NOT_SUPPORTED", "the engine says: Method"),
        (EngineError(413, "too large"), "INVALID_ARGUMENT", "ENGINE_REFUSED", "the engine says: too large"),
        (EngineError(422, "type"), "INVALID_ARGUMENT", "ENGINE_REFUSED", "the engine says: type"),
        (EngineError(429, "full"), "RESOURCE_EXHAUSTED", "ENGINE_BUSY", "the engine says: full"),
        (EngineError(500, "oops"), "INTERNAL", "ENGINE_FAILED", "the engine says: oops"),
        (EngineError(501, "no"), "UNIMPLEMENTED", "NOT_SUPPORTED", "the engine says: no"),
        (EngineError(503, "dead"), "UNAVAILABLE", "ENGINE_GONE", "the engine says: dead"),
        (EngineFault("oops", 500), "INTERNAL", "ENGINE_FAILED", "the engine says: oops"),
        (EngineFault("bad", 400), "INVALID_ARGUMENT", "ENGINE_REFUSED", "the engine says: bad"),
        (Unfinished(), "UNAVAILABLE", "ENGINE_GONE", "the engine closed the stream before it was finished"),
        (BadAnswer("no choices"), "INTERNAL", "BAD_ANSWER", "no choices"),
        (RuntimeError("bug"), "INTERNAL", "AGENT_FAILED", "the agent failed: RuntimeError('bug')"),
    ],
)
def test_the_one_status(error: Exception, code: str, reason: str, words: str) -> None:
    end = ending(error)
    assert (end.code.name, end.reason, end.message) == (code, reason, words)
    info = error_details_pb2.ErrorInfo()
    assert status_of(end).details[0].Unpack(info)
    assert (info.domain, info.reason) == ("penstock", reason)


def test_every_reason_is_on_the_page() -> None:
    root = Path(__file__).resolve().parents[3]
    used = set(re.findall(r'"([A-Z]+_[A-Z]+)"', (root / "runtime/penstock_runtime/endings.py").read_text()))
    assert "ENGINE_GONE" in used
    used.add(details.BAD_VALUE)
    page = (root / "docs/inference.md").read_text()
    assert {reason for reason in used if reason not in page} == set()


def status_of(end: Ending) -> status_pb2.Status:
    ((_, value),) = [one for one in end.trailers() if one[0] == "grpc-status-details-bin"]
    assert isinstance(value, bytes)
    status = status_pb2.Status.FromString(value)
    assert (status.code, status.message) == (end.code.value[0], end.message)
    return status


def violations(error: Exception) -> list[tuple[str, str]]:
    found = error_details_pb2.BadRequest()
    if not any(detail.Unpack(found) for detail in status_of(ending(error)).details):
        return []
    return [(each.field, each.description) for each in found.field_violations]


@pytest.mark.parametrize(
    ("error", "field"),
    [
        (BadRequest("engine_options.n", "no"), "engine_options.n"),
        (Unreadable("messages[0].content[0].text", "no"), "messages[0].content[0].text"),
        (EngineError(400, "no", "BadRequestError", "max_tokens"), "sampling.max_tokens"),
        (EngineError(400, "no", "Bad Request", "body.messages"), "messages"),
        (EngineError(400, "no", "BadRequestError", "input"), "inputs"),
        (EngineFault("no", 400, "BadRequestError", "structured_outputs"), "output"),
        (EngineError(400, "no", "BadRequestError", "min_tokens"), "engine_options.min_tokens"),
    ],
)
def test_the_field_at_fault_is_named(error: Exception, field: str) -> None:
    assert violations(error) == [(field, "no")]


def test_an_engine_that_names_no_field_leaves_only_its_words() -> None:
    assert violations(EngineError(400, "too long")) == []


def test_what_had_been_made_is_counted() -> None:
    end = ending(Unfinished()).after(pb.Usage(prompt_tokens=7, completion_tokens=3))
    assert end.message.endswith("; 3 tokens had been made")
    assert dict(end.trailers())["penstock-completion-tokens"] == "3"
    usage = pb.Usage()
    assert status_of(end).details[-1].Unpack(usage)
    assert (usage.prompt_tokens, usage.completion_tokens) == (7, 3)
    assert ending(Unfinished()).after(pb.Usage()) == ending(Unfinished())


def test_trailers_stay_below_what_clients_take() -> None:
    many = [Broken(f"stop[{i}]", "é" * 5000) for i in range(100)]
    end = ending(BrokenRules(many))
    assert len(end.message.encode()) <= MAX_MESSAGE_BYTES
    size = sum(len(key) + len(value) for key, value in end.trailers())
    assert size < MAX_MESSAGE_BYTES + MAX_DETAIL_BYTES + 500
