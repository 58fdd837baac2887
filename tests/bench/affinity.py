"""`make bench-affinity`: what it costs Envoy to look for the replica that a request belongs to.

One Envoy with one deployment for each way to choose, all with the same four endpoints of one replica that is fast
enough not to be the limit; requests of one token, so that what a request costs is seen. In each round every way is
measured once, one after the other; medians of CPU time of Envoy a request are shown, and each beside least request in
the same run. Compare within a run only. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil

from penstock.core.routing import Endpoint
from penstock.core.spec import Routing
from penstock.v1 import inference_pb2 as pb
from tests.bench.gateway import METHOD, Bench, Contender, Figures, Run, build
from tests.integration.front_door_kit import House, route, until

WAYS = {
    "least request": Routing(),
    "session": Routing(session_header="x-session-id"),
    "prefix of 1 KiB": Routing(prefix_bytes=1024),
    "prefix of 16 KiB": Routing(prefix_bytes=16384),
}
PROMPTS = {"2 KiB": 2048, "32 KiB": 32768, "1 MiB": 2**20}
SESSION = ("-header", "x-session-id", "-value", "one")


class Affinity(Bench):
    """The deployments and the requests for them."""

    async def ways(self, house: House) -> None:
        """Envoy knows all of them and reaches the replica for each."""
        port, engine = self._rpc_port, int(self._http.rpartition(":")[2])
        # A loopback address each: the same server four times over.
        ends = tuple(
            Endpoint(f"a{number}", f"r{number}", f"127.0.0.{number}", port, engine) for number in range(1, 5)
        )
        routes = [replace(route(name), endpoints=ends, routing=routing) for name, routing in WAYS.items()]
        await house.serve(*routes)
        for name in WAYS:

            async def answers(name: str = name) -> bool:
                return await house.answered_by(name) not in ("UNAVAILABLE", "NOT_FOUND")

            await until(answers, 60, f"the replica answers for {name}")
        assert house.door.refusals == 0

    def contenders(self, house: House, size: int) -> Iterator[tuple[str, str, Contender]]:
        """Protocol, way, and how it is asked, with a prompt of `size` bytes."""
        prompt = "The quick brown fox jumps over the lazy dog. " * (size // 45)
        for way in WAYS:
            file = self._folder / f"{way}-{size}"
            said = [{"role": "system", "content": prompt}, {"role": "user", "content": "0s"}]
            file.with_suffix(".json").write_text(
                json.dumps({"messages": said, "model": way, "max_tokens": 1, "stream": True})
            )
            parts = [pb.Message(role=pb.ROLE_SYSTEM, content=[pb.ContentPart(text=prompt)])]
            file.with_suffix(".pb").write_bytes(
                pb.StreamChatRequest(model=way, messages=parts).SerializeToString()
            )
            envoy = (psutil.Process(house.envoy.pid),)
            rest = ("-url", f"http://{house.settings.listen}", "-body", str(file.with_suffix(".json")))
            rpc = (
                "-grpc",
                house.settings.listen,
                "-method",
                METHOD,
                "-message",
                str(file.with_suffix(".pb")),
            )
            yield "REST", way, Contender(f"{way} REST", (*rest, *SESSION), envoy)
            yield "gRPC", way, Contender(f"{way} gRPC", (*rpc, *SESSION), envoy)


async def bench(rounds: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench")))
        affinity = Affinity(folder, build(folder), stack)
        affinity.replica()
        house = await stack.enter_async_context(House())
        await affinity.ways(house)
        for prompt, size in PROMPTS.items():
            run = Run(prompt, 16, 4000 if size < 100_000 else 200, 1)
            contenders = list(affinity.contenders(house, size))
            figures = {one.name: Figures() for _, _, one in contenders}
            for _ in range(rounds):
                for _, _, contender in contenders:
                    await asyncio.to_thread(affinity.measure, contender, run, figures[contender.name])
            print(f"prompts of {prompt}, {run.requests} requests, {run.streams} at a time: CPU µs a request")
            for protocol in ("REST", "gRPC"):
                base = statistics.median(figures[f"least request {protocol}"].cpu_us)
                for way in WAYS:
                    cost = statistics.median(figures[f"{way} {protocol}"].cpu_us)
                    print(f"  {protocol:6}{way:20}{cost:9.1f}{cost / base:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if shutil.which("go") is None:
        sys.exit("go is not installed: deploy/dev/system-packages.sh bench")
    asyncio.run(bench(given.rounds))


if __name__ == "__main__":
    main()
