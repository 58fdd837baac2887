"""Bad manifests, one a row, each with the exact error that a person gets."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from penstock import contract
from penstock.rpc import validate
from penstock.rpc.refusals import Refused
from penstock.v1 import deployment_pb2, metadata_pb2, runtime_pb2

GOOD: dict[str, Any] = {"metadata": {"name": "a"}, "spec": {"model": {"path": "/models/a"}}}


def deployment(**spec: Any) -> deployment_pb2.Deployment:
    return json_format.ParseDict({**GOOD, "spec": {**GOOD["spec"], **spec}}, deployment_pb2.Deployment())


def refusal(message: deployment_pb2.Deployment) -> Refused:
    with pytest.raises(Refused) as caught:
        validate.check_deployment(message)
    return caught.value


def test_the_least_that_is_enough() -> None:
    validate.check_deployment(deployment())


MEMORY = "must be a whole number with a unit: K, M, G, T, or KiB, MiB, GiB, TiB, such as 8GiB or 16G"
TIME = "must be minutes, MM:SS, HH:MM:SS, D-HH[:MM[:SS]], or a number with s, m, h or d, such as 4h or 2-12:00:00"

BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "spec.model: must be given"),
    ({"model": {}}, "spec.model: one of path and hub must be given"),
    (
        {"model": {"path": "models/a"}},
        'spec.model.path: must be an absolute path, such as /models/llama-3.1-8b, not "models/a"',
    ),
    (
        {"model": {"hub": "llama"}},
        'spec.model.hub: must be owner/name, such as meta-llama/Llama-3.1-8B-Instruct, not "llama"',
    ),
    (
        {"model": {"path": "/a", "hub_revision": "main"}},
        "spec.model.hub_revision: is only for a model from the hub; spec.model.hub is not set",
    ),
    (
        {"model": {"path": "/a\x1b[31m"}},
        "spec.model.path: must not have the control character \\x1b",
    ),
    (
        {"routing": {"max_load_percent": 200}},
        "spec.routing.max_load_percent: is only with spec.routing.session_header or spec.routing.prefix_bytes",
    ),
    (
        {"routing": {"prefix_bytes": 10}},
        "spec.routing.prefix_bytes: must be at least 64 and at most 16384, not 10",
    ),
    *(
        (
            {"routing": {"session_header": header}},
            "spec.routing.session_header: must be at most 64 characters, lower-case letters, digits and -, such as"
            " x-session-id, and none that the front door takes away or changes itself (authorization, cookie,"
            f' x-penstock-..., x-envoy-... and the like), not "{header}"',
        )
        for header in (
            "X-Session",
            "authorization",
            "proxy-authorization",
            "x-envoy-retry",
            "x-penstock-deployment",
            "a:b",
            "x-model",
        )
    ),
    (
        {"model": {"path": "/a", "adapters": [{"name": "a b", "path": "/x"}]}},
        "spec.model.adapters[0].name: must be 1 to 128 characters: letters, digits, and any of . _ / : -,"
        ' not "a b"',
    ),
    (
        {"model": {"path": "/a", "adapters": [{"name": "x", "path": "x"}]}},
        "spec.model.adapters[0].path: must be an absolute path of at most 4096 characters, such as /lora/support-v2,"
        ' not "x"',
    ),
    (
        {"model": {"path": "/a", "adapters": [{"name": "x", "path": "/x"}, {"name": "x", "path": "/y"}]}},
        'spec.model.adapters[1].name: "x" is spec.model.adapters[0].name too; each model needs a name of its own',
    ),
    (
        {"model": {"path": "/a", "served_name": "x", "adapters": [{"name": "x", "path": "/x"}]}},
        'spec.model.adapters[0].name: "x" is spec.model.served_name too; each model needs a name of its own',
    ),
    (
        {"model": {"path": "/a", "adapters": [{"name": "a", "path": "/x"}]}},
        'spec.model.adapters[0].name: "a" is the deployment\'s own name too; each model needs a name of its own',
    ),
    (
        {"model": {"path": "/a", "adapters": [{"name": f"x{n}", "path": "/x"} for n in range(65)]}},
        "spec.model.adapters: must contain no more than 64 item(s)",
    ),
    (
        {"model": {"path": "/a", "adapter_room": {"max_rank": 20}}},
        "spec.model.adapter_room.max_rank: must be in list [8, 16, 32, 64, 128, 256, 320, 512], not 20",
    ),
    (
        {"model": {"path": "/a", "adapter_room": {"max_in_batch": 65}}},
        "spec.model.adapter_room.max_in_batch: must be at least 1 and at most 64, not 65",
    ),
    ({"engine": {"name": "sglang"}}, 'spec.engine.name: must be vllm or standin, not "sglang"'),
    ({"engine": {"args": ["--port", "1"]}}, 'spec.engine.args[0]: "--port" is set by Penstock itself'),
    (
        {"engine": {"args": ["--served_model_name=x"]}},
        'spec.engine.args[0]: "--served_model_name" is set by Penstock itself; use spec.model.served_name',
    ),
    (
        {"engine": {"args": ["--max-model-len", "9", "--serv", "x"]}},
        'spec.engine.args[2]: "--serv" is set by Penstock itself; use spec.model.served_name',
    ),
    *(
        (
            {"engine": {"args": arguments}},
            f'spec.engine.args[0]: "{said}" would put a secret on a command line; keep it in a file that its user'
            " alone may read, and name that file in spec.engine.env.HF_TOKEN_PATH",
        )
        for said, arguments in (
            ("--hf-token", ["--hf-token", "hf_secret"]),
            ("--hf-token", ["--hf-token=hf_secret"]),
            ("--hf_tok", ["--hf_tok=hf_secret"]),
        )
    ),
    (
        {"engine": {"args": ["--api-key=secret"]}},
        'spec.engine.args[0]: "--api-key" is set by Penstock itself',
    ),
    (
        {"engine": {"args": ["/m"]}},
        'spec.engine.args[0]: must be an option such as --max-model-len, not "/m"',
    ),
    ({"engine": {"args": [""]}}, "spec.engine.args[0]: must not be empty"),
    (
        {"engine": {"env": {"9A": "x"}}},
        'spec.engine.env["9A"]: must be the name of a variable: at most 128 letters, digits and _,'
        ' not starting with a digit, not "9A"',
    ),
    (
        {"engine": {"env": {"VLLM_API_KEY": "x"}}},
        'spec.engine.env["VLLM_API_KEY"]: is set by Penstock itself',
    ),
    (
        {"environment": {"venv": {"path": "venv"}}},
        'spec.environment.venv.path: must begin with /, not "venv"',
    ),
    (
        {"environment": {"module": {"load": ["cuda; rm -rf /"]}}},
        "spec.environment.module.load[0]: must be a module's name: at most 256 letters, digits and any of _ . / + : = -"
        ', not starting with -, not "cuda; rm -rf /"',
    ),
    (
        {"environment": {"module": {"load": ["-q"]}}},
        "spec.environment.module.load[0]: must be a module's name: at most 256 letters, digits and any of _ . / + : = -"
        ', not starting with -, not "-q"',
    ),
    (
        {"environment": {"apptainer": {"image": "docker://vllm/vllm-openai"}}},
        "spec.environment.apptainer.image: must be the absolute path of a .sif file or a sandbox folder, such as"
        ' /images/vllm.sif, not "docker://vllm/vllm-openai"',
    ),
    (
        {"environment": {"apptainer": {"image": "/a.sif", "binds": ["/a:b"]}}},
        "spec.environment.apptainer.binds[0]: must be source[:target[:ro|rw]] with absolute paths, such as"
        ' /scratch:/scratch:ro, not "/a:b"',
    ),
    (
        {"environment": {"pyxis": {"image": "a b"}}},
        "spec.environment.pyxis.image: must be an image such as nvcr.io#nvidia/vllm:25.09-py3, or the absolute path of"
        ' a .sqsh file, of at most 4096 characters without spaces, not "a b"',
    ),
    (
        {"environment": {"pyxis": {"image": "a", "mounts": ["/a"]}}},
        "spec.environment.pyxis.mounts[0]: must be source:target[:flags] with absolute paths, such as"
        ' /scratch:/scratch:ro, not "/a"',
    ),
    (
        {"engine": {"name": "standin"}, "environment": {"apptainer": {"image": "/a.sif"}}},
        "spec.environment.apptainer: is for the engine vllm; the stand-in is Penstock's own program and runs in no"
        " container",
    ),
    (
        {"engine": {"args": ["--nnodes=2"]}},
        'spec.engine.args[0]: "--nnodes" is set by Penstock itself; use spec.resources.nodes',
    ),
    (
        {"engine": {"args": ["-n", "2"]}},
        'spec.engine.args[0]: "-n" is set by Penstock itself; use spec.resources.nodes',
    ),
    ({"replicas": -1}, "spec.replicas: must be at least 0 and at most 10000, not -1"),
    ({"resources": {"memory": "8 GiBs"}}, f'spec.resources.memory: {MEMORY}, not "8 GiBs"'),
    ({"resources": {"gpus": 65}}, "spec.resources.gpus: must be at least 0 and at most 64, not 65"),
    (
        {"resources": {"gpu_type": "a100"}},
        'spec.resources.gpu_type: is "a100", but spec.resources.gpus is 0',
    ),
    ({"placements": [{"time_limit": "soon"}]}, f'spec.placements[0].time_limit: {TIME}, not "soon"'),
    ({"placements": [{}, {"time_limit": "soon"}]}, f'spec.placements[1].time_limit: {TIME}, not "soon"'),
    (
        {"burst": {"placements": [{"options": {"job-name": "x"}}]}},
        'spec.burst.placements[0].options["job-name"]: cannot be given here: Penstock finds its jobs by it',
    ),
    (
        {"placements": [{"time_limit": "1:75"}]},
        "spec.placements[0].time_limit: has more minutes, seconds or hours than its place holds: "
        + TIME
        + ', not "1:75"',
    ),
    (
        {"handover": {"margin_s": 600}, "placements": [{"time_limit": "4h"}, {"time_limit": "10m"}]},
        'spec.handover.margin_s: must be shorter than spec.placements[1].time_limit, "10m" (600 s), not 600',
    ),
    (
        {"handover": {"margin_s": 3600}, "burst": {"base": 1, "placements": [{"time_limit": "1h"}]}},
        'spec.handover.margin_s: must be shorter than spec.burst.placements[0].time_limit, "1h" (3600 s), not 3600',
    ),
    (
        {"handover": {"stagger_percent": 51}},
        "spec.handover.stagger_percent: must be at least 0 and at most 50, not 51",
    ),
    *(
        (
            {"placements": [{"partition": partition}]},
            "spec.placements[0].partition: must be a partition's name, or several joined by commas, together of at most"
            " 128 characters: letters, digits and any of _ . -, no name starting with . or -,"
            f' not "{partition}"',
        )
        for partition in ("a b", ",", "a,,b", "a,", "-a")
    ),
    (
        {"placements": [{"options": {"job-name": "x"}}]},
        'spec.placements[0].options["job-name"]: cannot be given here: Penstock finds its jobs by it',
    ),
    (
        {"placements": [{"options": {"outp": "x"}}]},
        'spec.placements[0].options["outp"]: is a beginning of output, which cannot be given here:'
        " Penstock sets it",
    ),
    (
        {"placements": [{"options": {"time": "1"}}]},
        'spec.placements[0].options["time"]: cannot be given here; use spec.placements[0].time_limit',
    ),
    (
        {"placements": [{"options": {"gpus-per-node": "1"}}]},
        'spec.placements[0].options["gpus-per-node"]: cannot be given here; use spec.resources.gpus',
    ),
    (
        {"placements": [{"options": {"nice": "1\n"}}]},
        'spec.placements[0].options["nice"]: must not have the control character \\x0a',
    ),
    (
        {"rollout": {"max_surge": "0%", "max_unavailable": "0"}},
        "spec.rollout.max_surge: must not be zero while spec.rollout.max_unavailable is zero too:"
        " a rollout could never begin",
    ),
    (
        {"rollout": {"strategy": "ROLLOUT_STRATEGY_CANARY"}},
        "spec.rollout.canary: must be given with the strategy canary, such as {percent: 10}",
    ),
    (
        {"rollout": {"canary": {"percent": 10}}},
        "spec.rollout.canary: is only for the strategy canary (spec.rollout.strategy)",
    ),
    (
        {"rollout": {"strategy": "ROLLOUT_STRATEGY_CANARY", "canary": {"bake_s": 60}}},
        "spec.rollout.canary.percent: must be at least 1 and at most 99, not 0",
    ),
    (
        {"rollout": {"progress_deadline_s": 1801}},
        "spec.rollout.progress_deadline_s: must be at most spec.probes.startup_timeout_s, 1800, after which the job is"
        " cancelled; not 1801",
    ),
    (
        {"rollout": {"max_surge": "150%"}},
        'spec.rollout.max_surge: must be a number or a percentage up to 100%, such as 1 or 25%, not "150%"',
    ),
    (
        {"restart": {"backoff_initial_s": 400}},
        "spec.restart.backoff_initial_s: must be at most spec.restart.backoff_max_s, 300, not 400",
    ),
    (
        {"probes": {"startup_timeout_s": 5}},
        "spec.probes.startup_timeout_s: must be at least 10 and at most 86400, not 5",
    ),
]


@pytest.mark.parametrize(("spec", "message"), BAD_VALUES, ids=[message[:60] for _, message in BAD_VALUES])
def test_a_bad_value_is_one_clear_error(spec: dict[str, Any], message: str) -> None:
    found = refusal(bare() if spec.get("model", spec) is None else deployment(**spec))
    assert found.status is grpc.StatusCode.INVALID_ARGUMENT
    assert found.message == message
    assert [str(violation) for violation in found.violations] == [message]


def bare() -> deployment_pb2.Deployment:
    return json_format.ParseDict(
        {"metadata": {"name": "a"}, "spec": {"replicas": 1}}, deployment_pb2.Deployment()
    )


LATER: list[tuple[dict[str, Any], str]] = [
    ({"scaling": {}}, "spec.scaling: not supported yet"),
]


@pytest.mark.parametrize(("spec", "message"), LATER, ids=[message for _, message in LATER])
def test_what_comes_later_is_refused_by_name(spec: dict[str, Any], message: str) -> None:
    found = refusal(deployment(**spec))
    assert found.status is grpc.StatusCode.UNIMPLEMENTED
    assert found.message == message


def test_each_part_marked_so_in_the_contract_is_refused() -> None:
    """The contract's own words are the list: a field that says "Not supported yet" and is not refused is a bug."""
    names = {
        message.split(":")[0].removeprefix("spec.").replace("[0]", "").split(".")[-1] for _, message in LATER
    }
    assert names >= {
        "scaling",
    }


