"""A wish that passed every check, in core's words: what stands between the looking and the writing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sqlalchemy.ext.asyncio import AsyncConnection

from penstock.core.changes import Change, change_of, needs_revision, with_room_kept
from penstock.core.model import Deployment
from penstock.core.spec import Spec
from penstock.store.errors import NotFound
from penstock.store.queries import deployments


@dataclass(frozen=True, slots=True)
class Admitted:
    """A wish that may be committed over `old`."""

    name: str
    labels: Mapping[str, str]
    spec: Spec
    version: int | None
    """The resource version that the client wants to write over; None: any."""
    old: Deployment | None
    """What there was when the wish was looked at."""
    warnings: tuple[str, ...]

    @property
    def makes_revision(self) -> bool:
        """Whether it would be another revision than `old`."""
        return self.old is not None and needs_revision(self.old.spec, self.spec)

    def over(self, old: Deployment, specs: Mapping[int, Spec]) -> Change:
        """What committing it over `old` makes of the deployment. `specs`: as in `core.changes.change_of`."""
        change = change_of(old, self.spec, specs, new_revision=self.makes_revision)
        return replace(change, after=replace(change.after, labels=self.labels))


def settled(old: Deployment | None, spec: Spec) -> Spec:
    """The wish, with what running replicas have and it does not ask to be taken from them."""
    return with_room_kept(old.spec, spec) if old is not None else spec


async def find(conn: AsyncConnection, name: str) -> Deployment | None:
    """The deployment of this name, if there is one."""
    try:
        return await deployments.get(conn, name)
    except NotFound:
        return None
