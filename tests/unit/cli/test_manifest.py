"""Manifests: what is understood, and what is said of each thing that is not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given

from penstock.cli import output
from penstock.cli.manifest import BadManifest, Document, parse, read
from penstock.core.spec import Spec
from penstock.rpc.convert.spec import spec_in, spec_out
from penstock.v1 import deployment_pb2, spec_pb2
from tests.unit.rpc.specs import specs

HEAD = "apiVersion: penstock/v1\nkind: Deployment\n"
LEAST = HEAD + "metadata: {name: a}\nspec: {model: {path: /m}}\n"


def one(text: str) -> deployment_pb2.Deployment:
    (document,) = parse(text, "m.yaml", Path.cwd())
    return document.deployment


def problems(text: str) -> list[str]:
    with pytest.raises(BadManifest) as caught:
        parse(text, "m.yaml", Path.cwd())
    return [str(problem) for problem in caught.value.problems]


def in_spec(text: str) -> list[str]:
    """The problems of a spec given as flow YAML, on line 4."""
    return problems(HEAD + "metadata: {name: a}\nspec: " + text)


def test_both_spellings_of_a_field() -> None:
    snake = one(HEAD + "metadata: {name: a}\nspec: {model: {path: /m, served_name: b}, drain_timeout_s: 5}")
    camel = one(HEAD + "metadata: {name: a}\nspec: {model: {path: /m, servedName: b}, drainTimeoutS: 5}")
    assert snake == camel
    assert snake.spec.drain_timeout_s == 5


def test_words_are_read_as_they_were_written() -> None:
    spec = one(
        HEAD
        + """
metadata: {name: a, labels: {version: 007, on: yes}}
spec:
  model: {path: /m}
  engine:
    args: [--gpu-memory-utilization, 0.90, --max-model-len, 2048]
    env: {OMP_NUM_THREADS: 4, ANSWER: no}
  placements: [{time_limit: 4:00:00, exclusive: true}]
  rollout: {max_surge: 1, strategy: recreate}
