"""The job's output stays bounded, and who follows it through the cut loses and repeats nothing."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from penstock.rpc.logs import stream_output
from penstock_runtime import output
from penstock_runtime.engine import Engine, Launch
from penstock_runtime.engine_http import Address
from penstock_runtime.environment import Command


def opened(path: Path) -> int:
    """As Slurm opens it."""
    return os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND, 0o600)


@pytest.mark.parametrize("flags", [os.O_APPEND, 0], ids=["appending", "not appending"])
def test_above_the_limit_the_last_whole_lines_stay(tmp_path: Path, flags: int) -> None:
    fd = os.open(tmp_path / "job.out", os.O_CREAT | os.O_WRONLY | flags, 0o600)
    try:
        os.write(fd, b"".join(b"line %02d\n" % number for number in range(20)))
        output.bound(fd, limit_bytes=160, keep_bytes=20)
        assert (tmp_path / "job.out").stat().st_size == 160, "at the limit nothing is cut"
        os.write(fd, b"line 20\n")
        output.bound(fd, limit_bytes=160, keep_bytes=20)
        os.write(fd, b"line 21\n")
    finally:
        os.close(fd)
    assert (tmp_path / "job.out").read_text() == (
        "--- penstock: 152 bytes were cut here: a job's output is kept below 160 bytes ---\n"
        "line 19\nline 20\nline 21\n"
    )


def test_a_pipe_is_left_alone() -> None:
    reader, writer = os.pipe()
    try:
        output.bound(writer, limit_bytes=0, keep_bytes=0)
    finally:
        os.close(reader)
        os.close(writer)


async def test_an_engine_that_prints_without_end_fills_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "LOOK_EVERY_BYTES", 1000)
    monkeypatch.setattr(output, "LIMIT_BYTES", 100_000)
    monkeypatch.setattr(output, "KEEP_BYTES", 1000)
    code = "for number in range(100_000): print('line', number)"
    command = Command((sys.executable, "-c", code), dict(os.environ))
    what = Launch(command, Address("127.0.0.1", 1), "m", False)
    with os.fdopen(opened(tmp_path / "job.out"), "wb") as echo:
        engine = Engine(what, echo=echo)
        await engine.start()
        assert (await asyncio.wait_for(engine.wait_exit(), 60)).exit_code != 0
    content = (tmp_path / "job.out").read_text()
    assert len(content) < 200_000
    assert content.startswith("--- penstock: ")
    assert content.endswith("line 99999\n")


async def test_a_follower_loses_and_repeats_nothing(tmp_path: Path) -> None:
    path = tmp_path / "job.out"
    ended = asyncio.Event()

    async def is_over() -> bool:
        return ended.is_set()

    fd = opened(path)
    try:
        lines = b"".join(b"line %02d\n" % number for number in range(21))
        os.write(fd, lines)
        stream = stream_output(path, None, is_over)
        seen = await asyncio.wait_for(anext(stream), 60)
        os.write(fd, b"line 21\n")  # Not read before the cut.
        output.bound(fd, limit_bytes=160, keep_bytes=40)
        os.write(fd, b"line 22\n")
        ended.set()
        async with asyncio.timeout(60):
            async for piece in stream:
                seen += piece
    finally:
        os.close(fd)
    assert seen == lines + b"line 21\nline 22\n"
