"""What is told of a failure, and how much of it (tests/failures.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FAILS = """
import pytest

def deep(n):
    if n:
        deep(n - 1)
    assert False, "the violation comes first\\n" + "\\n".join(f"row {n}" for n in range(500)) + "\\nthe end"

def test_raises():
    for n in range(300):
        print(f"printed {n}")
    deep(40)

def test_says():
    pytest.fail("it is said\\n" + "z" * 5000, pytrace=False)

def test_cause():
    try:
        deep(1)
    except AssertionError as error:
        raise ValueError("because of that") from error

@pytest.fixture
def broken():
    raise OSError("no room")

def test_setup(broken):
    pass
"""


@pytest.mark.parametrize("verbose", [False, True])
def test_a_failure_is_told_briefly(tmp_path: Path, verbose: bool) -> None:
    (tmp_path / "test_fails.py").write_text(FAILS)
    (tmp_path / "pytest.ini").touch()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.failures",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        "-rfE",
    ]
    done = subprocess.run(
        [*command, *(["-v"] if verbose else []), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        # As in CI: there pytest itself shortens nothing.
        env={**os.environ, "CI": "true", "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    said = done.stdout
    assert "3 failed, 1 error" in said, said + done.stderr
    for told in (
        "the violation comes first",
        "the end",
        "printed 299",
        "it is said",
        "because of that",
        "no room",
    ):
        assert told in said
    assert ("row 250" in said) == verbose
    assert ("printed 100" in said) == verbose
    assert ("z" * 1000 in said) == verbose
    assert (len(said.splitlines()) < 220) != verbose
