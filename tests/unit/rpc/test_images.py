"""A container image that is not there: refused where this host sees the folder, left to the agent where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.core.spec import Apptainer, Environment, Model, Pyxis, Spec
from penstock.rpc import images


async def said(environment: Environment) -> list[str]:
    return [str(found) for found in await images.check(Spec(Model(path="/a"), environment=environment))]


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
        Environment(apptainer=Apptainer("/nowhere/at-all/vllm.sif")),
        Environment(pyxis=Pyxis("nvcr.io#nvidia/vllm:25.09-py3")),
    ],
)
async def test_what_this_host_cannot_tell(environment: Environment) -> None:
    assert await said(environment) == []


async def test_an_image_and_a_sandbox_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "vllm.sif").touch()
    (tmp_path / "sandbox").mkdir()
    for name in ("vllm.sif", "sandbox", "sandbox/"):
        assert await said(Environment(apptainer=Apptainer(f"{tmp_path}/{name}"))) == []
