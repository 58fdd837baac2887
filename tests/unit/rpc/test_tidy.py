"""The one rule of this package that a reader must be able to trust: convert alone knows both the contract and core."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import penstock.rpc

PACKAGE = Path(penstock.rpc.__file__).parent
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def knows(path: Path, package: str) -> bool:
    return any(name == package or name.startswith(package + ".") for name in imported(path))


def test_there_are_files() -> None:
    assert len(FILES) > 15


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] != "convert"], ids=str)
def test_only_convert_knows_both(path: Path) -> None:
    assert not (knows(path, "penstock.v1") and knows(path, "penstock.core"))
