"""Calls of the shared file system, each in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from penstock.controller import file_calls
from penstock.controller.file_calls import CALLS, FileCalls, FolderSilent
from tests.patience import PATIENCE_S


async def test_what_a_call_returns_or_raises_is_the_callers() -> None:
    files = FileCalls(Path("/shared"))
    assert await files.do(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await files.do(lambda: 1 // 0)


async def test_a_call_without_a_thread_keeps_nobody_else_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    files = FileCalls(Path("/shared"))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        for _ in range(CALLS + 1):
            with pytest.raises(OSError, match="no thread can be started: can't start new thread"):
                await asyncio.wait_for(files.do(lambda: 7), PATIENCE_S)
    assert await asyncio.wait_for(files.do(lambda: 7), PATIENCE_S) == 7


async def test_while_a_call_hangs_nobody_calls_and_then_everybody_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(file_calls, "ANSWER_WITHIN_S", 0.05)
    files, back = FileCalls(Path("/shared")), threading.Event()
    with pytest.raises(FolderSilent):
        await files.do(lambda: back.wait(PATIENCE_S))
    with pytest.raises(FolderSilent):
        await files.do(lambda: pytest.fail("it was called"))
    back.set()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                assert await files.do(lambda: 7) == 7
                return
            except FolderSilent:
                await asyncio.sleep(0.01)
