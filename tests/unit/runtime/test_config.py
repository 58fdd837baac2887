"""The attempt's folder: read strictly, and only while nobody else can read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock_runtime.config import AgentConfig, ConfigError, EngineConfig, read_folder


def whole() -> dict[str, Any]:
    return {
        "attempt": "a1b2",
        "deployment": "smollm2",
        "replica": "smollm2-1",
        "revision": 1,
        "control": ["127.0.0.1:8600"],
        "engine": {"name": "vllm", "args": ["--dtype", "float32"], "env": {"A": "b"}, "task": "generate"},
        "environment": {"venv": "/venv"},
        "model": {"path": "/models/smollm2"},
        "model_names": ["smollm2"],
        "startup_timeout_s": 1800,
        "drain_timeout_s": 60,
        "gpus": 0,
        "nodes": 1,
        "bind": "0.0.0.0",
        "advertise": "",
    }


def write(folder: Path, config: Any, secret: str = "s3cret\n") -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, text in {"agent.json": json.dumps(config), "secret": secret}.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o600)
    return folder


def test_the_whole_shape(tmp_path: Path) -> None:
    config, secret = read_folder(write(tmp_path / "attempt", whole()))
    assert secret == "s3cret"
    assert config == AgentConfig(
        attempt="a1b2",
        deployment="smollm2",
        replica="smollm2-1",
        revision=1,
        control=("127.0.0.1:8600",),
        engine=EngineConfig("vllm", ("--dtype", "float32"), {"A": "b"}, "generate"),
        environment=config.environment,
        model=config.model,
        model_names=("smollm2",),
    )
    assert config.environment.venv == "/venv"
    assert config.model.path == "/models/smollm2"
    assert (config.startup_timeout_s, config.drain_timeout_s, config.bind) == (1800, 60, "0.0.0.0")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 1}, "colour is not known; known are attempt, deployment"),
        ({"engine": {"nmae": "vllm"}}, "engine.nmae is not known; known are name, args, env, task"),
        ({"engine": {"name": "tgi"}}, "engine.name is 'tgi'; accepted are vllm, standin"),
        ({"engine": {"args": ["a", 1]}}, "engine.args must be a list of strings"),
        ({"engine": {"env": {"A": 1}}}, "engine.env must be an object of strings"),
        ({"engine": []}, "engine must be an object"),
        ({"revision": "1"}, "revision is '1'; it must be of type int"),
        ({"revision": True}, "revision is True; it must be of type int"),
        ({"control": []}, "control must name at least one host:port"),
        ({"control": ["head"]}, "control has 'head'; a host:port is accepted"),
        ({"control": ["head:0"]}, "control has 'head:0'"),
        ({"model": {}}, "model must have path or hub for the engine vllm"),
        ({"model": {"path": "/a", "hub": "b/c"}}, "model has both path and hub"),
        ({"model": {"path": "/a", "adapters": [{"name": "x"}]}}, "model.adapters[0].path is missing"),
        ({"model": {"path": "/a", "adapters": {}}}, "model.adapters must be a list"),
        (
            {"model": {"path": "/a", "adapters": [{"name": "x", "path": "/x"}]}},
            "model has adapters and no adapter_room",
        ),
        (
            {"model": {"path": "/a", "adapter_room": {}, "adapters": [{"name": "x", "path": "x"}]}},
            "model.adapters has 'x' at 'x'",
        ),
        (
            {"model": {"path": "/a", "adapter_room": {}, "adapters": [{"name": "x", "path": "/x"}] * 2}},
            "a name that nothing else has and an absolute path are accepted",
        ),
        ({"model_names": []}, "model_names must hold at least one name"),
        ({"attempt": ""}, "attempt must not be empty"),
        ({"startup_timeout_s": 0}, "startup_timeout_s is 0; it must be above 0"),
        ({"drain_timeout_s": -1}, "drain_timeout_s is -1; it must be 0 or above"),
        ({"nodes": 0}, "nodes is 0; it must be 1 or above"),
        ({"environment": {"module": {}}}, "environment.module.load is missing"),
        (
            {"environment": {"apptainer": {"image": 1}}},
            "environment.apptainer.image is 1; it must be of type str",
        ),
        (
            {"environment": {"venv": "/venv", "pyxis": {"image": "a"}}},
            "environment has venv and pyxis; one of them is accepted",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_folder(write(tmp_path / "attempt", whole() | change))
    assert words in str(refused.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    config = whole()
    del config["attempt"]
    with pytest.raises(ConfigError, match="attempt is missing"):
        read_folder(write(tmp_path / "attempt", config))


def test_what_is_no_json(tmp_path: Path) -> None:
    folder = write(tmp_path / "attempt", whole())
    (folder / "agent.json").write_text("{")
    with pytest.raises(ConfigError, match=r"agent\.json is not JSON"):
        read_folder(folder)


@pytest.mark.parametrize("secret", ["", "\n", "two words\n", "two\nlines\n"])
def test_a_secret_is_one_line(tmp_path: Path, secret: str) -> None:
    with pytest.raises(ConfigError, match="one line"):
        read_folder(write(tmp_path / "attempt", whole(), secret))


@pytest.mark.parametrize(
    ("name", "mode", "wanted"),
    [
        ("secret", 0o644, "0600"),
        ("secret", 0o660, "0600"),
        ("agent.json", 0o604, "0600"),
        ("", 0o755, "0700"),
        ("", 0o710, "0700"),
    ],
)
def test_what_others_can_read_is_refused(tmp_path: Path, name: str, mode: int, wanted: str) -> None:
    folder = write(tmp_path / "attempt", whole())
    (folder / name).chmod(mode)
    with pytest.raises(
        ConfigError, match=f"mode {mode:04o} and is open to group or others; it must be {wanted}"
    ):
        read_folder(folder)


@pytest.mark.parametrize("name", ["secret", "agent.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "attempt", whole())
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"{name} cannot be read: No such file"):
        read_folder(folder)
