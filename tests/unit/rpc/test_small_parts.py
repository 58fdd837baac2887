"""Pages, masks, differences, watches and the output of jobs: the small parts that the servicers are made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.jobs import Cluster
from penstock.rpc import masks, pages
from penstock.rpc.cluster_view import ClusterView
from penstock.rpc.logs import CHUNK_BYTES, stream_output
from penstock.rpc.refusals import Refused
from penstock.rpc.watch import Change, Changes
from penstock.testing.slurm import FakeSlurm
from penstock.v1 import deployment_pb2 as pb
from penstock.v1 import metadata_pb2, spec_pb2


class TestPages:
    def test_a_token_leads_on(self) -> None:
        request = pb.ListDeploymentsRequest(filter="a=b", page_size=5)
        token = pages.token(request, "name", 7)
        request.page_token = token
        request.page_size = 9
        assert pages.position(request, token, (str, int)) == ("name", 7)

    def test_no_token_is_the_first_page(self) -> None:
        assert pages.position(pb.ListDeploymentsRequest(), "", (str,)) is None

    @pytest.mark.parametrize("token", ["x", "!!!!", "bnVsbA==", "WzFd", "W1tb" * 10_000])
    def test_what_is_no_token_is_refused(self, token: str) -> None:
        with pytest.raises(Refused, match="page_token: must be from the page before"):
            pages.position(pb.ListDeploymentsRequest(), token, (str,))

    def test_a_token_of_another_request_is_refused(self) -> None:
        token = pages.token(pb.ListDeploymentsRequest(filter="a"), "x")
        with pytest.raises(Refused):
            pages.position(pb.ListDeploymentsRequest(filter="b"), token, (str,))

    @pytest.mark.parametrize("position", ["a\0", "a\ud800", 2**63, -1])
    def test_a_made_up_position_is_refused(self, position: str | int) -> None:
        request = pb.ListDeploymentsRequest()
        with pytest.raises(Refused):
            pages.position(request, pages.token(request, position), (type(position),))


class TestMasks:
    def deployment(self) -> pb.Deployment:
        return pb.Deployment(
            metadata=metadata_pb2.Metadata(name="a", labels={"x": "1"}),
            spec=spec_pb2.DeploymentSpec(
                model=spec_pb2.Model(path="/a"), replicas=3, resources=spec_pb2.Resources(gpus=2, memory="8G")
            ),
        )

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("spec.replicsa", 'update_mask: there is no field "spec.replicsa"'),
            ("spec.engine.args.x", 'update_mask: there is no field "spec.engine.args.x"'),
            ("status", 'update_mask: "status" cannot be written; begin with one of spec, metadata.labels'),
            (
                "metadata.name",
                'update_mask: "metadata.name" cannot be written; begin with one of spec, metadata.labels',
            ),
        ],
    )
    def test_a_path_that_is_not_to_be_written(self, path: str, message: str) -> None:
        with pytest.raises(Refused) as caught:
            masks.check_mask([path], pb.Deployment.DESCRIPTOR, ("spec", "metadata.labels"))
        assert caught.value.message == message

    def test_merging_sets_replaces_and_clears(self) -> None:
        into = self.deployment()
        source = pb.Deployment(
            metadata=metadata_pb2.Metadata(labels={"y": "2"}),
            spec=spec_pb2.DeploymentSpec(
                model=spec_pb2.Model(hub="a/b"), resources=spec_pb2.Resources(gpus=1, memory="9G")
            ),
        )
        masks.merge(
            into, source, ["metadata.labels", "spec.replicas", "spec.resources.gpus", "spec.model.hub"]
        )
        assert dict(into.metadata.labels) == {"y": "2"}
        assert not into.spec.HasField("replicas")
        assert (into.spec.resources.gpus, into.spec.resources.memory) == (1, "8G")
        assert (into.spec.model.hub, into.spec.model.path) == ("a/b", "")

    def test_a_whole_message_is_replaced(self) -> None:
        into = self.deployment()
        masks.merge(
            into,
            pb.Deployment(spec=spec_pb2.DeploymentSpec(resources=spec_pb2.Resources(cpus=4))),
            ["spec.resources"],
        )
        assert into.spec.resources == spec_pb2.Resources(cpus=4)

    def test_differences_are_told_field_by_field(self) -> None:
        after = self.deployment()
        after.spec.replicas = 0
        after.spec.resources.ClearField("memory")
        after.spec.engine.env["A"] = "1"
        after.spec.engine.args.append("--x")
        after.spec.placements.add(exclusive=True, options={"nice": "1"})
        after.spec.rollout.strategy = spec_pb2.ROLLOUT_STRATEGY_RECREATE
        assert masks.differences(self.deployment().spec, after.spec, "spec") == [
            ("spec.engine.args", "", '["--x"]'),
            ('spec.engine.env["A"]', "", "1"),
            ("spec.replicas", "3", "0"),
            ("spec.resources.memory", "8G", ""),
            ("spec.placements[0].exclusive", "", "true"),
            ('spec.placements[0].options["nice"]', "", "1"),
            ("spec.rollout.strategy", "", "ROLLOUT_STRATEGY_RECREATE"),
        ]


class TestWatch:
    def test_what_changed_since_the_last_reading(self) -> None:
        changes: Changes[metadata_pb2.Metadata] = Changes(
            10, gone=lambda name: metadata_pb2.Metadata(name=name)
        )
        one, two = metadata_pb2.Metadata(name="1"), metadata_pb2.Metadata(name="2")
        assert list(changes.since({"1": one})) == [(Change.ADDED, one), (Change.BOOKMARK, None)]
        assert list(changes.since({"1": one})) == []
        assert list(changes.since({"1": one, "2": two})) == [(Change.ADDED, two)]
        changed = metadata_pb2.Metadata(name="1", generation=2)
        assert list(changes.since({"1": changed})) == [(Change.DELETED, two), (Change.MODIFIED, changed)]

    def test_an_empty_first_reading_has_a_bookmark_too(self) -> None:
        changes: Changes[metadata_pb2.Metadata] = Changes(
            10, gone=lambda name: metadata_pb2.Metadata(name=name)
        )
        assert list(changes.since({})) == [(Change.BOOKMARK, None)]

    def test_a_watch_is_bounded(self) -> None:
        changes: Changes[metadata_pb2.Metadata] = Changes(
            1, gone=lambda name: metadata_pb2.Metadata(name=name)
        )
        with pytest.raises(Refused, match="at most 1"):
            list(changes.since({"1": metadata_pb2.Metadata(), "2": metadata_pb2.Metadata()}))


async def _all(stream: AsyncIterator[bytes]) -> bytes:
    pieces = [piece async for piece in stream]
    assert all(0 < len(piece) <= CHUNK_BYTES for piece in pieces)
    return b"".join(pieces)


class TestLogs:
    async def test_bytes_come_as_they_are(self, tmp_path: Path) -> None:
        content = bytes(range(256)) * 2000
        (tmp_path / "o").write_bytes(content)
        assert await _all(stream_output(tmp_path / "o", None, None)) == content

    async def test_no_file_is_no_content(self, tmp_path: Path) -> None:
        assert await _all(stream_output(tmp_path / "o", None, None)) == b""
        assert await _all(stream_output(tmp_path / "o", 5, None)) == b""

    @given(
        st.lists(st.binary(max_size=30).map(lambda line: line.translate(None, b"\r\n")), max_size=30),
        st.booleans(),
        st.integers(0, 40),
        st.sampled_from([1, 7, 1000]),
    )
    def test_the_last_lines(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        lines: list[bytes],
        is_closed: bool,
        wanted: int,
        repeat: int,
    ) -> None:
        lines = [line * repeat for line in lines]
        content = b"\n".join(lines) + (b"\n" if is_closed and lines else b"")
        path = tmp_path_factory.mktemp("logs") / "o"
        path.write_bytes(content)
        found = asyncio.run(_all(stream_output(path, wanted, None)))
        assert found == (b"".join(content.splitlines(keepends=True)[-wanted:]) if wanted else b"")

    async def test_following_until_the_end(self, tmp_path: Path) -> None:
        path = tmp_path / "o"
        ended = asyncio.Event()

        async def is_over() -> bool:
            return ended.is_set()

        stream = stream_output(path, None, is_over)
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        assert not first.done()
        path.write_bytes(b"one\n")
        assert await asyncio.wait_for(first, 60) == b"one\n"
        with path.open("ab") as file:
            file.write(b"two")
        ended.set()
        assert await asyncio.wait_for(_all(stream), 60) == b"two"


def _now() -> datetime:
    return datetime.now(UTC)


class _Broken(FakeSlurm):
    """A backend with a bug."""

    async def cluster(self) -> Cluster:
        raise KeyError("ClusterName")


async def test_a_bug_below_the_view_of_the_cluster_ends_nobody(caplog: pytest.LogCaptureFixture) -> None:
    view = ClusterView(_Broken(clock=_now), _now)
    assert await view.read(0) is None
    assert view.error == "Slurm's description of the cluster could not be read: KeyError('ClusterName')"
