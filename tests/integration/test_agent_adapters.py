"""The agent and its engine's adapters: what the control plane wants is loaded and unloaded while the engine runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.v1 import inference_pb2_grpc
from tests.integration.agent_kit import (
    METADATA,
    FakeControl,
    chat,
    failed,
    ready_agent,
    rest_of,
    standin,
    text_of,
    until,
)


@pytest.fixture
def control() -> FakeControl:
    control = FakeControl()
    control.drain_may_end.set()
    return control


def lora(folder: Path, rank: int = 8) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    return folder


def model(*adapters: tuple[str, Path], **more: Any) -> dict[str, Any]:
    listed = [{"name": name, "path": str(path)} for name, path in adapters]
    return {"adapters": listed, "adapter_room": {}, **more}


async def says(stub: inference_pb2_grpc.InferenceServiceStub, name: str) -> str:
    """What the stand-in answers: its adapters shout."""
    call = stub.StreamChat(chat("tell me", model=name, max_tokens=2), metadata=METADATA)
    return text_of(await rest_of(call))


async def test_those_there_are_at_the_start_are_loaded_before_it_is_ready(
    tmp_path: Path, control: FakeControl
) -> None:
    good, missing = lora(tmp_path / "good"), tmp_path / "missing"
    wanted = model(("org/good", good), ("bad", missing))
    async with ready_agent(tmp_path / "home", control, model=wanted) as (process, stub):
        first = control.last("READY")
        assert first is not None
        found = {one.name: (one.path, one.loaded) for one in first.adapters}
        assert found == {"org/good": (str(good), True), "bad": (str(missing), False)}
        (message,) = [one.message for one in first.adapters if not one.loaded]
        assert message == f"{missing} has no adapter_config.json with a rank (No such file or directory)"
        assert await says(stub, "smollm2") == "tell:0 me:1"
        assert await says(stub, "org/good") == "TELL:0 ME:1"
        code, words = await failed(stub.StreamChat(chat(model="bad"), metadata=METADATA))
        assert code == "NOT_FOUND"
        assert words.endswith("this replica serves chatty, org/good, smollm2")
        # What is missing is looked for again and again.
        lora(missing)
        await until(lambda: control.standings()["bad"][1], "it is loaded")
        assert await says(stub, "bad") == "TELL:0 ME:1"
        assert process.log.count("No such file or directory") == 1


async def test_what_is_wanted_is_followed_while_it_runs(tmp_path: Path, control: FakeControl) -> None:
    a, b, c = (lora(tmp_path / name) for name in "abc")
    async with ready_agent(tmp_path / "home", control, model=model(("x", a))) as (process, stub):
        pid = process.engine_pid
        control.adapters = {"x": a, "y": b}
        await until(lambda: control.standings().get("y") == (str(b), True, ""), "y is loaded")
        asked = chat("go", model="y", max_tokens=250, ignore_eos=True)
        long = stub.StreamChat(asked, metadata=METADATA)
        begun: list[Any] = [await long.read()]
        # Other weights under a name: at once it is not said to be loaded any more.
        control.adapters = {"x": c, "y": b}
        on_its_way = (str(c), False)
        await until(
            lambda: any(
                (one.path, one.loaded) == on_its_way for told in control.reports for one in told.adapters
            ),
            "x is on its way",
        )
        await until(lambda: control.standings()["x"] == (str(c), True, ""), "x is loaded from c")
        assert (await process.engine.get("/v1/models", 5))[1].count(str(c).encode()) == 1
        control.adapters = {"x": c}
        await until(lambda: "'y' is unloaded" in process.log, "y is unloaded")
        assert (await failed(stub.StreamChat(chat(model="y"), metadata=METADATA)))[0] == "NOT_FOUND"
        assert len(text_of(await rest_of(long, begun)).split()) == 250
        control.adapters = {}
        await until(lambda: process.log.count("'x' is unloaded") == 2, "x is unloaded")
        assert control.standings() == {}
        assert process.engine_pid == pid


async def test_a_change_of_mind_unloads_nothing(tmp_path: Path, control: FakeControl) -> None:
    a = lora(tmp_path / "a")
    async with ready_agent(tmp_path / "home", control, model=model(("x", a))) as (_, stub):
        control.adapters = {}
        await until(lambda: control.standings() == {}, "it heard")
        control.adapters = {"x": a}
        await until(lambda: control.standings() == {"x": (str(a), True, "")}, "it heard again")
        assert await says(stub, "x") == "TELL:0 ME:1"


async def test_a_rank_without_room_is_told_with_both_numbers(tmp_path: Path, control: FakeControl) -> None:
    wide = lora(tmp_path / "wide", 64)
    async with ready_agent(tmp_path / "home", control, model=model()) as (_, stub):
        control.adapters = {"wide": wide}
        sentence = "its rank is 64, and the engine has room for 16 (spec.model.adapter_room.max_rank)"
        await until(lambda: control.standings().get("wide") == (str(wide), False, sentence), sentence)
        assert await says(stub, "smollm2") == "tell:0 me:1"


async def test_the_engines_own_words_are_told(tmp_path: Path, control: FakeControl) -> None:
    """Where the manifest has its own argument for the room, only the engine knows."""
    wide = lora(tmp_path / "wide", 64)
    engine = standin("--max-lora-rank", "32")
    async with ready_agent(tmp_path / "home", control, model=model(("wide", wide)), engine=engine):
        said = "LoRA rank 64 is greater than max_lora_rank 32."
        await until(lambda: control.standings().get("wide") == (str(wide), False, said), said)


async def test_an_engine_without_room_says_so(tmp_path: Path, control: FakeControl) -> None:
    control.adapters = {"x": lora(tmp_path / "x")}
    async with ready_agent(tmp_path / "home", control) as (_, stub):
        said = "the engine was started without room for adapters that come later"
        await until(lambda: control.standings().get("x", ("", True, ""))[2] == said, said)
        assert await says(stub, "smollm2") == "tell:0 me:1"


async def test_fixed_adapters_are_the_engines_from_its_start(tmp_path: Path, control: FakeControl) -> None:
    a = lora(tmp_path / "a")
    async with ready_agent(tmp_path / "home", control, model=model(("x", a), adapters_fixed=True)) as (
        _,
        stub,
    ):
        first = control.last("READY")
        assert first is not None
        assert [(one.name, one.loaded) for one in first.adapters] == [("x", True)]
        assert await says(stub, "x") == "TELL:0 ME:1"


async def test_a_control_plane_that_says_nothing_of_adapters_changes_nothing(
    tmp_path: Path, control: FakeControl
) -> None:
    a = lora(tmp_path / "a")
    async with ready_agent(tmp_path / "home", control, model=model(("x", a))) as (_, stub):
        told = len(control.reports)
        await until(lambda: len(control.reports) > told + 2, "some more reports")
        assert await says(stub, "x") == "TELL:0 ME:1"
