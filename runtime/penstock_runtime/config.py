"""What the controller tells an agent: the attempt's folder, read strictly.

The folder lies on the cluster's shared file system and holds `agent.json`, which says what to run and whom to
report to, and `secret`, which proves to the control plane that this is the attempt it submitted. Both are
made before the job is submitted and never change. Nothing here starts, connects or waits.

The rule guarded here: a secret that others could have read is no secret. A folder or file that grants
anything to group or others is refused, and so is a configuration with a key that this release does not know:
it was written for another one.
"""

from __future__ import annotations

import dataclasses
import json
import stat
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

CONFIG_NAME = "agent.json"
SECRET_NAME = "secret"

# Far above any real one; a file that is larger was not written by the controller.
MAX_FILE_BYTES = 1 << 20

_ConfigShape = typing.TypeVar("_ConfigShape")


class ConfigError(Exception):
    """The folder cannot be used; the message is one sentence that names the file, the key and what is accepted."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Which engine, and what it gets besides Penstock's own arguments."""

    name: Literal["vllm", "standin"] = "vllm"
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    task: Literal["generate", "embed"] = "generate"


@dataclass(frozen=True, slots=True)
class ModuleConfig:
    """Environment modules to load, folders to look for them in first, and a virtual environment on top."""

    load: tuple[str, ...]
    use: tuple[str, ...] = ()
    venv: str = ""


@dataclass(frozen=True, slots=True)
class ApptainerConfig:
    """An image on this node's file systems, and bind mounts `source[:target[:ro|rw]]`."""

    image: str
    binds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PyxisConfig:
    """An image as `srun --container-image` takes it, and mounts `source:target[:flags]`."""

    image: str
    mounts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EnvironmentConfig:
    """Where the engine's software is. Empty: what the job's PATH has."""

    venv: str = ""
    module: ModuleConfig | None = None
    apptainer: ApptainerConfig | None = None
    pyxis: PyxisConfig | None = None


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """A LoRA adapter: what clients put into `model`, and its folder."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class AdapterRoomConfig:
    """What the engine sets aside for adapters; 0: as the adapters that there are at its start need it."""

    max_rank: int = 0
    max_in_batch: int = 0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model: a folder, or a name (and a revision) at the hub. Empty for an engine that needs none."""

    path: str = ""
    hub: str = ""
    hub_revision: str = ""
    # Those that were wanted when the attempt was made, each a model of its own to clients.
    adapters: tuple[AdapterConfig, ...] = ()
    # None: the engine is started without any, and takes none.
    adapter_room: AdapterRoomConfig | None = None
    # The engine takes them at its start only.
    adapters_fixed: bool = False


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """`agent.json`, key by key."""

    # The attempt's token, and which replica of which revision it is.
    attempt: str
    deployment: str
    replica: str
    revision: int
    # Front doors, `host:port`, tried in this order.
    control: tuple[str, ...]
    engine: EngineConfig
    model: ModelConfig
    # What clients may put into `model`; the first is the name that the engine serves it under.
    model_names: tuple[str, ...]
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    # From the agent's start to the engine's first token.
    startup_timeout_s: float = 1800
    # From the wish to leave until running requests are cut.
    drain_timeout_s: float = 60
    gpus: int = 0
    nodes: int = 1
    # Address to listen at.
    bind: str = "0.0.0.0"
    # Address to be reached at. Empty: the one that routes to the control plane.
    advertise: str = ""


def read_folder(folder: Path) -> tuple[AgentConfig, str]:
    """The attempt's configuration and its secret.

    Raises ConfigError when a file is missing, readable by others, or not of the shape above.
    """
    _refuse_shared(folder)
    text = _read_private(folder / CONFIG_NAME)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{CONFIG_NAME} is not JSON: {error}") from error
    config = _decode(AgentConfig, value, "")
    _check(config)
    secret = _read_private(folder / SECRET_NAME).strip()
    if not secret or len(secret.split()) != 1:
        raise ConfigError(f"{SECRET_NAME} must hold one line with the attempt's secret")
    return config, secret


