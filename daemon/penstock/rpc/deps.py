"""What the servicers need of the rest of Penstock, put together by `penstock.app`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from penstock.core.model import Deployment
from penstock.slurm.port import Slurm
from penstock.store.database import Database


@dataclass(frozen=True, slots=True)
class Deps:
    """Collaborators of the control API; all of them outlive its server."""

    db: Database
    slurm: Slurm
    """Asked for `cluster()` and, for dry runs, `list_jobs()`; never told to change anything."""
    installation: str
    """Which Penstock this is."""
    attempts_folder: Path
    """Holds a folder for each attempt, named by its token, with the job's output in `job.out`."""
    version: str
    clock: Callable[[], datetime]
    """Now, aware; sentences speak in its time zone."""
    render_script: Callable[[Deployment], str]
    """The batch script that a new replica of this deployment would be submitted with."""
    on_routing_change: Callable[[], None]
    """Called after a commit that may change which replicas take requests. Must not block."""
    routing_applied: Callable[[float], Awaitable[bool]]
    """Waits until the front doors route by what is committed now, at most this many seconds; whether they do.
    """
    front_door_trouble: Callable[[], str]
    """Why clients may not get through this gateway's front door, in one sentence; empty: they do."""
    held_requests: Callable[[], Mapping[str, int]] = dict
    """How many requests wait at this gateway for a replica, by deployment; those without any are left out."""
    report_interval_s: int = 5
    """How often agents report when nothing changes."""
