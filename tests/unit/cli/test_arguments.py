"""Arguments that no command can take."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from penstock.cli.main import app


@pytest.mark.parametrize(
    "arguments", [["events"], ["why"], ["scale", "--replicas", "1"], ["chat", "m"], ["chat", "m", "--system"]]
)
def test_an_argument_that_is_no_text_is_refused_before_any_server_is_asked(arguments: list[str]) -> None:
    """As Python has an argument with the byte 0xff."""
    done = CliRunner().invoke(app, ["--server", "127.0.0.1:1", *arguments, "x\udcff"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == r"error: 'x\udcff' is no text in UTF-8: surrogates not allowed" + "\n"


def test_standard_input_that_is_no_text_is_refused() -> None:
    done = CliRunner().invoke(app, ["--server", "127.0.0.1:1", "chat", "m"], input=b"x\xff")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == r"error: b'x\xff' is no text in UTF-8: invalid start byte" + "\n"
