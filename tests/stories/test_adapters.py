"""LoRA adapters over time: added, refused by an engine, moved and taken away while the replicas run."""

from __future__ import annotations

from dataclasses import replace

from penstock.core.model import AdapterStanding
from penstock.core.spec import Adapter, AdapterRoom
from tests.stories.stage import SPEC, Stage
from tests.stories.test_stories import serve

SUPPORT, SQL = Adapter("support", "/lora/support-v1"), Adapter("sql", "/lora/sql-v1")
MOVED = Adapter("support", "/lora/support-v2")
MISSING = "/lora/sql-v1 has no adapter_config.json"


async def want(stage: Stage, *adapters: Adapter) -> None:
    """The deployment is applied with these. Room for adapters is there from the start, so that none needs a restart."""
    await stage.edit(model=replace(SPEC.model, adapters=adapters, adapter_room=AdapterRoom()))
    stage.say(f"which names {', '.join(f'{one.name} in {one.path}' for one in adapters) or 'no adapters'}")


def has(adapter: Adapter, message: str = "") -> AdapterStanding:
    return AdapterStanding(adapter.name, adapter.path, loaded=not message, message=message)


async def test_adapters_come_and_go(stage: Stage) -> None:
    stage.tell("""Two replicas serve a model, with room for adapters and none yet. Adding two of them makes no revision
        and restarts nothing: each agent hears of them in the answer to its next report, loads them, and says how that
        went. A replica serves its model all the while.""")
    await serve(stage, 2, model=replace(SPEC.model, adapter_room=AdapterRoom()))
    stage.ready_at_least = 2
    await want(stage, SUPPORT, SQL)
    await stage.tick(1)
    await stage.show("AdaptersLoaded")
    await stage.has_adapters("chat-1", has(SUPPORT), has(SQL))
    await stage.has_adapters("chat-2", has(SUPPORT), has(SQL, MISSING))
    await stage.tick(5)
    await stage.show("AdaptersLoaded")
    await stage.quiet_tick()
    stage.tell("Somebody puts the file in its place. The agent has gone on trying.")
    await stage.has_adapters("chat-2", has(SUPPORT), has(SQL))
    await stage.tick(30)
    await stage.show("AdaptersLoaded")
    stage.tell("""An adapter moves to another folder: nobody has that until it is loaded from there, whatever they had
        under its name. Then both are taken away.""")
    await want(stage, MOVED, SQL)
    await stage.tick(1)
    await stage.has_adapters("chat-1", has(MOVED), has(SQL))
    await stage.has_adapters("chat-2", has(MOVED), has(SQL))
    await stage.tick(5)
    await want(stage)
    await stage.tick(1)
    await stage.has_adapters("chat-1")
    await stage.has_adapters("chat-2")
    await stage.quiet_tick()


async def test_adapters_of_a_replica_that_is_started_again(stage: Stage) -> None:
    stage.tell("""A replica with an adapter dies. What its agent had said of adapters died with it: the next attempt has
        none until its own agent says so.""")
    await serve(stage, 1, model=replace(SPEC.model, adapters=(SUPPORT,), adapter_room=AdapterRoom()))
    await stage.has_adapters("chat-1", has(SUPPORT))
    await stage.tick(5)
    await stage.finish("chat-1", exit_code=1)
    await stage.tick(5)
    await stage.tick(10)
    stage.pass_time(2)
    await stage.becomes_ready("chat-1")
    await stage.tick(1)
    await stage.show("AdaptersLoaded")
    await stage.has_adapters("chat-1", has(SUPPORT))
    await stage.tick(5)
    await stage.show("AdaptersLoaded")
    await stage.quiet_tick()
