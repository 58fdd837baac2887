"""The whole path, as users have it: real Slurm, PostgreSQL and Envoy, each its own process; a stand-in engine.

What one process does is tested elsewhere; here is what only all of them together can show: a declared model
streams, and goes on streaming whatever dies.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import psutil
import pytest
from google.rpc import error_details_pb2, status_pb2

from penstock.v1 import inference_pb2 as inference
from penstock.v1 import inference_pb2_grpc
from tests.patience import PATIENCE_S
from tests.penstocks import Penstock, standin, wait_until

pytestmark = pytest.mark.xdist_group("end-to-end")


class Stream(threading.Thread):
    """One StreamChat in the background: what it got, and the status it ended with."""

    def __init__(self, penstock: Penstock, model: str, tokens: int) -> None:
        super().__init__(daemon=True)
        self._channel = penstock.channel()
        self._model = model
        self._tokens = tokens
        self.text = ""
        self.waited: list[inference.WaitProgress] = []
        self.finish = inference.FINISH_REASON_UNSPECIFIED
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.start()

    def run(self) -> None:
        with self._channel:
            stub: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)
            try:
                for chunk in stub.StreamChat(request(self._model, self._tokens), wait_for_ready=True):
                    if chunk.HasField("waiting"):
                        self.waited.append(chunk.waiting)
                    for choice in chunk.choices:
                        self.text += choice.content
                        self.finish = choice.finish_reason or self.finish
                self.code = grpc.StatusCode.OK
            except grpc.RpcError as error:
                self.code, self.details = error.code(), error.details() or ""

    @property
    def numbers(self) -> list[int]:
        """The stand-in numbers its words: a gap or a repeat shows."""
        return [int(number) for number in re.findall(r":(\d+)", self.text)]

    def assert_whole(self, within_s: float = 60) -> None:
        self.join(within_s)
        assert not self.is_alive(), f"the stream has not ended; {len(self.numbers)} tokens so far"
        assert self.code is grpc.StatusCode.OK, self.details
        assert self.finish == inference.FINISH_REASON_LENGTH
        assert self.numbers == list(range(self._tokens))


def request(model: str, tokens: int) -> inference.StreamChatRequest:
    part = inference.ContentPart(text="one two three")
    message = inference.Message(role=inference.ROLE_USER, content=[part])
    sampling = inference.SamplingParameters(max_tokens=tokens, ignore_eos=True)
    return inference.StreamChatRequest(model=model, messages=[message], sampling=sampling)


def ended(stream: Stream) -> Stream:
    """A short one, once it is over."""
    stream.join(PATIENCE_S)
    assert stream.code is not None, "it has not ended"
    return stream


def ask(penstock: Penstock, model: str, tokens: int = 3) -> grpc.StatusCode | None:
    """One short request on a connection of its own."""
    return ended(Stream(penstock, model, tokens)).code


@pytest.fixture(scope="module")
def served(penstock: Penstock) -> Iterator[str]:
    """A deployment with two ready replicas, at 20 tokens a second."""
    manifest = standin("served", replicas=2, args=["--tokens-per-second", "20"])
    # Whatever the machine does, streams of a few seconds end within a drain.
    penstock.apply(manifest.replace("drain_timeout_s: 10", "drain_timeout_s: 60"))
    penstock.wait_ready("served", 2)
    yield "served"
    penstock.cli("delete", "served", "--wait")


def jobs(penstock: Penstock) -> list[str]:
    return penstock.cluster.run("squeue", "-h", "-o", "%i").split()


def agent_pid(penstock: Penstock, replica: str) -> int:
    """The agent's process, found by its attempt's token in its command line."""
    token = penstock.get("replicas", replica)["attempt"]["token"]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "penstock_runtime" in words and any(token in word for word in words):
            return int(process.pid)
    raise AssertionError(f"no process has the token {token}")


def test_a_declared_model_streams(penstock: Penstock, served: str) -> None:
    stream = Stream(penstock, served, 40)
    stream.assert_whole()
    done = penstock.cli("chat", served, "one two", "--max-tokens", "5")
    assert re.findall(r":(\d+)", done.stdout) == ["0", "1", "2", "3", "4"]
    assert len(jobs(penstock)) == 2


def test_a_declared_model_answers_rest(penstock: Penstock, served: str) -> None:
    asked = {"model": served, "prompt": "one two", "max_tokens": 3}
    url = f"http://{penstock.server}/v1/completions"

    def answered() -> httpx.Response | None:
        # Envoy's first look at the engine may come a moment after the replica is ready.
        answer = httpx.post(url, json=asked, timeout=PATIENCE_S)
        return answer if answer.status_code == 200 else None

    answer = wait_until(answered, PATIENCE_S, "an answer over REST")
    assert answer.json()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("method", ["Chat", "StreamChat"])
def test_a_bad_request_is_told_its_field(penstock: Penstock, served: str, method: str) -> None:
    """Through the front door: by the contract's rules, and where the bytes are no message."""
    good = request(served, 3)
    bad = request(served, -1)
    broken = good.SerializeToString().replace(b"one two", b"one \xffwo")
    with penstock.channel() as channel:
        ways = {"Chat": channel.unary_unary, "StreamChat": channel.unary_stream}
        call = ways[method](f"/penstock.v1.InferenceService/{method}")
        for data, field in (
            (bad.SerializeToString(), "sampling.max_tokens"),
            (broken, "messages[0].content[0].text"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                done = call(data, timeout=PATIENCE_S)
                list(done) if method == "StreamChat" else done
            error: Any = caught.value
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert error.details().startswith(f"{field}: ")
            details = dict(error.trailing_metadata())["grpc-status-details-bin"]
            named = error_details_pb2.BadRequest()
            assert any(detail.Unpack(named) for detail in status_pb2.Status.FromString(details).details)
            assert [violation.field for violation in named.field_violations] == [field]


def test_streams_and_new_requests_survive_every_process_of_ours(penstock: Penstock, served: str) -> None:
    streams = [Stream(penstock, served, 160) for _ in range(4)]
    wait_until(lambda: all(stream.numbers for stream in streams), PATIENCE_S, "all streams have begun")
    before = jobs(penstock)
    for child in ("controller", "gateway"):
        dead = penstock.kill(child)
        assert ask(penstock, served) is grpc.StatusCode.OK, (
            f"a new request right after the {child} was killed"
        )
        penstock.wait_back(child, dead)
    for stream in streams:
        stream.assert_whole()
    wait_until(
        lambda: penstock.cli("get", "deployments", check=False).returncode == 0, 30, "the control API is back"
    )
    penstock.wait_ready(served, 2)
    assert jobs(penstock) == before, "the jobs were adopted as they were"


def test_the_supervisor_itself_may_die(penstock: Penstock, served: str) -> None:
    stream = Stream(penstock, served, 160)
    wait_until(lambda: stream.numbers, PATIENCE_S, "the stream has begun")
    envoy, before = penstock.pid("envoy"), jobs(penstock)
    penstock.process.send_signal(signal.SIGKILL)
    penstock.process.wait()
    assert ask(penstock, served) is grpc.StatusCode.OK
    penstock.start()
    stream.assert_whole()
    assert penstock.pid("envoy") == envoy, "the front door was taken over, not replaced"
    penstock.wait_ready(served, 2)
    assert jobs(penstock) == before


def test_a_dead_replica_is_unroutable_at_once_and_comes_back(penstock: Penstock, served: str) -> None:
    # Killed with its engine, as when its node dies: nobody says goodbye.
    agent = psutil.Process(agent_pid(penstock, penstock.get("replicas", "served-1")["name"]))
    for process in [agent, *agent.children(recursive=True)]:
        process.kill()
    died = time.monotonic()
    codes = []
    while time.monotonic() - died < 4:
        codes.append((time.monotonic() - died, ask(penstock, served, 1)))
    late = [code for after, code in codes if after > 2 and code is not grpc.StatusCode.OK]
    assert not late, codes
    # Until the controller has seen it, both are called ready.
    wait_until(lambda: "JobEnded" in events(penstock), 60, lambda: events(penstock))
    penstock.wait_ready(served, 2)
    assert "next attempt" in events(penstock)


def events(penstock: Penstock) -> str:
    return penstock.cli("events", "served").stdout


def test_scaling_drains_and_cuts_no_stream(penstock: Penstock, served: str) -> None:
    penstock.cli("scale", served, "--replicas", "3")
    penstock.wait_ready(served, 3)
    streams = [Stream(penstock, served, 100) for _ in range(9)]
    wait_until(lambda: all(stream.numbers for stream in streams), PATIENCE_S, "all streams have begun")
    penstock.cli("scale", served, "--replicas", "2")
    for stream in streams:
        stream.assert_whole()
    penstock.wait_ready(served, 2)
    wait_until(lambda: len(jobs(penstock)) == 2, 30, "the third job has ended")


def test_a_restart_replaces_every_replica_without_a_gap(penstock: Penstock, served: str) -> None:
    before = set(jobs(penstock))
    penstock.cli("restart", served)
    streams: list[Stream] = []

    def replaced() -> bool:
        streams.append(Stream(penstock, served, 30))
        time.sleep(0.2)
        return not before & set(jobs(penstock))

    wait_until(replaced, 60, lambda: f"all jobs are new: {penstock.cli('events', served).stdout}")
    for stream in streams:
        stream.assert_whole()
    penstock.wait_ready(served, 2)


def test_slurmctld_may_go_and_come_back(penstock: Penstock, served: str) -> None:
    before = jobs(penstock)
    penstock.cluster.stop_controller()
    try:
        wait_until(lambda: "ClusterUnreachable" in penstock.cli("why", served).stdout, 30, "it says so")
        assert ask(penstock, served) is grpc.StatusCode.OK
        penstock.cli("scale", served, "--replicas", "3")
    finally:
        penstock.cluster.start_controller()
    penstock.wait_ready(served, 3)
    assert set(before) <= set(jobs(penstock))
    penstock.cli("scale", served, "--replicas", "2")
    penstock.wait_ready(served, 2)


def test_postgresql_may_die_and_come_back(penstock: Penstock, served: str) -> None:
    before = jobs(penstock)
    stream = Stream(penstock, served, 100)
    wait_until(lambda: stream.numbers, PATIENCE_S, "the stream has begun")
    os.kill(_postgresql(penstock), signal.SIGKILL)
    assert ask(penstock, served) is grpc.StatusCode.OK
    stream.assert_whole()
    penstock.wait_ready(served, 2)
    assert jobs(penstock) == before


def _postgresql(penstock: Penstock) -> int:
    from penstock.store.embedded import EmbeddedServer

    pid = EmbeddedServer(penstock.folder / "state" / "postgresql").pid
    assert pid is not None
    return pid


def test_clients_that_come_while_the_only_replica_restarts_are_all_answered(penstock: Penstock) -> None:
    penstock.apply(standin("only"))
    penstock.wait_ready("only", 1)
    # Others wait for every CPU, so that the next job is seen to wait, too.
    cpus = penstock.cluster.settings.nodes * penstock.cluster.settings.cpus
    for _ in range(cpus + 1):
        penstock.cluster.run("sbatch", "-J", "crowd", "--mem=1", "-o", "/dev/null", "--wrap", "sleep 300")
    try:
        psutil.Process(agent_pid(penstock, "only-1")).kill()
        streams = [Stream(penstock, "only", 5) for _ in range(50)]
        wait_until(
            lambda: (
                all(stream.waited for stream in streams)
                and any(said.job_state == "PENDING" for stream in streams for said in stream.waited)
            ),
            120,
            lambda: penstock.cli("why", "only").stdout,
        )
        penstock.cluster.run("scancel", "--name", "crowd")
        for stream in streams:
            stream.assert_whole(90)
        progress = [said for stream in streams for said in stream.waited]
        assert {said.position for said in progress} >= {1, 25, 50}
        print(f"heard while waiting: {sorted({said.message for said in progress})}")
    finally:
        penstock.cluster.run("scancel", "--name", "crowd")
        penstock.cli("delete", "only", "--wait")


def test_no_ready_replica_says_why(penstock: Penstock) -> None:
    penstock.apply(standin("hog", replicas=2, gpus=2))
    penstock.wait_ready("hog", 2)
    penstock.apply(standin("waits", gpus=1, more="  admission: {max_held: 0}"))
    try:
        wait_until(lambda: "Resources" in penstock.cli("why", "waits").stdout, 30, "it is queued")
        said = ""

        def queued() -> re.Match[str] | None:
            # The front door hears of what was decided a moment after it is in the log.
            nonlocal said
            stream = ended(Stream(penstock, "waits", 3))
            assert stream.code is grpc.StatusCode.UNAVAILABLE
            said = stream.details
            return re.search(r"0 of 1 ready: queued in Slurm as job \d+, Resources", said)

        wait_until(queued, 30, lambda: said)
        stream = ended(Stream(penstock, "nonesuch", 3))
        assert stream.code is grpc.StatusCode.NOT_FOUND
        assert "nonesuch" in stream.details
    finally:
        penstock.cli("delete", "waits", "--wait")
        penstock.cli("delete", "hog", "--wait")
    assert "waits" not in penstock.cli("get", "deployments").stdout


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("  placements: [{partition: nowhere}]", "nowhere"),
        ("  placements: [{partition: short, time_limit: 3d}]", "spec.placements[0].time"),
        ("  placements: [{partition: gpu}, {partition: nowhere}]", "spec.placements[1].partition"),
        ("  scaling: {min_replicas: 1, max_replicas: 2, target_in_flight: 8}", "not supported yet"),
        ("  colour: blue", "colour"),
        ("  rollout: {max_surge: 0, max_unavailable: 0}", "max"),
    ],
)
def test_a_bad_manifest_is_one_clear_error_and_changes_nothing(
    penstock: Penstock, more: str, said: str
) -> None:
    done = penstock.cli("apply", "-f", "-", stdin=standin("bad", more=more), check=False)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "bad" not in penstock.cli("get", "deployments").stdout
