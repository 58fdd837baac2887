"""Puts the migrations into the wheel, as penstock/_db, so that `penstock db upgrade` works without a checkout.

An editable install gets none: it reads db/ and alembic.ini where they are, and a copy could only be stale.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Migrations(BuildHookInterface[Any]):
    """hatchling's build hook of the wheel target."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the folder; `version` is `standard` or `editable`."""
        if version == "standard":
            build_data["force_include"]["db/migrations"] = "penstock/_db/migrations"
