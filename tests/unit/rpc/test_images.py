"""A container image that is not there: refused where this host sees the folder, left to the agent where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.core.spec import Apptainer, Environment, Model, Pyxis, Spec
from penstock.rpc import images


async def said(environment: Environment) -> list[str]:
    missing, unseen = await images.check(Spec(Model(path="/a"), environment=environment))
    return [str(found) for found in missing] + [f"warning: {text}" for text in unseen]


async def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    image = str(tmp_path / "vllm.sif")
    assert await said(Environment(apptainer=Apptainer(image))) == [
        f"spec.environment.apptainer.image: there is no {image}, though the folder {tmp_path} is there;"
        " accepted is a .sif file or a sandbox folder"
    ]
    assert await said(Environment(pyxis=Pyxis(image))) == [
        f"spec.environment.pyxis.image: there is no {image}, though the folder {tmp_path} is there;"
        " accepted is a .sqsh file or a registry's image"
    ]


@pytest.mark.parametrize(
    "environment",
    [
        Environment(),
        Environment(venv="/nowhere/venv"),
        Environment(pyxis=Pyxis("nvcr.io#nvidia/vllm:25.09-py3")),
    ],
)
async def test_what_is_no_file_is_not_looked_for(environment: Environment) -> None:
    assert await said(environment) == []


async def test_what_this_host_cannot_tell() -> None:
    """It may well be there on the nodes; who has mistyped it should not have to wait for a job's end to hear of it."""
    assert await said(Environment(apptainer=Apptainer("/nowhere/at-all/vllm.sif"))) == [
        "warning: spec.environment.apptainer.image: whether /nowhere/at-all/vllm.sif is there is not known: this host"
        " cannot look into /nowhere/at-all (No such file or directory); a job on a node without it fails"
    ]


async def test_an_image_and_a_sandbox_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "vllm.sif").touch()
    (tmp_path / "sandbox").mkdir()
    for name in ("vllm.sif", "sandbox", "sandbox/"):
        assert await said(Environment(apptainer=Apptainer(f"{tmp_path}/{name}"))) == []
