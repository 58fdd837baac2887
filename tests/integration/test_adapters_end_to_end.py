"""Adapters as users have them: real Slurm, PostgreSQL and Envoy, each its own process; a stand-in engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from penstock.v1 import inference_pb2 as inference
from penstock.v1 import inference_pb2_grpc
from tests.penstocks import Penstock, standin, wait_until

pytestmark = pytest.mark.xdist_group("end-to-end")


def lora(folder: Path, rank: int = 8) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    return folder


def manifest(adapters: dict[str, Path], *, name: str = "base", replicas: int = 2) -> str:
    listed = [{"name": name, "path": str(path)} for name, path in adapters.items()]
    model = f"  model: {{path: /dev/null, adapter_room: {{}}, adapters: {json.dumps(listed)}}}"
    return standin(name, replicas=replicas, more="  admission: {max_hold_s: 20}").replace(
        "  model: {path: /dev/null}", model
    )


def asked(penstock: Penstock, model: str) -> httpx.Response:
    body = {"model": model, "prompt": "tell me", "max_tokens": 2, "ignore_eos": True}
    return httpx.post(f"http://{penstock.server}/v1/completions", json=body, timeout=40)


def says(penstock: Penstock, model: str) -> tuple[str, str]:
    """What is answered over gRPC and over REST; the stand-in's adapters shout. A status where it fails."""
    with penstock.channel() as channel:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        sampling = inference.SamplingParameters(max_tokens=2, ignore_eos=True)
        request = inference.GenerateRequest(model=model, prompt="tell me", sampling=sampling)
        try:
            by_grpc = stub.Generate(request, timeout=40).choices[0].text
        except grpc.RpcError as error:
            by_grpc = f"{error.code().name}: {error.details()}"
    answer = asked(penstock, model)
    by_rest = answer.json()
    if answer.status_code != 200:
        return by_grpc, f"{answer.status_code}: {by_rest['error']['message']}"
    return by_grpc, by_rest["choices"][0]["text"]


def models(penstock: Penstock) -> dict[str, tuple[int, str]]:
    """By name: ready replicas, and what it is an adapter of."""
    with penstock.channel() as channel:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        found = stub.ListModels(inference.ListModelsRequest(), timeout=10).models
    return {one.name: (one.ready_replicas, one.parent) for one in found}


def standings(penstock: Penstock) -> list[list[tuple[str, bool]]]:
    """For each replica, its adapters and whether they are loaded."""
    return [
        [(one["name"], one.get("loaded", False)) for one in found.get("adapters", ())]
        for found in penstock.get("replicas", "base")["items"]
    ]


SHOUTS, SPEAKS = ("TELL:0 ME:1",) * 2, ("tell:0 me:1",) * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def base(penstock: Penstock, folder: Path) -> Iterator[Path]:
    """Two ready replicas with one adapter, loaded before they were ready."""
    penstock.apply(manifest({"org/first": lora(folder / "first")}))
    penstock.wait_ready("base", 2)
    yield folder / "first"
    penstock.cli("delete", "base", "--wait")


def test_an_adapter_is_a_model_of_its_own_from_the_start(penstock: Penstock, base: Path) -> None:
    wait_until(lambda: says(penstock, "base") == SPEAKS, 60, "the model answers")
    assert says(penstock, "org/first") == SHOUTS
    assert models(penstock) == {"base": (2, ""), "org/first": (2, "base")}
    cards = httpx.get(f"http://{penstock.server}/v1/models", timeout=10).json()["data"]
    assert {card["id"]: card.get("parent") for card in cards} == {"base": None, "org/first": "base"}


