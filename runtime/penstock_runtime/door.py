"""The agent's end of the engine's door: the port, which it holds before the engine has it, and the keys.

The engine listens on TCP, because the front door speaks to it directly; in_engine/penstock_engine_door.py, which the
engine loads as a middleware, lets in whom the file here names. The file and the middleware lie in one folder that only
the agent's user can enter, and that folder is all the engine must be able to see of the agent (a container mounts it).

The port is reserved by binding it, which keeps the kernel from giving it to anybody else, until the engine binds it
too: both allow that (SO_REUSEADDR) as long as only one listens.

The rule guarded here: until the control plane has said what the gateways' key is, nobody but the agent gets in.
"""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import shutil
from pathlib import Path

from penstock_runtime.engine_http import Address
from penstock_runtime.in_engine import penstock_engine_door as guard
from penstock_runtime.ports import HeldPort

MIDDLEWARE = f"{guard.__name__.rpartition('.')[2]}.{guard.Guard.__name__}"
"""As the engine imports it, with `folder` on its path."""
FILE_NAME = "door.json"


class EngineDoor:
    """One engine's. Raises OSError where no port of `bind` can be had."""

    def __init__(self, folder: Path, bind: str) -> None:
        self.folder = folder
        self.bind = bind
        self._key = secrets.token_urlsafe(32)
        self._gateways = ""
        self._closed = "this replica is still starting"
        self._port = HeldPort(bind)
        shutil.copy(guard.__file__, folder)
        self._write()

    @property
    def port(self) -> int:
        """Where the engine is to listen, at `bind`."""
        return self._port.number

    @property
    def address(self) -> Address:
        """Where the agent itself finds the engine."""
        host = self.bind
        if ipaddress.ip_address(host).is_unspecified:
            host = "::1" if ":" in host else "127.0.0.1"
        return Address(host, self.port, {guard.KEY_HEADER: self._key})

    @property
    def environment(self) -> dict[str, str]:
        """What the engine's process needs to find its door."""
        return {guard.FILE_VARIABLE: str(self.folder / FILE_NAME)}

    def expect(self, key: str) -> None:
        """What the gateways will present."""
        self._gateways = key
        self._write()

    def open(self) -> None:
        """Lets the gateways' requests in."""
        self._closed = ""
        self._write()

    def close(self, why: str) -> None:
        """Lets no more of them in; those inside go on."""
        self._closed = why
        self._write()

    def release(self) -> None:
        """Gives the port back."""
        self._port.close()

    def _write(self) -> None:
        # Written aside and moved there, so that the engine never reads half of it.
        aside = self.folder / f"{FILE_NAME}.new"
        aside.touch(mode=0o600)
        content = {guard.AGENT: self._key, guard.GATEWAYS: self._gateways, "closed": self._closed}
        aside.write_text(json.dumps(content))
        os.replace(aside, self.folder / FILE_NAME)
