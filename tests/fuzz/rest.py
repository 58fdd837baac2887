"""schemathesis on one of the front door's OpenAPI documents, for so many seconds.

It fails on: a status that the document has not, a server error that is none of the promised ones (never 500), a body of
another shape or media type, a request against the schema that is taken, a stack trace, and no answer in time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 15
"""For an answer; most take milliseconds, and two busy cores make a few of them seconds."""
REQUEST_TIMEOUT_S = 30
OVERTIME_S = 300
"""Ends a hang: schemathesis makes examples before its first case, and ends the scenario that it is at."""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "no_stack_trace",
)


@dataclass(frozen=True)
class Played:
    """How it went; `output` is what schemathesis printed, with a curl command for each failure."""

    cases: int
    operations: int
    failed: bool
    output: str


def play(
    url: str,
    document: str,
    seconds: float,
    seed: int,
    promised: tuple[int, ...],
    without: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
) -> Played:
    """Plays against the document at `document`. `promised`: server errors that may be; `without`: paths that are left
    out; `also`: further checks."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "openapi.json"
        file.write_text(httpx.get(url + document).raise_for_status().text)
        config = Path(folder) / "schemathesis.toml"
        expected = ["2xx", "4xx", *(str(status) for status in promised)]
        config.write_text(
            f"[checks.not_a_server_error]\nexpected-statuses = {json.dumps(expected)}\n"
            # It would cut longer answers for its report, and then find that what is left is not JSON.
            "[output.truncation]\nmax-recorded-payload-size = 0\n"
        )
        report = Path(folder) / "report.json"
        command = [
            str(Path(sys.executable).with_name("schemathesis")),
            f"--config-file={config}",
            "--no-color",
            "fuzz",
            str(file),
            f"--url={url}",
            f"--max-time={seconds:g}",
            f"--seed={seed}",
            f"--checks={','.join((*CHECKS, *also))}",
            "--continue-on-failure",
            "--max-failures=20",
            f"--max-response-time={PATIENCE_S}",
            f"--request-timeout={REQUEST_TIMEOUT_S}",
            "--suppress-health-check=all",
            "--generation-database=none",
            f"--report-json-path={report}",
            *(f"--exclude-path={path}" for path in without),
        ]
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.fuzz.rest_hooks"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds + OVERTIME_S,
        )
        said = json.loads(report.read_text()) if report.exists() else {}
        return Played(
            cases=said.get("test_cases", {}).get("generated", 0),
            operations=said.get("operations", {}).get("tested", 0),
            failed=done.returncode != 0,
            output=done.stdout,
        )
