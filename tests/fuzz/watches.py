"""The calls of the control API as REST whose answers have no end, with good and bad parameters, and clients that leave.

schemathesis reads answers whole, and so leaves these out. Here a client goes after so many lines or so long a time,
whichever comes first. What is wrong with an answer: a status that nobody promised, a media type or an error of another
shape, a line that is no JSON, a stack trace, and an error that does not end.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass

import httpx

from tests.fuzz.rest_hooks import TRACES

NAMES = (
    "target",
    "bystander",
    "target-1",
    "pool-1",
    "nobody",
    "",
    "a/b",
    "..",
    "é",
    "\0",
    "%",
    "x" * 2000,
    "7",
)
NUMBERS = (
    "0",
    "1",
    "-1",
    "5",
    "1.5",
    "1e3",
    "",
    "many",
    "NaN",
    str(2**31),
    str(2**63 - 1),
    str(2**63),
    str(-(2**63)),
)
TRUTHS = ("true", "false", "1", "TRUE", "", "perhaps")
FILTERS = ("", "team=a", "a!=b", "a in (b", "name=target", ",,", "=", "\0", "x" * 1025)
CALLS: dict[str, dict[str, tuple[str, ...]]] = {
    "/apis/v1/deployments:watch": {"name": NAMES, "filter": FILTERS},
    "/apis/v1/decisions:watch": {"deployment": NAMES, "replica": NAMES, "after": NUMBERS},
    "/apis/v1/replicas/target-1:logs": {"follow": TRUTHS, "tail_lines": NUMBERS},
    "/apis/v1/replicas/nobody:logs": {"follow": TRUTHS, "tail_lines": NUMBERS},
}
MAY_BE_SILENT = frozenset({"/apis/v1/replicas/target-1:logs"})
"""Not even their headers need come before there is something to say."""
STATUSES = frozenset({200, 400, 404, 413, 429, 431, 501, 503})
AT_ONCE = 8
LEAVES_AFTER_S = 0.5
ENDS_WITHIN_S = 30.0
"""An error, or the first byte of an answer; milliseconds, but where two cores are busy."""
MOST_LINES = 5


@dataclass(frozen=True)
class Case:
    """One call, and after how many lines of its answer the client leaves."""

    path: str
    query: tuple[tuple[str, str], ...]
    lines: int


def case(seed: int, number: int) -> Case:
    """The same for the same numbers."""
    chance = random.Random(f"{seed}/{number}")
    path = chance.choice(list(CALLS))
    query = [(name, chance.choice(values)) for name, values in CALLS[path].items() if chance.random() < 0.5]
    if query and chance.random() < 0.1:
        query.append((query[0][0], chance.choice(NAMES)))  # A second time.
    if chance.random() < 0.1:
        query.append(("x", "1"))
    return Case(path, tuple(query), chance.randint(1, MOST_LINES))


async def play(url: str, seconds: float, seed: int) -> tuple[int, int, list[str]]:
    """How many cases there were, how many of them were answered with lines, and what was wrong."""
    until, faults, numbers, watched = time.monotonic() + seconds, list[str](), iter(range(1_000_000_000)), 0
    played = 0

    async def client() -> None:
        nonlocal played, watched
        while time.monotonic() < until:
            one = case(seed, next(numbers))
            lines, fault = await _call(http, one)
            played, watched = played + 1, watched + bool(lines)
            if fault:
                faults.append(f"{one}: {fault}")

    async with httpx.AsyncClient(base_url=url, timeout=ENDS_WITHIN_S) as http:
        await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return played, watched, faults


async def _call(http: httpx.AsyncClient, one: Case) -> tuple[int, str]:
    """The lines that came, and what was wrong with the answer."""
    lines: list[str] = []
    leaving = asyncio.timeout(LEAVES_AFTER_S if one.path in MAY_BE_SILENT else None)
    try:
        async with leaving, http.stream("GET", one.path, params=one.query) as answer:
            if answer.status_code != 200:
                leaving.reschedule(None)
                return 0, _bad_error(answer.status_code, (await answer.aread()).decode())
            leaving.reschedule(asyncio.get_running_loop().time() + LEAVES_AFTER_S)
            async for line in answer.aiter_lines():
                lines.append(line)
                if len(lines) >= one.lines:
                    break
    except TimeoutError:
        pass
    except (httpx.HTTPError, UnicodeDecodeError) as error:
        return len(lines), repr(error)
    return len(lines), next(filter(None, map(_bad_line, lines)), "")


def _bad_error(status: int, text: str) -> str:
    if status not in STATUSES or any(trace in text for trace in TRACES):
        return f"{status} {text[:1000]}"
    try:
        said = json.loads(text)
        return (
            ""
            if said["message"] and isinstance(said["code"], int)
            else f"an error that says nothing: {text[:1000]}"
        )
    except (ValueError, LookupError, TypeError):
        return f"no google.rpc.Status: {text[:1000]}"


def _bad_line(line: str) -> str:
    try:
        return (
            ""
            if not line or isinstance(json.loads(line), dict)
            else f"a line that is no object: {line[:500]}"
        )
    except ValueError:
        return f"a line that is no JSON: {line[:500]}"
