"""Generates what the repository keeps of the contract: Python stubs, their types, and Envoy's descriptor set.

Everything is made in a scratch folder from api/protos and then either put in place or, with --check, compared with
what is committed. Only the pinned tools in the lock take part, so the same protos give the same bytes anywhere.

Two things differ from what protoc writes. The stub of buf/validate is put inside penstock.v1, because a top-level
package called `buf` would be ours in name only. And api/protos/google holds copies from googleapis-common-protos,
whose stubs are used at run time, so that plain `buf lint` and other languages' generators need no other folder.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc_tools

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "api" / "protos"
STUBS = ROOT / "daemon" / "penstock" / "v1"
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"

DESCRIPTORS = "descriptor.binpb"
VALIDATE = "buf/validate/validate.proto"
VALIDATE_STUB = "buf_validate_pb2"

_IMPORT = re.compile(r'^import (?:public )?"([^"]+)";', re.MULTILINE)


def own_protos() -> list[str]:
    """Penstock's own proto files, relative to api/protos."""
    return sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("penstock/v1/*.proto"))


def google_protos() -> dict[str, bytes]:
    """The files of googleapis-common-protos that the contract imports, directly or not, by their import path."""
    found: dict[str, bytes] = {}
    waiting = [name for own in own_protos() for name in _IMPORT.findall((PROTOS / own).read_text())]
    while waiting:
        name = waiting.pop()
        if name in found or not name.startswith("google/") or name.startswith("google/protobuf/"):
            continue
        found[name] = (SITE_PACKAGES / name).read_bytes()
        waiting += _IMPORT.findall(found[name].decode())
    return found


def protoc(*arguments: str) -> None:
    """Runs the pinned protoc; ends the program with its message when it fails."""
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{PROTOS}",
        f"-I{SITE_PACKAGES}",
        f"-I{WELL_KNOWN}",
    ]
    done = subprocess.run([*command, *arguments], cwd=PROTOS, text=True, capture_output=True)
    if done.returncode != 0:
        sys.exit(done.stderr.strip())


def generate(scratch: Path) -> dict[str, bytes]:
    """What belongs in penstock/v1, by file name."""
    own = own_protos()
    if not own:
        sys.exit(f"no .proto file in {PROTOS.relative_to(ROOT)}/penstock/v1")
    plugins = [
        f"--plugin={name}={Path(sys.executable).parent / name}"
        for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    ]
    protoc(
        *plugins,
        f"--python_out={scratch}",
        f"--mypy_out=relax_strict_optional_primitives:{scratch}",
        VALIDATE,
        *own,
    )
    protoc(*plugins, f"--grpc_python_out={scratch}", f"--mypy_grpc_out=only_async:{scratch}", *own)
    protoc(f"--descriptor_set_out={scratch / DESCRIPTORS}", "--include_imports", *own)

    made = {DESCRIPTORS: (scratch / DESCRIPTORS).read_bytes()}
    for path in sorted(scratch.glob("penstock/v1/*.py*")):
        made[path.name] = _plain_context(_move_validate(path.read_text())).encode()
    for path in sorted(scratch.glob("buf/validate/*.py*")):
        made[VALIDATE_STUB + path.suffix] = path.read_bytes()
    # protoc writes an empty services file for a proto without a service.
    for name in [name for name in made if "_pb2_grpc." in name]:
        proto = PROTOS / "penstock" / "v1" / (name.split("_pb2_grpc.")[0] + ".proto")
        if not re.search(r"^service ", proto.read_text(), re.MULTILINE):
            del made[name]
    return made


def _move_validate(text: str) -> str:
    """The same stub, importing buf.validate from inside penstock.v1."""
    text = re.sub(
        r"^from buf\.validate import validate_pb2\b",
        f"from penstock.v1 import {VALIDATE_STUB}",
        text,
        flags=re.MULTILINE,
    )
    text = re.sub(
        r"^import buf\.validate\.validate_pb2.*\n",
        f"import penstock.v1.{VALIDATE_STUB}\n",
        text,
        flags=re.MULTILINE,
    )
    if re.search(r"^(from|import) buf\b", text, re.MULTILINE):
        sys.exit("protoc writes the import of buf.validate in a way that deploy/dev/proto.py does not know")
    return text


def _plain_context(text: str) -> str:
    """The same types, with a context typed by its messages: mypy-protobuf puts the servicer's return type there."""
    return re.sub(
        r"(_aio\.ServicerContext\[[\w.]+, )_abc\.(?:Awaitable|AsyncIterator)\[([\w.]+)\]\]", r"\1\2]", text
    )


def wanted() -> Iterator[tuple[Path, bytes]]:
    """Every generated file of the repository with its contents."""
    for name, text in google_protos().items():
        yield PROTOS / name, text
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in generate(Path(scratch)).items():
            yield STUBS / name, text


def present() -> set[Path]:
    """Every generated file that is there now."""
    stubs = {path for path in STUBS.iterdir() if "_pb2" in path.name or path.name == DESCRIPTORS}
    return stubs | set((PROTOS / "google").rglob("*.proto"))


def main() -> None:
    """Writes the files, or with --check compares them and fails on the first list of differences."""
    files = dict(wanted())
    left_over = present() - files.keys()
    stale = {path for path, text in files.items() if not path.exists() or path.read_bytes() != text}
    if "--check" in sys.argv[1:]:
        if wrong := sorted(str(path.relative_to(ROOT)) for path in stale | left_over):
            sys.exit("not what api/protos gives; run `make proto` and commit: " + ", ".join(wrong))
        return
    for path in left_over:
        path.unlink()
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[path])
    print(f"{len(files)} files are in step with api/protos, {len(stale)} written, {len(left_over)} removed")


if __name__ == "__main__":
    main()
