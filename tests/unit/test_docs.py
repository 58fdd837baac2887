"""The pages made from the code say what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from penstock.core.decisions import Reason

ROOT = Path(__file__).resolve().parents[2]


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "deploy/dev/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.word)
def test_every_reason_is_on_the_page_once(reason: Reason) -> None:
    assert (ROOT / "docs" / "reasons.md").read_text().count(f"| `{reason.word}` |") == 1
