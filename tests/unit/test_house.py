"""The rules of the house that no other gate can check."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CORE = sorted((ROOT / "daemon" / "penstock" / "core").glob("**/*.py"))
RUNTIME = sorted((ROOT / "runtime" / "penstock_runtime").glob("**/*.py"))
CLIENT = sorted((ROOT / "daemon" / "penstock" / "client").glob("**/*.py"))

# What the standard library offers and a pure function must not take: the clock, chance, and the world outside.
IMPURE = frozenset(
    "asyncio io multiprocessing os pathlib queue random secrets select shutil signal socket subprocess sys tempfile "
    "threading time urllib".split()
)
IMPURE_CALLS = frozenset("now utcnow today uuid1 uuid4 getenv open print input".split())


def _normal(name: str) -> str:
    """A distribution's name as the locks write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _imports(tree: ast.AST) -> set[str]:
    """Top-level names of every module that is imported absolutely anywhere in the tree."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def _impure_calls(tree: ast.AST) -> set[str]:
    called = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                called.add(node.func.attr)
            elif isinstance(node.func, ast.Name):
                called.add(node.func.id)
    return called & IMPURE_CALLS


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_core_is_pure(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = _imports(tree) - {"penstock"}
    assert not imported - sys.stdlib_module_names, "core imports the standard library only"
    assert not imported & IMPURE, "core has no clock, no randomness, no I/O"
    assert not _impure_calls(tree), "time and identities come into core as data"


def test_the_core_rule_would_notice() -> None:
    tree = ast.parse("import time\nfrom datetime import datetime\nimport yaml\nx = datetime.now()\n")
    assert _imports(tree) & IMPURE == {"time"}
    assert _imports(tree) - sys.stdlib_module_names == {"yaml"}
    assert _impure_calls(tree) == {"now"}


@pytest.mark.parametrize("folder", ["api", "daemon", "db", "deploy", "runtime", "tests"])
def test_no_top_level_folder_is_a_package(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_base_install_stays_what_a_job_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {requirement.split(">")[0] for requirement in project["dependencies"]}
    assert names == {
        "googleapis-common-protos", "grpcio", "grpcio-health-checking", "grpcio-status", "httpx", "protobuf",
        "protovalidate",
    }  # fmt: skip


@pytest.mark.parametrize("path", RUNTIME + CLIENT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_runtime_and_client_need_the_base_install_only(path: Path) -> None:
    """On a compute node, and beside a service, nothing else is there: an import from the server extra would fail."""
    base = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements" / "job.lock").read_text(), re.MULTILINE))
    providers = importlib.metadata.packages_distributions()
    outside = (
        _imports(ast.parse(path.read_text())) - sys.stdlib_module_names - {"penstock", "penstock_runtime"}
    )
    for name in outside:
        assert base & {_normal(provider) for provider in providers.get(name, [])}, (
            f"{name} is not in the base install"
        )


def test_importing_penstock_brings_no_grpc_along() -> None:
    code = "import sys, penstock; assert 'grpc' not in sys.modules; penstock.Client; assert 'grpc' in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("lock", sorted((ROOT / "requirements").glob("*.lock")), ids=lambda lock: lock.name)
def test_locks_name_no_registry(lock: Path) -> None:
    assert "://" not in lock.read_text()


def test_descriptor_set_is_complete() -> None:
    """Envoy refuses a set in which an import is missing."""
    raw = (ROOT / "daemon" / "penstock" / "v1" / "descriptor.binpb").read_bytes()
    files = descriptor_pb2.FileDescriptorSet.FromString(raw).file
    names = {file.name for file in files}
    assert {dependency for file in files for dependency in file.dependency} <= names
    assert not any(file.HasField("source_code_info") for file in files)


def test_the_wheel_is_whole(tmp_path: Path) -> None:
    """What an installed Penstock reads besides its modules: the migrations, the descriptor set, the type markers."""
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    migrations = {
        f"penstock/_db/{path.relative_to(ROOT / 'db')}"
        for path in (ROOT / "db" / "migrations").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    markers = {"penstock/py.typed", "penstock_runtime/py.typed", "penstock/v1/descriptor.binpb"}
    assert migrations | markers <= names
    assert {name.split("/")[0] for name in names} == {
        "penstock",
        "penstock_runtime",
        f"penstock-{VERSION}.dist-info",
    }


@pytest.mark.parametrize(
    ("target", "variable", "accepted"),
    [
        ("fuzz", "SECONDS=abc", "above 0"),
        ("fuzz", "SEED=-1", "from 0"),
        ("chaos", "KILLS=0", "above 0"),
        ("chaos", "SEED=1.5", "from 0"),
        ("bench-gateway", "ROUNDS=many", "above 0"),
    ],
)
def test_make_says_which_number_is_none_before_it_starts_anything(
    target: str, variable: str, accepted: str
) -> None:
    # Without its prerequisite, which the tests that run have no business to remake.
    done = subprocess.run(["make", "-o", "env", target, variable], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == f"{variable}: a whole number {accepted} is accepted"
