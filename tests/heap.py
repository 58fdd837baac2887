"""What the daemon remembers: everything that its parts hold, followed from object to object and added up.

The simulation lives in the same process, and what it remembers is no concern of the daemon's: so the process's own
memory tells little, and this does not go through anything that is the tests', a fake's, or Python's own (modules, other
people's classes and functions, the event loop, loggers). Followed are the parts that are given, and what the daemon's
modules hold: their globals, their classes and their caches.

What nobody follows from there (a task that waits for ever, and what it holds) shows in `alive`: instances of the
daemon's classes, and its coroutines, wherever they are held.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import BuiltinFunctionType, CoroutineType, FrameType, FunctionType, ModuleType
from typing import Any

import penstock

NOT_FOLLOWED = (ModuleType, BuiltinFunctionType, FrameType, logging.Logger, asyncio.AbstractEventLoop)
NOT_OURS = ("penstock.testing", "penstock.v1")
"""Modules of no daemon, and those that are generated, which hold nothing but themselves."""
TESTS = ("tests.", "penstock.testing", "pytest", "_pytest")
SOURCES = tuple(penstock.__path__)


@dataclass(frozen=True)
class Heap:
    """What is held, at one instant."""

    objects: int
    size: int
    """Bytes."""
    alive: int
    """Instances of the daemon's classes and its coroutines, in the whole process."""


def measure(*parts: object) -> Heap:
    """What these parts of a daemon and all its modules hold; garbage is collected first."""
    gc.collect()
    seen: set[int] = set()
    size, waiting = 0, [*parts, *_held_by_modules()]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or _is_foreign(one):
            continue
        seen.add(id(one))
        size += sys.getsizeof(one, 0)
        waiting += _held_by(one)
    return Heap(len(seen), size, sum(_is_alive(one) for one in gc.get_objects()))


def _is_ours(module: object) -> bool:
    return isinstance(module, str) and module.startswith("penstock.") and not module.startswith(NOT_OURS)


def _held_by_modules() -> Iterator[object]:
    for name, module in list(sys.modules.items()):
        if _is_ours(name):
            yield from vars(module).values()


def _is_foreign(one: object) -> bool:
    if isinstance(one, NOT_FOLLOWED):
        return True
    if isinstance(one, type | FunctionType):
        return not _is_ours(one.__module__)
    return type(one).__module__.startswith(TESTS)


def _held_by(one: object) -> list[Any]:
    if isinstance(one, type):
        return list(vars(one).values())
    if isinstance(one, FunctionType):
        return [one.__closure__, one.__defaults__, one.__kwdefaults__, one.__dict__]
    return gc.get_referents(one)


def _is_alive(one: object) -> bool:
    if isinstance(one, CoroutineType):
        return one.cr_code.co_filename.startswith(SOURCES)
    return _is_ours(type(one).__module__)
