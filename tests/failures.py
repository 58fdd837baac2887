"""Failures told briefly, so that those of a whole run fit on a page: what is kept of CI's output has an end.

Of a failure's message, its calls and what was printed and logged meanwhile the middle is left out, and counted.
`pytest -v` leaves out nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import pytest
from _pytest._code.code import ExceptionChainRepr, ExceptionRepr, ReprTraceback

MESSAGE_LINES = (20, 8)
"""First and last; the first say what is wrong, the last may hold a log's end."""
CALLS = (1, 4)
"""The test's own, and those that lead to the error."""
PRINTED_LINES = 20
"""Last lines of each stream."""
LINE_CHARACTERS = 400
SUMMARY_LINES = 6

FAILED = "E   "
"""How pytest begins the lines of a message below those of the source."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and item.config.get_verbosity() < 1:
        report.sections = [
            (title, "\n".join(_middle_out(text.splitlines(), 0, PRINTED_LINES)) + "\n")
            for title, text in report.sections
        ]
        if isinstance(report.longrepr, ExceptionRepr):
            _shorten(report.longrepr)
    return report


def _shorten(told: ExceptionRepr) -> None:
    # The last of a chain is what was raised in the end; those before it are its causes.
    if isinstance(told, ExceptionChainRepr):
        told.chain = told.chain[-2:]
        for traceback, _, _ in told.chain:
            _shorten_calls(traceback)
    elif told.reprtraceback is not None:
        _shorten_calls(told.reprtraceback)
    if told.reprcrash is not None:
        told.reprcrash.message = "\n".join(_middle_out(told.reprcrash.message.splitlines(), SUMMARY_LINES, 0))


def _shorten_calls(traceback: ReprTraceback) -> None:
    first, last = CALLS
    calls = traceback.reprentries
    if len(calls) > first + last:
        traceback.reprentries = [*calls[:first], *calls[-last:]]
        traceback.extraline = f"{len(calls) - first - last} calls in the middle are left out"
    for call in traceback.reprentries:
        source = [line for line in call.lines if not line.startswith(FAILED)] if call.style != "value" else []
        message = call.lines[len(source) :]
        call.lines = [*source, *_middle_out(message, *MESSAGE_LINES, mark=FAILED if source else "")]


def _middle_out(lines: Sequence[str], first: int, last: int, mark: str = "") -> list[str]:
    short = [line if len(line) <= LINE_CHARACTERS else f"{line[:LINE_CHARACTERS]}..." for line in lines]
    left_out = len(short) - first - last
    if left_out <= 1:
        return short
    return [*short[:first], f"{mark}... {left_out} lines left out", *short[len(short) - last :]]