def _refuse_shared(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        wanted = "0700" if stat.S_ISDIR(mode) else "0600"
        raise ConfigError(
            f"{path} has mode {stat.S_IMODE(mode):04o} and is open to group or others; it must be {wanted}"
        )


def _read_private(path: Path) -> str:
    _refuse_shared(path)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _check(config: AgentConfig) -> None:
    """What types alone do not say."""
    for key in ("attempt", "deployment", "replica"):
        if not getattr(config, key):
            raise ConfigError(f"{CONFIG_NAME}: {key} must not be empty")
    if not config.control:
        raise ConfigError(f"{CONFIG_NAME}: control must name at least one host:port")
    for endpoint in config.control:
        host, _, port = endpoint.rpartition(":")
        if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise ConfigError(f"{CONFIG_NAME}: control has {endpoint!r}; a host:port is accepted")
    if not config.model_names or not all(config.model_names):
        raise ConfigError(f"{CONFIG_NAME}: model_names must hold at least one name, none of them empty")
    if config.model.path and config.model.hub:
        raise ConfigError(f"{CONFIG_NAME}: model has both path and hub; one of them is accepted")
    if config.engine.name == "vllm" and not (config.model.path or config.model.hub):
        raise ConfigError(f"{CONFIG_NAME}: model must have path or hub for the engine vllm")
    if config.model.adapters and config.model.adapter_room is None:
        raise ConfigError(f"{CONFIG_NAME}: model has adapters and no adapter_room")
    taken = set(config.model_names)
    for adapter in config.model.adapters:
        if not adapter.name or adapter.name in taken or not adapter.path.startswith("/"):
            raise ConfigError(
                f"{CONFIG_NAME}: model.adapters has {adapter.name!r} at {adapter.path!r};"
                " a name that nothing else has and an absolute path are accepted"
            )
        taken.add(adapter.name)
    if config.startup_timeout_s <= 0:
        raise ConfigError(
            f"{CONFIG_NAME}: startup_timeout_s is {config.startup_timeout_s}; it must be above 0"
        )
    if config.drain_timeout_s < 0:
        raise ConfigError(
            f"{CONFIG_NAME}: drain_timeout_s is {config.drain_timeout_s}; it must be 0 or above"
        )
    if config.nodes < 1:
        raise ConfigError(f"{CONFIG_NAME}: nodes is {config.nodes}; it must be 1 or above")
    environment = config.environment
    kinds = [each.name for each in dataclasses.fields(environment) if getattr(environment, each.name)]
    if len(kinds) > 1:
        raise ConfigError(f"{CONFIG_NAME}: environment has {' and '.join(kinds)}; one of them is accepted")


def _decode(shape: type[_ConfigShape], value: Any, where: str) -> _ConfigShape:
    """`value` as the dataclass `shape`, every key known and of the declared type."""
    if not isinstance(value, dict):
        raise ConfigError(f"{CONFIG_NAME}: {where or 'the whole'} must be an object")
    hints = typing.get_type_hints(shape)
    known = {each.name: each for each in dataclasses.fields(typing.cast(Any, shape))}
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in known:
            raise ConfigError(f"{CONFIG_NAME}: {prefix}{key} is not known; known are {', '.join(known)}")
    for key, each in known.items():
        required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if required and key not in value:
            raise ConfigError(f"{CONFIG_NAME}: {prefix}{key} is missing")
    return shape(**{key: _decode_field(hints[key], each, f"{prefix}{key}") for key, each in value.items()})


def _decode_field(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _decode(typing.cast(type[Any], hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return _decode_field(arguments[0], value, where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{CONFIG_NAME}: {where} is {value!r}; accepted are {', '.join(arguments)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{CONFIG_NAME}: {where} must be a list")
        if dataclasses.is_dataclass(arguments[0]):
            return tuple(_decode_field(arguments[0], each, f"{where}[{i}]") for i, each in enumerate(value))
        if not all(isinstance(each, str) for each in value):
            raise ConfigError(f"{CONFIG_NAME}: {where} must be a list of strings")
        return tuple(value)
    if origin is Mapping:
        if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
            raise ConfigError(f"{CONFIG_NAME}: {where} must be an object of strings")
        return types.MappingProxyType(dict(value))
    accepted = (int, float) if hint is float else (hint,)
    # bool is an int to Python, and not to anybody who writes a configuration.
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{CONFIG_NAME}: {where} is {value!r}; it must be of type {hint.__name__}")
    return value
