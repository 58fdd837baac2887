"""schemathesis on both OpenAPI documents, and clients that watch, against a whole Penstock on real servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from deploy.cluster.cluster import Cluster
from tests.fuzz import rest, watches
from tests.fuzz.site import Site, judged, seconds, seed, site

pytestmark = pytest.mark.timeout(seconds() * 2 + 600)

SHARE_OF_WATCHES = 1 / 6
"""Of the time that the others have: there are three calls of this kind."""


@pytest.fixture(scope="module")
def whole(slurm_cluster: Cluster) -> Iterator[Site]:
    with site(slurm_cluster) as made:
        yield made


def test_the_openai_api(whole: Site) -> None:
    # 501 and 503 are promised, for what an engine does not do and for replicas that are not there.
    _play(whole, "/v1/openapi.json", promised=(501, 503), at_least=21)


def test_answers_without_an_end(whole: Site) -> None:
    chosen = seed()
    with judged(whole) as judgement:
        played, watched, faults = asyncio.run(watches.play(whole.url, seconds() * SHARE_OF_WATCHES, chosen))
    print(f"{played} cases, {watched} of them answered with lines, seed {chosen}; {judgement}")
    assert not faults, f"again with PENSTOCK_FUZZ_SEED={chosen}:\n" + "\n".join(faults[:20])
    assert watched


# It deletes deployments, and replicas with them: so it comes last.
def test_the_control_api(whole: Site) -> None:
    # A watch has no end, and a log is a line of JSON for each message, none where nothing was written yet.
    streams = ("/apis/v1/deployments:watch", "/apis/v1/decisions:watch", "/apis/v1/replicas/{name}:logs")
    _play(whole, "/apis/v1/openapi.json", promised=(501, 503), at_least=18, without=streams)


def _play(
    whole: Site, document: str, promised: tuple[int, ...], at_least: int, without: tuple[str, ...] = ()
) -> None:
    """`at_least`: operations that must have been played with."""
    chosen = seed()
    with judged(whole) as judgement:
        played = rest.play(whole.url, document, seconds(), chosen, promised, without)
    print(f"{document}: {played.cases} cases of {played.operations} operations, seed {chosen}; {judgement}")
    assert not played.failed, f"again with PENSTOCK_FUZZ_SEED={chosen}\n{played.output}"
    assert played.cases
    # Before its first case schemathesis makes an example of every operation, which takes it some ten seconds.
    if seconds() >= 60:
        assert played.cases > seconds()
        assert played.operations >= at_least
