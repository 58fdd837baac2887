"""Whole lists, read page by page: a list is as long as it is, and a message is bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator

from penstock.cli.connection import TIMEOUT_S, Server
from penstock.v1 import deployment_pb2, replica_pb2, revision_pb2

PAGE = 1000


async def deployments(server: Server, selector: str = "") -> AsyncIterator[deployment_pb2.Deployment]:
    """All deployments by name."""
    request = deployment_pb2.ListDeploymentsRequest(page_size=PAGE, filter=selector)
    while True:
        page = await server.deployments.ListDeployments(request, timeout=TIMEOUT_S)
        for item in page.deployments:
            yield item
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


async def replicas(server: Server, deployment: str = "") -> AsyncIterator[replica_pb2.Replica]:
    """All replicas, of all deployments or of one."""
    request = replica_pb2.ListReplicasRequest(page_size=PAGE, deployment=deployment)
    while True:
        page = await server.replicas.ListReplicas(request, timeout=TIMEOUT_S)
        for item in page.replicas:
            yield item
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


async def revisions(server: Server, deployment: str) -> AsyncIterator[revision_pb2.Revision]:
    """All revisions of a deployment, newest first."""
    request = deployment_pb2.ListRevisionsRequest(page_size=PAGE, name=deployment)
    while True:
        page = await server.deployments.ListRevisions(request, timeout=TIMEOUT_S)
        for item in page.revisions:
            yield item
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
