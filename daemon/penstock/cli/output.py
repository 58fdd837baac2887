"""What goes to the terminal: tables for people, JSON and YAML for programs.

The rule guarded here: nothing that a server or a model wrote reaches a terminal raw. `clean` makes control
characters visible, and text is never read as Rich markup. To a file or a pipe goes plain text without
colours.
"""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import yaml
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from penstock.cli.manifest import API_VERSION, KIND, short_enums
from penstock.v1 import deployment_pb2

PLAIN_WIDTH = 1_000_000
"""Where nobody's window is to be fitted, nothing is cut or wrapped."""

_COLOURS = {"Ready": "green", "READY": "green", "Deleting": "yellow", "DRAINING": "yellow", "BackOff": "red"}


class Format(enum.StrEnum):
    """How `get` shows what it found."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class DataFormat(enum.StrEnum):
    """The same for what has one table only."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def console(*, stderr: bool = False) -> Console:
    """Made anew each time, so that it follows where the standard streams lead now."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream,
        stderr=stderr,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=True,
        width=None if stream.isatty() else PLAIN_WIDTH,
    )


def clean(text: str) -> str:
    """The text with every control character but line ends and tabs made visible.

    >>> clean("red \\x1b[31m")
    'red \\\\x1b[31m'
    """
    return "".join(mark if mark.isprintable() or mark in "\n\t" else f"\\x{ord(mark):02x}" for mark in text)


def say(text: str = "", *, style: str = "", stderr: bool = False) -> None:
    """A line of text."""
    console(stderr=stderr).print(Text(clean(text), style=style))


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, widths: list[int] | None = None) -> None:
    """Columns as kubectl's: no lines, three spaces between. The last column takes what room there is.

    `widths`: a list that keeps the columns' widths from one call to the next of the same table, empty at the
    first: only then the headers are shown.
    """
    cells = [[clean(cell) for cell in row] for row in rows]
    if widths is None:
        widths = []
    has_headers = not widths
    longest = [max((cell_len(row[index]) for row in cells), default=0) for index in range(len(headers))]
    before = [cell_len(header) for header in headers] if has_headers else widths
    widths[:] = [max(pair) for pair in zip(before, longest, strict=True)]

    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=has_headers, header_style="bold")
    for header, width in zip(headers[:-1], widths[:-1], strict=True):
        made.add_column(header, no_wrap=True, min_width=width)
    made.add_column(headers[-1], overflow="fold")
    for row in cells:
        made.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    out = console()
    if out.is_terminal:
        out.print(made, soft_wrap=False)
        return
    with out.capture() as captured:
        out.print(made, soft_wrap=False)
    # Rich fills each line up to its column's width.
    for line in captured.get().splitlines():
        print(line.rstrip())


def plain(message: Message) -> dict[str, Any]:
    """A message as proto JSON with the contract's own field names."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def manifest(deployment: deployment_pb2.Deployment) -> dict[str, Any]:
    """A deployment as a manifest that can be applied again."""
    return {"apiVersion": API_VERSION, "kind": KIND, **plain(deployment)}


def data(items: Sequence[Message], form: Format | DataFormat, *, is_list: bool) -> None:
    """Messages for programs: one by itself, several as a list (JSON) or as documents (YAML)."""
    shown = [manifest(item) if isinstance(item, deployment_pb2.Deployment) else plain(item) for item in items]
    if form in (Format.JSON, DataFormat.JSON):
        print(json.dumps({"items": shown} if is_list else shown[0], indent=2, ensure_ascii=False))
        return
    documents = [
        short_enums(document, item) if isinstance(item, deployment_pb2.Deployment) else document
        for document, item in zip(shown, items, strict=True)
    ]
    yaml.safe_dump_all(documents, sys.stdout, sort_keys=False, allow_unicode=True, width=PLAIN_WIDTH)


def spec_text(deployment: deployment_pb2.Deployment) -> str:
    """The spec as in a manifest."""
    document = short_enums(plain(deployment), deployment)
    return yaml.safe_dump(document["spec"], sort_keys=False, allow_unicode=True, width=PLAIN_WIDTH)


def age(moment: Timestamp, now: datetime | None = None) -> str:
    """How long ago, in two units at most; `-` for never."""
    if not moment.seconds:
        return "-"
    seconds = max(0, int((now or datetime.now(UTC)).timestamp()) - moment.seconds)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if hours < 2:
        return f"{minutes}m"
    if days < 2:
        return f"{hours}h{minutes % 60}m" if hours < 10 and minutes % 60 else f"{hours}h"
    return f"{days}d"


def clock(moment: Timestamp) -> str:
    """A local time; `-` for none."""
    if not moment.seconds:
        return "-"
    return f"{moment.ToDatetime(UTC).astimezone():%Y-%m-%d %H:%M:%S}"
