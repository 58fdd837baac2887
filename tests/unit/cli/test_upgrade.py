"""`penstock db upgrade` where the database cannot be upgraded: one sentence, and no stack trace."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from penstock.cli.main import app
from penstock.store.embedded import EmbeddedServer, EmbeddedServerError


def test_an_url_that_is_none_is_refused_by_its_key(tmp_path: Path) -> None:
    environment = {"PENSTOCK_DATABASE_URL": "mysql://db/penstock", "PENSTOCK_STATE_DIR": str(tmp_path)}
    done = CliRunner().invoke(app, ["db", "upgrade"], env=environment)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: database_url: the database URL cannot be read; accepted: postgresql://"
    )


@pytest.mark.parametrize("step", ["start", "stop"])
def test_an_embedded_server_that_does_not_start_or_stop_says_why(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(server: EmbeddedServer) -> str:
        raise EmbeddedServerError("PostgreSQL is unwell")

    monkeypatch.setattr(EmbeddedServer, "start", lambda _: "postgresql://127.0.0.1:1/penstock")
    monkeypatch.setattr(EmbeddedServer, "stop", lambda _: None)
    monkeypatch.setattr(EmbeddedServer, step, fail)
    done = CliRunner().invoke(app, ["db", "upgrade"], env={"PENSTOCK_STATE_DIR": str(tmp_path)})
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "error: PostgreSQL is unwell\n"
