"""What reaches the terminal, and where the server's address comes from."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from penstock.cli import connection, output, rows
from penstock.cli.failures import Failure
from penstock.cli.main import _server_first
from penstock.cli.waiting import parse_duration
from penstock.v1 import replica_pb2

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (150, "2m30s"), (900, "15m"), (7199, "119m"), (7260, "2h1m"),
     (36000, "10h"), (172800, "2d"), (-5, "0s")],
)  # fmt: skip
def test_ages(seconds: int, text: str) -> None:
    stamp = Timestamp(seconds=int(NOW.timestamp()) - seconds)
    assert output.age(stamp, NOW) == text


def test_no_age() -> None:
    assert output.age(Timestamp()) == "-"


def test_nobody_is_asked_where_an_attempt_was_that_has_ended() -> None:
    item = replica_pb2.Replica()
    assert rows.endpoint(item) == "-"
    item.attempt.endpoint = "node1:4001"
    assert rows.endpoint(item) == "node1:4001"
    item.attempt.ended_at.GetCurrentTime()
    assert rows.endpoint(item) == "-"


def test_control_characters_are_shown_and_not_sent() -> None:
    assert output.clean("a\x1b]0;title\x07\r\n\tb") == "a\\x1b]0;title\\x07\\x0d\n\tb"


def test_a_table_without_a_terminal_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("NAME", "MESSAGE"), [("a[bold]", "x" * 500), ("long-name", "\x1b[31mred")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["NAME        MESSAGE", "a[bold]     " + "x" * 500, "long-name   \\x1b[31mred"]


def test_rows_that_come_later_stand_below_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    widths: list[int] = []
    output.table(("NAME", "B"), [("longer-than-that", "1")], widths=widths)
    output.table(("NAME", "B"), [("a", "2")], widths=widths)
    assert capsys.readouterr().out.splitlines()[2] == "a                  2"


class TestServer:
    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        monkeypatch.delenv("PENSTOCK_SERVER", raising=False)

    def configure(self, text: str) -> None:
        path = connection.config_path()
        path.parent.mkdir(parents=True)
        path.write_text(text)

    def test_default(self) -> None:
        assert connection.find_address(None) == "127.0.0.1:8600"

    def test_the_nearest_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.configure('server = "file:1"')
        assert connection.find_address(None) == "file:1"
        monkeypatch.setenv("PENSTOCK_SERVER", "variable:2")
        assert connection.find_address(None) == "variable:2"
        assert connection.find_address("[::1]:3") == "[::1]:3"

    @pytest.mark.parametrize("address", ["localhost", "http://a:1", "a:b", "", ":1"])
    def test_no_address(self, address: str) -> None:
        with pytest.raises(Failure, match="--server: the server must be host:port") as caught:
            connection.find_address(address)
        assert caught.value.code == 2

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("server = 1", "server must be text"),
            ("sever = 'a:1'", "there is no setting 'sever'; there is server"),
            ("server", "cannot be read"),
        ],
    )
    def test_a_configuration_that_is_wrong(self, text: str, message: str) -> None:
        self.configure(text)
        with pytest.raises(Failure, match=message) as caught:
            connection.find_address(None)
        assert caught.value.code == 2


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (["get", "x"], ["get", "x"]),
        (["get", "--server", "a:1", "x"], ["--server", "a:1", "get", "x"]),
        (["get", "x", "--server=a:1"], ["--server=a:1", "get", "x"]),
        (["chat", "a", "--", "--server", "b"], ["chat", "a", "--", "--server", "b"]),
        (["get", "--server"], ["get", "--server"]),
    ],
)
def test_the_server_may_stand_anywhere(given: list[str], made: list[str]) -> None:
    assert _server_first(given) == made


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "1.5h", "1d", "soon"])
def test_no_duration(text: str) -> None:
    with pytest.raises(Failure, match="--timeout must be a number"):
        parse_duration(text)
