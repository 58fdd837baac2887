"""Playing seeds: one database for all of them, and the story of the one that failed.

make sim               fresh seeds until it is stopped, or for SECONDS=...
make sim SEED=...      that story again, in full
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from penstock.core.sentences import count
from penstock.store import migrate
from penstock.store.database import Database, conninfo
from penstock.store.embedded import EmbeddedServer
from tests.databases import FAST, Databases
from tests.simulation import chaos
from tests.simulation.rules import Violation
from tests.simulation.world import STORMY, Risk, World

STEPS = 70
"""Drawn steps in a seed; the end comes on top."""
SHOWN = 60
"""The last lines of a failed story."""

CLOCK = """
CREATE SCHEMA sim;
CREATE TABLE sim.clock (at timestamptz NOT NULL);
INSERT INTO sim.clock VALUES ('2026-03-02 14:00:00+00');
CREATE FUNCTION sim.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT at FROM sim.clock';
CREATE FUNCTION sim.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT at FROM sim.clock';
"""
"""The database's clock is the simulation's: these are found before pg_catalog's."""


@dataclass
class Ground:
    """Where stories are played: a database whose clock is theirs, and a connection that watches."""

    database: Database
    admin: psycopg.AsyncConnection[Any]

    async def play(self, seed: str, steps: int = STEPS, risk: Risk = STORMY) -> World:
        """One story to its end. Raises Violation, with the story's end in it."""
        async with World.open(self.database, self.admin, seed) as world:
            try:
                await chaos.run(world, steps, risk)
            except Exception as error:
                raise failed(world, error) from error
        return world


def failed(world: World, error: Exception) -> Violation:
    """The error with its story and how to see it again."""
    rule = error.rule if isinstance(error, Violation) else "bug"
    story = "\n".join(world.lines[-SHOWN:])
    told = Violation(rule, "")
    told.args = (f"{story}\n\n{error}\nafter {world.steps} steps; replay: make sim SEED={world.seed}",)
    return told


@contextlib.asynccontextmanager
async def ground(url: str) -> AsyncIterator[Ground]:
    """On a fresh database at head."""
    async with await psycopg.AsyncConnection.connect(
        conninfo(url), autocommit=True, row_factory=namedtuple_row
    ) as admin:
        await admin.execute(CLOCK)
        (name,) = await (await admin.execute("SELECT current_database()")).fetchone() or ("",)
        await admin.execute(f'ALTER DATABASE "{name}" SET search_path = sim, pg_catalog, public'.encode())
        database = Database(url)
        try:
            yield Ground(database, admin)
        finally:
            await database.close()


async def play_until(
    field: Ground, done: Callable[[], bool], say: Callable[[str], None] = print
) -> tuple[int, int]:
    """Fresh seeds until `done`; returns how many, and their steps."""
    seeds = steps = 0
    while not done():
        seed = secrets.token_hex(4)
        world = await field.play(seed)
        seeds, steps = seeds + 1, steps + world.steps
        say(f"seed {seed}: {world.steps} steps, {world.elapsed_s / 60:.0f} simulated minutes")
    return seeds, steps


def _seconds(given: str) -> float:
    """How long to play; nothing given: until it is stopped."""
    try:
        seconds = float(given or "inf")
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        sys.exit(f"SECONDS={given} cannot be played; a number above 0 is accepted, such as 600")
    return seconds


async def _main(url: str, seed: str, seconds: float) -> int:
    until = time.monotonic() + seconds
    async with ground(url) as field:
        try:
            if seed:
                world = await field.play(seed)
                print("\n".join(world.lines))
                seeds, steps = 1, world.steps
            else:
                seeds, steps = await play_until(field, lambda: time.monotonic() >= until)
        except Violation as violation:
            print(violation)
            return 1
    print(f"{count(seeds, 'seed')}, {steps} steps: no rule was broken")
    return 0


def main() -> int:
    """A server of its own, and seeds as the environment says."""
    seed, seconds = os.environ.get("SEED", ""), _seconds(os.environ.get("SECONDS_TO_PLAY", ""))
    logging.disable(logging.CRITICAL)  # The story tells it.
    with tempfile.TemporaryDirectory(prefix="penstock-sim-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        server = EmbeddedServer(folder / "postgres", settings=FAST)
        try:
            url = Databases(server.start()).make("simulation")
            migrate.upgrade(url)
            return asyncio.run(_main(url, seed, seconds))
        finally:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
