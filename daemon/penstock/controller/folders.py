"""An attempt's folder on the shared file system: what the agent in the job reads, and where its output goes.

The only way a secret reaches a job (DESIGN.md, section 7). The folder is made before the submission, and
making it again changes nothing, so that a crash in between costs nothing. Nothing here knows Slurm or the
database.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.controller.file_calls import FolderSilent
from penstock.core import adapters, parallel
from penstock.core.model import Deployment, Replica
from penstock.core.spec import Spec

SECRET_NAME = "secret"


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What every agent is told, the same for all."""

    control: tuple[str, ...]
    """Where agents reach the control plane, `host:port`, tried in order."""
    bind: str
    """The address that agents listen at."""
    advertise: str
    """The address that front doors reach an agent at; empty: the one that routes to the control plane."""


def agent_config(
    settings: AgentSettings, deployment: Deployment, replica: Replica, spec: Spec, token: str
) -> Mapping[str, Any]:
    """`agent.json`, as `penstock_runtime.config` reads it."""
    named = {"path": spec.model.path, "hub": spec.model.hub, "hub_revision": spec.model.hub_revision}
    model: dict[str, Any] = {key: value for key, value in named.items() if value}
    if spec.model.adapter_room is not None:
        room = dataclasses.asdict(spec.model.adapter_room)
        model["adapter_room"] = {key: value for key, value in room.items() if value is not None}
        model["adapters"] = [dataclasses.asdict(adapter) for adapter in spec.model.adapters]
        model["adapters_fixed"] = adapters.fixed(spec.engine)
    return {
        "attempt": token,
        "deployment": deployment.name,
        "replica": replica.name,
        "revision": replica.revision,
        "control": list(settings.control),
        "engine": {
            "name": spec.engine.name,
            "args": [*parallel.added(spec), *spec.engine.args],
            "env": dict(spec.engine.env),
            "task": spec.engine.task.value,
        },
        "environment": {
            kind: value for kind, value in dataclasses.asdict(spec.environment).items() if value is not None
        },
        "model": model,
        "model_names": list(dict.fromkeys((spec.model.served_name or deployment.name, deployment.name))),
        "startup_timeout_s": spec.probes.startup_timeout_s,
        "drain_timeout_s": spec.drain_timeout_s,
        "gpus": spec.resources.gpus,
        "nodes": spec.resources.nodes,
        "bind": settings.bind,
        "advertise": settings.advertise,
    }


@dataclass(frozen=True, slots=True)
class Folders:
    """All attempts' folders, under one folder that the compute nodes see under the same path."""

    root: Path

    def path(self, token: str) -> Path:
        """Where this attempt's folder is or will be."""
        return self.root / token

    def make_root(self) -> None:
        """Makes the folder of all of them, readable by its owner only. Idempotent. Raises OSError."""
        self.root.mkdir(mode=0o700, exist_ok=True)

    def prepare(self, token: str, config: Mapping[str, Any], secret: str) -> str:
        """Makes the folder with its two files, readable by their owner only. Idempotent. Raises OSError.

        Returns the secret that lies there: an earlier one stays, because an agent may have read it already.
        """
        self.make_root()
        folder = self.path(token)
        folder.mkdir(mode=0o700, exist_ok=True)
        _write_private(folder / "agent.json", json.dumps(config, indent=1))
        with contextlib.suppress(FileNotFoundError):
            if there := (folder / SECRET_NAME).read_text(errors="replace").strip():
                return there
        _write_private(folder / SECRET_NAME, secret + "\n")
        return secret

    def obstacle(self, error: OSError) -> str:
        """Why no folder can be made, and what a human can do about it."""
        if isinstance(error, FolderSilent):
            return str(error)
        remedy = {
            errno.ENOSPC: "make room there",
            errno.EDQUOT: "make room there, or raise the quota",
            errno.EACCES: f"let the user with the id {os.geteuid()} write there",
            errno.EPERM: f"let the user with the id {os.geteuid()} write there",
            errno.EROFS: "mount it so that it can be written to",
        }.get(error.errno or 0, "see what is in the way")
        return f"its folder in {self.root} cannot be made: {error.strerror or error}; {remedy}"

    def older_than(self, timestamp: float) -> Iterator[str | None]:
        """The attempts whose folders were last changed before this time (seconds of the epoch). Each step looks at one
        entry, None where it is not such a folder, so that whoever walks can stop. Raises OSError.

        What else lies there is not ours, whoever put it there: a site may have named a folder that it uses for more.
        """
        with os.scandir(self.root) as entries:
            for entry in entries:
                old = (
                    entry.is_dir(follow_symlinks=False)
                    and Path(entry.path, SECRET_NAME).is_file()
                    and entry.stat(follow_symlinks=False).st_mtime < timestamp
                )
                yield entry.name if old else None

    def forget(self, token: str) -> None:
        """Removes the folder with the job's output, if it is there."""
        shutil.rmtree(self.path(token), ignore_errors=True)


def _write_private(path: Path, text: str) -> None:
    """Whole or not at all, and never readable by others, not even for a moment.

    It is not forced to the disk: should this machine lose it with its power, the attempt fails and says so, and another
    one is made. Network file systems write when the file is closed.
    """
    draft = f"{path}.{os.getpid()}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text.encode())
    os.replace(draft, path)