def test_all_faults_of_a_kind_are_told_at_once() -> None:
    found = refusal(
        deployment(
            replicas=-1, resources={"memory": "x", "gpus": -1, "cpus": -1, "nodes": -1}, engine={"name": "x"}
        )
    )
    assert [violation.field for violation in found.violations] == [
        "spec.engine.name",
        "spec.replicas",
        "spec.resources.gpus",
        "spec.resources.cpus",
        "spec.resources.memory",
        "spec.resources.nodes",
    ]
    assert found.message.startswith(
        "6 fields cannot be as they are: spec.engine.name: must be vllm or standin"
    )
    assert found.message.endswith("; and 1 more")


@pytest.mark.parametrize("name", ["", "A", "1a", "a-", "a" * 41, "a.b", "a\n", "a\0"])
def test_a_bad_name(name: str) -> None:
    with pytest.raises(Refused) as caught:
        validate.check_name(metadata_pb2.Metadata(name=name))
    assert caught.value.message.startswith("metadata.name: must be 1 to 40 characters: lower-case letters")


def test_line_ends_are_for_arguments_and_variables() -> None:
    validate.check_deployment(
        deployment(engine={"args": ["--chat-template", "{{ a }}\n\tb"], "env": {"A": "x\ny"}})
    )


def test_warnings_say_what_is_probably_not_meant() -> None:
    wish = deployment(placements=[{"time_limit": "10m", "options": {"bogus": "1", "nice": "5"}}])
    validate.check_deployment(wish)
    assert validate.warnings(wish) == [
        'spec.placements[0].time_limit: "10m" is not longer than the 1800 s that a replica may take to become ready'
        " (spec.probes.startup_timeout_s)",
        'spec.placements[0].options["bogus"]: is no option of sbatch that this release knows of',
    ]


def test_any_request_may_hold_no_nul() -> None:
    with pytest.raises(Refused) as caught:
        validate.check(deployment_pb2.GetDeploymentRequest(name="a\0b"))
    assert caught.value.message == "name: must not have the control character \\x00"


def test_a_report_without_a_phase() -> None:
    with pytest.raises(Refused) as caught:
        validate.check(runtime_pb2.ReportRequest(attempt="t"))
    assert caught.value.status is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.violations[0].field == "phase"


def test_a_request_of_too_many_parts_is_looked_through_by_nobody() -> None:
    crowd = deployment_pb2.ApplyDeploymentRequest()
    crowd.deployment.spec.engine.args.extend(["\0"] * (contract.MAX_PARTS + 1))
    with pytest.raises(Refused, match=f"the message has more than {contract.MAX_PARTS} parts$"):
        validate.check_around(crowd)
