"""The pages made from the code say what the code says."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from penstock.core.decisions import Reason
from penstock.gateway import explain
from penstock.gateway.replies import local_replies
from penstock.gateway.settings import FrontDoorSettings

ROOT = Path(__file__).resolve().parents[2]


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "deploy/dev/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.word)
def test_every_reason_is_on_the_page_once(reason: Reason) -> None:
    assert (ROOT / "docs" / "reasons.md").read_text().count(f"| `{reason.word}` |") == 1


def test_every_reason_that_ends_a_call_is_on_the_page_with_its_status() -> None:
    """The front door's own, the gateway's, and the agents'."""
    sent: set[tuple[str, str]] = set()
    for mapper in local_replies(
        FrontDoorSettings(state_folder=ROOT, control="", gateway="", gateway_rest="", xds="")
    )["mappers"]:
        for each in mapper.get("headers_to_add", ()):
            if each["header"]["key"] == "grpc-status-details-bin":
                sent.add(_status_and_reason(each["header"]["value"]))
    agents = (ROOT / "runtime/penstock_runtime/endings.py").read_text()
    sent |= set(re.findall(r'Ending\(code\.([A-Z_]+), (?:"|details\.)([A-Z_]+)', agents))
    gateways = set(re.findall(r'"([A-Z]+_[A-Z_]+)"', Path(explain.__file__).read_text()))
    assert len(sent) > 15
    assert {"MODEL_NOT_FOUND", "NO_READY_REPLICA", "REPLICA_ENDED", "TOO_MANY_WAIT"} <= gateways

    rows = re.findall(
        r"^\| ([A-Z_]+) \| ([A-Z_, ]+) \|", (ROOT / "docs/inference.md").read_text(), re.MULTILINE
    )
    told = {(status, reason) for status, reasons in rows for reason in reasons.split(", ") if reason.strip()}
    assert sent <= told
    assert {reason for _, reason in told} == {reason for _, reason in sent} | gateways


def _status_and_reason(trailer: str) -> tuple[str, str]:
    status = status_pb2.Status.FromString(base64.b64decode(trailer + "=="))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return code_pb2.Code.Name(status.code), info.reason
