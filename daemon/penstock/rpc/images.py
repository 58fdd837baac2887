"""Whether a container image is where the spec says, as far as the daemon's host can see.

The path is one of the compute nodes'. Where this host has the folder that the image should lie in, it is taken for the
same one, and an image that is not in it is refused before a job waits hours for it. Where it cannot look there, it
warns: the agent looks again on the node, and fails the attempt with a sentence.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from penstock.core.spec import Spec
from penstock.rpc.refusals import Violation

LOOK_TIMEOUT_S = 2.0
"""A shared file system that hangs must not hang applying; what was not seen is not refused."""


async def check(spec: Spec) -> tuple[Sequence[Violation], Sequence[str]]:
    """The violation for an image that is not there, and the warning where this host cannot tell."""
    image = spec.environment.image
    if image is None:
        return (), ()
    kind = "apptainer" if spec.environment.apptainer is not None else "pyxis"
    field, folder = f"spec.environment.{kind}.image", os.path.dirname(image.rstrip("/"))
    try:
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            missing = await asyncio.to_thread(_missing, image)
    except (OSError, TimeoutError) as error:
        why = f"this host cannot look into {folder} ({error.strerror or 'it hangs'})"
        return (), (
            f"{field}: whether {image} is there is not known: {why}; a job on a node without it fails",
        )
    accepted = (
        "a .sif file or a sandbox folder" if kind == "apptainer" else "a .sqsh file or a registry's image"
    )
    message = f"there is no {image}, though the folder {folder} is there; accepted is {accepted}"
    return (Violation(field, message),) if missing else (), ()


def _missing(image: str) -> bool:
    """Raises OSError where one may not look."""
    with os.scandir(os.path.dirname(image.rstrip("/"))):
        pass
    try:
        os.stat(image)
    except (FileNotFoundError, NotADirectoryError):
        return True
    return False
