"""Paths in a manifest that are not absolute start at the manifest's own folder."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from penstock.cli import manifest


def test_relative_paths_start_at_the_manifests_folder(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "tiny.yaml"
    file.parent.mkdir()
    file.write_text(
        "apiVersion: penstock/v1\nkind: Deployment\nmetadata: {name: tiny}\n"
        "spec: {model: {path: ../models/tiny}, environment: {venv: {path: /opt/vllm}}}\n"
    )
    (document,) = manifest.read(str(file))
    assert document.deployment.spec.model.path == str(tmp_path / "models/tiny")
    assert document.deployment.spec.environment.venv.path == "/opt/vllm"


def test_standard_input_starts_at_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "apiVersion: penstock/v1\nkind: Deployment\nmetadata: {name: tiny}\nspec: {model: {path: tiny}}\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    (document,) = manifest.read("-")
    assert document.deployment.spec.model.path == str(Path.cwd() / "tiny")
