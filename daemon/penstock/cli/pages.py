"""Whole lists, read page by page: a list is as long as it is, and a message is bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from penstock.cli.connection import TIMEOUT_S, Server
from penstock.v1 import deployment_pb2, replica_pb2, revision_pb2

PAGE = 1000
"""As many as the server gives at once."""


def deployments(server: Server, selector: str = "") -> AsyncIterator[deployment_pb2.Deployment]:
    """All deployments by name."""
    request = deployment_pb2.ListDeploymentsRequest(page_size=PAGE, filter=selector)
    return _each(server.deployments.ListDeployments, request, "deployments")


def replicas(server: Server, deployment: str = "") -> AsyncIterator[replica_pb2.Replica]:
    """All replicas, of all deployments or of one."""
    request = replica_pb2.ListReplicasRequest(page_size=PAGE, deployment=deployment)
    return _each(server.replicas.ListReplicas, request, "replicas")


def revisions(server: Server, deployment: str) -> AsyncIterator[revision_pb2.Revision]:
    """All revisions of a deployment, newest first."""
    request = deployment_pb2.ListRevisionsRequest(page_size=PAGE, name=deployment)
    return _each(server.deployments.ListRevisions, request, "revisions")


async def _each(ask: Callable[..., Awaitable[Any]], request: Any, field: str) -> AsyncIterator[Any]:
    """What this field of each page lists, page after page."""
    while True:
        page = await ask(request, timeout=TIMEOUT_S)
        for item in getattr(page, field):
            yield item
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