"""
    )
    assert dict(spec.metadata.labels) == {"version": "007", "on": "yes"}
    assert list(spec.spec.engine.args) == ["--gpu-memory-utilization", "0.90", "--max-model-len", "2048"]
    assert dict(spec.spec.engine.env) == {"OMP_NUM_THREADS": "4", "ANSWER": "no"}
    assert spec.spec.placements[0].time_limit == "4:00:00"
    assert spec.spec.placements[0].exclusive
    assert spec.spec.rollout.max_surge == "1"
    assert spec.spec.rollout.strategy == spec_pb2.ROLLOUT_STRATEGY_RECREATE


@pytest.mark.parametrize("word", ["recreate", "RECREATE", "ROLLOUT_STRATEGY_RECREATE"])
def test_enums_by_their_short_or_full_names(word: str) -> None:
    found = one(HEAD + f"metadata: {{name: a}}\nspec: {{model: {{path: /m}}, rollout: {{strategy: {word}}}}}")
    assert found.spec.rollout.strategy == spec_pb2.ROLLOUT_STRATEGY_RECREATE


def test_json_with_tabs_and_escapes() -> None:
    text = '{\n\t"apiVersion": "penstock/v1", "kind": "Deployment",\n\t"metadata": {"name": "a", "generation": "3",'
    text += ' "created_at": "2026-01-31T14:03:00Z", "labels": {"x": "\\ud83d\\ude00\\t"}},'
    text += ' "spec": {"model": {"path": "\\/m"}}}'
    found = one(text)
    assert (found.metadata.generation, found.metadata.labels["x"], found.spec.model.path) == (
        3,
        "\N{GRINNING FACE}\t",
        "/m",
    )


def test_several_documents_and_empty_ones() -> None:
    found = parse(
        LEAST + "---\n---\n# nothing\n---\n" + LEAST.replace("name: a", "name: b"), "m.yaml", Path.cwd()
    )
    assert [(item.deployment.metadata.name, item.line) for item in found] == [("a", 1), ("b", 9)]


def test_nothing_where_something_is_optional() -> None:
    assert not one(
        LEAST.replace("{model: {path: /m}}", "{model: {path: /m}, resources: , replicas: null}")
    ).spec.HasField("replicas")


BAD: list[tuple[str, str]] = [
    ("{modle: {path: /m}}", "m.yaml:4: spec.modle: there is no such field; did you mean model?"),
    (
        "{model: {path: /m}, zzz: 1}",
        "m.yaml:4: spec.zzz: there is no such field; there are model, engine, environment, replicas, resources,"
        " placements, probes, rollout, restart, scaling, drain_timeout_s, admission, handover, outside_changes,"
        " node_spread, burst, routing",
    ),
    ("{model: {path: /m}, replicas: two}", 'm.yaml:4: spec.replicas: must be a whole number, not "two"'),
    ("{model: {path: /m}, replicas: 1.5}", "m.yaml:4: spec.replicas: must be a whole number, not 1.5"),
    ("{model: {path: /m}, replicas: '2'}", 'm.yaml:4: spec.replicas: must be a whole number, not "2"'),
    (
        "{model: {path: /m}, replicas: 3000000000}",
        "m.yaml:4: spec.replicas: must be at most 2147483647, not 3000000000",
    ),
    ("{model: {path: /m}, replicas: [1]}", "m.yaml:4: spec.replicas: must be a whole number, not a list"),
    ("{model: {path: true}}", 'm.yaml:4: spec.model.path: must be text, not true; write "true" in quotes'),
    ("{model: {path: {}}}", "m.yaml:4: spec.model.path: must be text, not a mapping"),
    (
        "{model: /m}",
        "m.yaml:4: spec.model: must be a mapping with any of path, hub, hub_revision, served_name, adapters,"
        ' adapter_room, not "/m"',
    ),
    (
        "{model: {path: /m, hub: a/b}}",
        "m.yaml:4: spec.model.hub: cannot be given beside path: only one of them",
    ),
    ("{model: {path: /m, path: /n}}", "m.yaml:4: spec.model.path: is given twice"),
    ("{model: {path: /m, served_name: a, servedName: b}}", "m.yaml:4: spec.model.servedName: is given twice"),
    ("{model: {path: /m}, engine: {args: --x}}", 'm.yaml:4: spec.engine.args: must be a list, not "--x"'),
    ("{model: {path: /m}, engine: {args: [[a]]}}", "m.yaml:4: spec.engine.args[0]: must be text, not a list"),
    (
        "{model: {path: /m}, engine: {env: [A]}}",
        "m.yaml:4: spec.engine.env: must be a mapping of text to text, not a list",
    ),
    (
        "{model: {path: /m}, engine: {env: {A: true}}}",
        'm.yaml:4: spec.engine.env["A"]: must be text, not true; write "true" in quotes',
    ),
    ("{model: {path: /m}, engine: {env: {A: 1, A: 2}}}", 'm.yaml:4: spec.engine.env["A"]: is given twice'),
    (
        "{model: {path: /m}, engine: {task: embeddings}}",
        'm.yaml:4: spec.engine.task: must be one of generate, embed, not "embeddings"',
    ),
    (
        "{model: {path: /m}, placements: [{exclusive: yes}]}",
        'm.yaml:4: spec.placements[0].exclusive: must be true or false, not "yes"',
    ),
    ("[]", "m.yaml:4: spec: must be a mapping with any of model, engine"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[message[10:70] for _, message in BAD])
def test_what_is_not_understood_is_said_with_its_place(text: str, message: str) -> None:
    (found,) = in_spec(text)
    assert found.startswith(message) if message.endswith("engine") else found == message


WHOLE: list[tuple[str, list[str]]] = [
    ("", ["m.yaml:1: has no document in it"]),
    ("- a", ["m.yaml:1: must be a mapping with apiVersion, kind, metadata and spec, not a list"]),
    ("a: [", ["m.yaml:1: is not YAML: expected the node content, but found '<stream end>'"]),
    ("a: !!python/object:os.system x", ["m.yaml:1: apiVersion: must be given: penstock/v1"]),
    (
        LEAST.replace("Deployment", "Pod").replace("penstock/v1", "apps/v1"),
        [
            'm.yaml:1: apiVersion: must be penstock/v1, not "apps/v1"',
            'm.yaml:2: kind: must be Deployment, not "Pod"',
        ],
    ),
    (HEAD, ["m.yaml:1: metadata: must be given", "m.yaml:1: spec: must be given"]),
    (LEAST + "stauts: {}\n", ["m.yaml:5: stauts: there is no such field; did you mean status?"]),
    (
        LEAST.replace("{name: a}", "{name: a, created_at: yesterday}"),
        ['m.yaml:3: metadata.created_at: must be a time such as 2026-01-31T14:03:00Z, not "yesterday"'],
    ),
]


@pytest.mark.parametrize(("text", "messages"), WHOLE)
def test_what_is_no_manifest_at_all(text: str, messages: list[str]) -> None:
    assert problems(text)[: len(messages)] == messages


def test_aliases_that_mean_too_much_are_cut_short() -> None:
    text = "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    for last, this in zip("abcdef", "bcdefg", strict=True):
        text += f"{this}: &{this} [{','.join([f'*{last}'] * 10)}]\n"
    assert (
        "there is no such field"
        in problems(HEAD + "metadata: {name: a}\nspec: {model: {path: /m}}\n" + text)[0]
    )
    args = (
        "x: &x ["
        + ", ".join(["a"] * 200)
        + "]\nspec: {model: {path: /m}, placements: ["
        + ", ".join(["{options: *x}"] * 300)
    )
    assert problems(HEAD + "metadata: {name: a}\n" + args + "]}\n")


def test_what_nests_for_ever() -> None:
    assert problems("x: " + "[" * 5000) == ["m.yaml:1: is nested too deeply"]


def test_files(tmp_path: Path) -> None:
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbf" + LEAST.encode())
    assert read(str(tmp_path / "bom.yaml"))[0].deployment.metadata.name == "a"
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(BadManifest, match="is not UTF-8 text"):
        read(str(tmp_path / "binary"))
    (tmp_path / "large").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(BadManifest, match="is larger than a manifest may be"):
        read(str(tmp_path / "large"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b"\xef\xbb\xbf" + LEAST.encode(), ""),
        (LEAST.encode() + b"\xff", "standard input:1: is not UTF-8 text (byte 87)"),
        # What is beyond the bound must not be left out: the rest may be another deployment's manifest, or half of one.
        (
            LEAST.encode() + b"#" * (1 << 20),
            "standard input:1: is larger than a manifest may be, 1048576 bytes",
        ),
    ],
)
def test_standard_input(given: bytes, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
    if not said:
        assert read("-")[0].deployment.metadata.name == "a"
        return
    with pytest.raises(BadManifest) as caught:
        read("-")
    assert str(caught.value) == said


@given(specs)
def test_what_get_shows_can_be_applied(spec: Spec) -> None:
    deployment = deployment_pb2.Deployment(spec=spec_out(spec))
    deployment.metadata.name = "a"
    deployment.metadata.created_at.GetCurrentTime()
    deployment.metadata.generation = 2
    deployment.status.ready_replicas = 1
    shown = yaml.safe_dump(output.manifest(deployment), allow_unicode=True)
    found: list[Document] = parse(shown, "m.yaml", Path.cwd())
    assert spec_in(found[0].deployment.spec) == spec
    assert found[0].deployment.metadata == deployment.metadata
    as_json = json.dumps(output.manifest(deployment))
    assert parse(as_json, "m.json", Path.cwd())[0].deployment == found[0].deployment
