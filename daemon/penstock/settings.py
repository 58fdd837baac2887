"""What a site can set: `penstock.toml`, overridden by environment variables `PENSTOCK_<NAME>`.

Read once by each process, handed to the pieces as plain arguments; nothing below the composition root knows
this file. An unknown key is an error.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from penstock.core.orphans import ORPHAN_GRACE_S
from penstock.gateway.settings import MAX_SOCKET_PATH_BYTES

CONFIG_VARIABLE = "PENSTOCK_CONFIG"
"""Names the configuration file where `--config` does not."""


def _origin(text: str) -> str:
    sent = re.fullmatch(r"(https?)://[a-z0-9.-]+(?::([0-9]+))?|https?://\[[0-9a-f:]+\](?::[0-9]+)?", text)
    if text != "*" and (sent is None or sent.group(1, 2) in (("http", "80"), ("https", "443"))):
        raise ValueError(
            "must be as a browser sends it: http or https, the host in lower case, and the port unless it is"
            " the scheme's own, such as https://chat.example.org"
        )
    return text


Origin = Annotated[str, AfterValidator(_origin)]
"""A web page's, or `*`: any."""


def _host(text: str) -> str:
    if re.fullmatch(r"(?=.{1,253}$)[a-z0-9]([a-z0-9.-]*[a-z0-9])?", text) is None:
        raise ValueError("must be a host's name in lower case, without a port, such as penstock.example.org")
    return text


Host = Annotated[str, AfterValidator(_host)]


class SettingsError(Exception):
    """The configuration cannot be used; the message names the key, the value and what is accepted."""


class Settings(BaseSettings):
    """The daemon's configuration, every key with its default."""

    model_config = SettingsConfigDict(env_prefix="PENSTOCK_", extra="forbid", frozen=True)

    state_dir: Path = Path(platformdirs.user_state_dir("penstock"))
    """Everything that the daemon keeps: sockets, logs, the embedded database. Made with mode 0700, or 0711 as
    root, whose PostgreSQL runs under an account of its own; one that others may write to is refused."""
    attempts_dir: Path | None = None
    """The attempts' folders; the compute nodes must see it under the same path. Unset: `attempts` under
    state_dir."""
    database_url: str | None = Field(default=None, repr=False)
    """`postgresql://user@host/name`. Unset: an embedded PostgreSQL under state_dir."""
    listen: str = "127.0.0.1:8600"
    """The front door: IP:port. Whoever reaches it can run code as Penstock's user, by a deployment of their
    own, so it is loopback by default."""
    cors_origins: Annotated[tuple[Origin, ...], Field(max_length=100)] = ()
    """Web pages of these origins, such as `https://chat.example.org`, may use models from a browser (never the control
    API); `*`: those of any. Unset: pages of the front door's own origin only."""
    hosts: Annotated[tuple[Host, ...], Field(max_length=100)] = ()
    """Names by which clients may call the front door, such as `penstock.example.org`, beside addresses, `localhost` and
    those in `control`. What is sent to another is refused, as what a web page sends that made its own name lead
    here (DNS rebinding). Unset: any name."""
    runtime_listen: str | None = None
    """A second port, IP:port, for agents on other hosts; it carries nothing but their reports."""
    control: tuple[str, ...] = ()
    """Where agents reach the control plane, host:port, tried in order. Unset: runtime_listen, else listen."""
    agent_bind: str = "127.0.0.1"
    """The address that agents listen at, on their compute nodes: `0.0.0.0` on a real cluster."""
    agent_advertise: str = ""
    """The address that the front door reaches agents at. Unset: the one by which the agent reaches the
    control plane."""
    agent_python: str = sys.executable
    """The Python, on the compute nodes, that has Penstock's base install."""
    slurm_backend: Literal["auto", "cli", "pyslurm"] = "auto"
    slurm_conf: Path | None = None
    """Unset: SLURM_CONF, or Slurm's own default."""
    slurm_prefix: str = ""
    """Put before each of Slurm's commands, such as a script that enters a container where they are."""
    pyslurm_python: str = ""
    """The command that starts the Python for which the site built pyslurm. Empty: Slurm's commands are used."""
    tick_interval_s: Annotated[float, Field(ge=0.2, le=300)] = 5.0
    """Between two looks at Slurm, when nothing else asks for one."""
    orphan_grace_s: Annotated[int, Field(ge=10, le=86_400)] = ORPHAN_GRACE_S
    """How long a job that bears our mark and belongs to no attempt is left alone before it is cancelled: the time to
    notice that the wrong backup was restored."""
    envoy_memory_mib: Annotated[int, Field(ge=256, le=1_048_576)] = 2048
    """Envoy's heap. Near it new requests are refused, and bodies that are on their way; what runs goes on."""
    envoy_threads: Annotated[int, Field(ge=1, le=256)] = 2
    retention_days: Annotated[int, Field(ge=1, le=3650)] = 30
    """How long decisions, removed replicas and their jobs' output are kept."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, _config_file())

    @property
    def attempts_folder(self) -> Path:
        """Where the attempts' folders are."""
        return self.attempts_dir or self.state_dir / "attempts"

    @property
    def control_addresses(self) -> tuple[str, ...]:
        """Where agents report."""
        return self.control or (self.runtime_listen or self.listen,)

    @property
    def run_folder(self) -> Path:
        """Sockets, pids and locks: under state_dir, or in a short place of its own where a socket's path
        would get too long."""
        folder = self.state_dir / "run"
        if len(os.fsencode(folder / "control.sock")) <= MAX_SOCKET_PATH_BYTES:
            return folder
        name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
        return Path(platformdirs.user_runtime_dir("penstock")) / name


def _config_file() -> Path | None:
    named = os.environ.get(CONFIG_VARIABLE)
    return Path(named) if named else None


def load() -> Settings:
    """The settings, from the file that PENSTOCK_CONFIG names and the environment. Raises SettingsError."""
    named = _config_file()
    if named is not None and not named.is_file():
        raise SettingsError(f"there is no configuration file {named}")
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SettingsError(
            f"{named or 'environment'}: {key}: {first['msg']}, not {first['input']!r}"
        ) from error
    except ValueError as error:
        raise SettingsError(f"{named}: {error}") from error
