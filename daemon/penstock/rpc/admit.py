"""Whether a wish may be committed: the one way for ApplyDeployment and its dry run, so that both say the same.

In order, each kind of fault by itself: the update mask, the field rules and what this release does not do
(`validate`), what no cluster could run (`spread`, `images`), what this cluster could never run (`limits`). A cluster
that cannot be asked refuses nothing; the client is warned.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.contract import quoted
from penstock.rpc import images, spread, validate
from penstock.rpc.admitted import Admitted, find, settled
from penstock.rpc.cluster_view import ClusterView
from penstock.rpc.convert.deployment import deployment_out
from penstock.rpc.convert.spec import spec_in
from penstock.rpc.masks import check_mask, merge
from penstock.rpc.refusals import Violation, not_found, refuse
from penstock.store.database import Database
from penstock.store.errors import BeingDeleted
from penstock.v1 import deployment_pb2, metadata_pb2

WRITABLE = ("spec", "metadata.labels")
"""What an update mask may name."""


class Admission:
    """Looks at wishes. Writes nothing."""

    def __init__(self, db: Database, view: ClusterView) -> None:
        self._db = db
        self._view = view

    async def admit(self, wish: deployment_pb2.Deployment, mask: Sequence[str]) -> Admitted:
        """The wish, complete. Raises Refused, and BeingDeleted for a deployment on its way out."""
        validate.check_name(wish.metadata)
        version = version_in(wish.metadata.resource_version, "metadata.resource_version")
        async with self._db.transaction() as conn:
            old = await find(conn, wish.metadata.name)
        if old is not None and old.deleted_at is not None:
            raise BeingDeleted(old.name)
        # What only the server writes is left behind, so that what was read can be applied again.
        whole = deployment_pb2.Deployment(
            metadata=metadata_pb2.Metadata(name=wish.metadata.name, labels=wish.metadata.labels)
        )
        if old is None:
            if mask or version is not None:
                raise not_found("deployment", wish.metadata.name)
            whole.spec.CopyFrom(wish.spec)
        elif mask:
            check_mask(mask, wish.DESCRIPTOR, WRITABLE)
            stored = deployment_out(old)
            whole.metadata.labels.clear()
            whole.metadata.labels.update(stored.metadata.labels)
            whole.spec.CopyFrom(stored.spec)
            merge(whole, wish, mask)
        else:
            whole.spec.CopyFrom(wish.spec)
        validate.check_deployment(whole)
        spec = settled(old, spec_in(whole.spec))
        missing, unseen = await images.check(spec)
        refuse([*spread.check(spec), *missing])
        warnings = [*validate.warnings(whole), *spread.warnings(spec), *unseen, *await self._view.check(spec)]
        return Admitted(whole.metadata.name, dict(whole.metadata.labels), spec, version, old, tuple(warnings))


def version_in(text: str, field: str) -> int | None:
    """A resource version that a client gives back; None: any. Raises Refused for what never was one."""
    if text and not (text.isascii() and text.isdigit() and len(text) <= 18):
        message = f"must be a resource version as the server gave it, or be left out, not {quoted(text)}"
        refuse([Violation(field, message)])
    return int(text) if text else None
