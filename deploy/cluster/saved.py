"""What a cluster keeps about itself: its settings, its ports, and the daemons that were started.

One JSON file in the cluster's folder, replaced whole; a lock file beside it keeps two callers apart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.cluster.processes import Started
from deploy.cluster.settings import Settings


@dataclass(slots=True)
class Saved:
    """The file's contents. Without settings there is no cluster in the folder."""

    settings: Settings | None = None
    ports: list[int] = field(default_factory=list)
    """slurmctld's, then one for each node, then slurmdbd's if there is one."""
    daemons: dict[str, Started] = field(default_factory=dict)

    @property
    def has_backup(self) -> bool:
        return self.settings is not None and self.settings.backup


def load(root: Path) -> Saved:
    """What is kept in the folder `root`; empty when there is nothing."""
    try:
        kept: dict[str, Any] = json.loads((root / "cluster.json").read_text())
    except FileNotFoundError:
        return Saved()
    return Saved(
        settings=Settings(**kept["settings"]),
        ports=kept["ports"],
        daemons={name: Started(**started) for name, started in kept["daemons"].items()},
    )


def save(root: Path, saved: Saved) -> None:
    temporary = root / "cluster.json.new"
    temporary.write_text(json.dumps(dataclasses.asdict(saved), indent=1))
    temporary.replace(root / "cluster.json")


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Alone with the folder `root`, which is made if need be."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