def test_one_is_added_moved_and_removed_without_a_restart(penstock: Penstock, base: Path) -> None:
    jobs = penstock.cluster.run("squeue", "-h", "-o", "%i").split()
    late = lora(base.parent / "late")
    penstock.apply(manifest({"org/first": base, "late": late}))
    # Nobody has it yet: both requests wait until somebody has.
    assert says(penstock, "late") == SHOUTS
    loaded = [[("org/first", True), ("late", True)]] * 2
    wait_until(lambda: standings(penstock) == loaded, 60, "both have both")
    described = penstock.cli("describe", "base").stdout
    assert "2/2" in described
    assert str(late) in described
    wait_until(
        lambda: "2 adapters on 2 ready replicas" in penstock.cli("describe", "base").stdout, 60, "it says so"
    )
    moved = lora(base.parent / "moved")
    penstock.apply(manifest({"org/first": base, "late": moved}))
    assert says(penstock, "late") == SHOUTS
    wait_until(lambda: str(moved) in penstock.cli("describe", "base").stdout, 60, "it is shown")
    penstock.apply(manifest({"org/first": base}))
    wait_until(lambda: says(penstock, "late")[0].startswith("NOT_FOUND"), 60, "it is no model any more")
    assert asked(penstock, "late").status_code == 404
    assert says(penstock, "org/first") == SHOUTS
    wait_until(lambda: standings(penstock) == [[("org/first", True)]] * 2, 60, "it is unloaded")
    assert penstock.cluster.run("squeue", "-h", "-o", "%i").split() == jobs
    assert penstock.get("deployments", "base")["status"]["current_revision"] == "1"


def test_a_path_that_is_not_there_is_told_and_harms_nobody(penstock: Penstock, base: Path) -> None:
    missing = base.parent / "missing"
    penstock.apply(manifest({"org/first": base, "missing": missing}))
    why = f"{missing} has no adapter_config.json with a rank (No such file or directory)"
    wait_until(lambda: why in penstock.cli("why", "base").stdout, 60, "it says so")
    events = penstock.cli("events", "base").stdout
    assert "AdapterFailed" in events
    by_grpc, by_rest = says(penstock, "missing")
    assert by_grpc.startswith("UNAVAILABLE: no ready replica of deployment 'base' has adapter 'missing'")
    assert why in by_grpc
    assert by_rest.startswith("503: no ready replica of deployment 'base' has adapter 'missing'")
    assert (says(penstock, "base"), says(penstock, "org/first")) == (SPEAKS, SHOUTS)
    assert models(penstock)["missing"] == (0, "base")
    # Once it is there it is found by itself.
    lora(missing)
    wait_until(lambda: models(penstock)["missing"] == (2, "base"), 90, "it is loaded")
    assert says(penstock, "missing") == SHOUTS
    penstock.apply(manifest({"org/first": base}))


def test_a_replica_that_comes_later_has_them_when_it_is_ready(penstock: Penstock, base: Path) -> None:
    penstock.cli("scale", "base", "--replicas", "3")
    penstock.wait_ready("base", 3)
    assert models(penstock)["org/first"] == (3, "base")
    penstock.cli("scale", "base", "--replicas", "2")
    penstock.wait_ready("base", 2)


@pytest.mark.parametrize(
    ("name", "adapters", "said"),
    [
        (
            "other",
            ["org/first"],
            "'org/first' is taken by deployment 'base'; choose another spec.model.adapters[0].name",
        ),
        (
            "other",
            ["base"],
            "'base' is taken by deployment 'base'; choose another spec.model.adapters[0].name",
        ),
        ("other", ["other"], "spec.model.adapters[0].name"),
        ("other", ["a b"], "spec.model.adapters[0].name: must be 1 to 128 characters"),
    ],
)
def test_names_that_are_taken_are_refused_with_the_field(
    penstock: Penstock, base: Path, name: str, adapters: list[str], said: str
) -> None:
    wished = manifest(dict.fromkeys(adapters, base), name=name)
    done = penstock.cli("apply", "-f", "-", stdin=wished, check=False)
    assert done.returncode != 0
    assert said in done.stderr
    assert "other" not in penstock.cli("get", "deployments").stdout
