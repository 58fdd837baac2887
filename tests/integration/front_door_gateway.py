"""The gateway's Python as a program of its own, so that a test can kill it.

`python -m tests.integration.front_door_gateway FILE`
FILE is JSON: the settings and the routing state; it is read again at each SIGHUP, and after each reading a
line is printed.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

from penstock.core.prospect import Prospect
from penstock.core.routing import Endpoint, Route, RoutingState
from penstock.core.spec import Admission
from penstock.gateway.door import FrontDoor
from penstock.gateway.settings import FrontDoorSettings


def read(path: Path) -> tuple[FrontDoorSettings, RoutingState]:
    content = json.loads(path.read_text())
    settings = FrontDoorSettings(
        **{**content["settings"], "state_folder": Path(content["settings"]["state_folder"])}
    )
    routes = tuple(
        Route(
            deployment=route["deployment"],
            model_names=tuple(route["model_names"]),
            secret=route["secret"],
            endpoints=tuple(
                Endpoint(**{**end, "adapters": tuple(end["adapters"])}) for end in route["endpoints"]
            ),
            admission=Admission(max_held=0),
        )
        for route in content["routes"]
    )
    return settings, RoutingState(routes)


async def explain(deployment: str, adapter: str) -> Prospect:
    return Prospect(f"0 of 1 ready: the test says so of {deployment}")


async def main(path: Path) -> None:
    settings, _ = read(path)
    door = FrontDoor(settings, explain)
    await door.start()
    changed = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, changed.set)
    while True:
        await door.set_state(read(path)[1])
        print("state set", flush=True)
        await changed.wait()
        changed.clear()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
