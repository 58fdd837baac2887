"""The commands that start an engine in each environment, and on each node of several: golden, word by word."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from penstock_runtime.config import (
    AgentConfig,
    ApptainerConfig,
    EngineConfig,
    EnvironmentConfig,
    ModelConfig,
    ModuleConfig,
    PyxisConfig,
)
from penstock_runtime.engine import Launch, Rank, launch
from penstock_runtime.environment import Command, Host, Program, command
from penstock_runtime.ranks import step
from penstock_runtime.starting import this_host
from penstock_runtime.steps import srun
from tests.engines import PaperDoor

INHERITED = {
    "PATH": "/usr/bin",
    "HOME": "/home/u",
    "PYTHONPATH": "/agent",
    "VIRTUAL_ENV": "/agent",
    "SLURM_JOB_ID": "7",
    "SLURMD_NODENAME": "gpu3",
    "SLURM_CPUS_PER_TASK": "16",
    "CUDA_VISIBLE_DEVICES": "0,1",
    "HF_HOME": "/scratch/hf",
}
SERVE = ("vllm", "serve", "/models/x", "--served-model-name", "x")
DOOR = PaperDoor("/tmp/penstock-x", "0.0.0.0")
DOOR_ARGS = (
    *("--host", "0.0.0.0", "--port", "99", "--middleware", "penstock_engine_door.Guard"),
    "--disable-uvicorn-access-log",
)
# What a module or an image sets itself stays behind the door's folder.
WITH_PATH = ("sh", "-c", 'export PYTHONPATH="$0${PYTHONPATH:+:$PYTHONPATH}"; exec "$@"', "/tmp/penstock-x")


def started(
    environment: EnvironmentConfig, *, gpu_flag: str = "--nv", model: str = "/models/x", **env: str
) -> Launch:
    return launch(
        EngineConfig(args=("--max-model-len", "8192"), env=env),
        environment,
        ModelConfig(path=model),
        served_names=("x",),
        door=DOOR,
        host=Host(INHERITED, gpu_flag=gpu_flag),
    )


def test_apptainer() -> None:
    environment = EnvironmentConfig(apptainer=ApptainerConfig("/images/vllm.sif", ("/data:/data:ro",)))
    found = started(environment, VLLM_CACHE_ROOT="/scratch/vllm", HF_TOKEN="hf_secret").command
    assert found.argv == (
        *("apptainer", "exec", "--nv"),
        *("--bind", "/tmp/penstock-x:/tmp/penstock-x"),
        *("--bind", "/scratch/hf:/scratch/hf"),
        *("--bind", "/scratch/vllm:/scratch/vllm"),
        *("--bind", "/models/x:/models/x:ro"),
        *("--bind", "/data:/data:ro"),
        *("--pwd", "/tmp/penstock-x", "/images/vllm.sif"),
        *(*WITH_PATH, *SERVE, *DOOR_ARGS, "--max-model-len", "8192"),
    )
    ours = {name: value for name, value in found.env.items() if name not in INHERITED}
    assert ours == {
        "APPTAINERENV_PYTHONNOUSERSITE": "1",
        "APPTAINERENV_PYTHONUNBUFFERED": "1",
        "APPTAINERENV_VLLM_NO_USAGE_STATS": "1",
        "APPTAINERENV_DO_NOT_TRACK": "1",
        "APPTAINERENV_HF_HUB_OFFLINE": "1",
        "APPTAINERENV_TRANSFORMERS_OFFLINE": "1",
        "APPTAINERENV_VLLM_CACHE_ROOT": "/scratch/vllm",
        "APPTAINERENV_HF_TOKEN": "hf_secret",
        "APPTAINERENV_PENSTOCK_ENGINE_DOOR": "/tmp/penstock-x/door.json",
    }
    assert set(INHERITED) - set(found.env) == {"PYTHONPATH", "VIRTUAL_ENV"}
    assert found.makes == ("/scratch/hf", "/scratch/vllm")
    assert list(found.needs) == ["/images/vllm.sif", "/models/x"]
    assert found.pid_file == ""


def test_singularity_stands_in_for_apptainer() -> None:
    program = Program(("vllm",), {"A": "b"}, "/s")
    environment = EnvironmentConfig(apptainer=ApptainerConfig("/i.sif"))
    found = command(program, environment, Host({}, "singularity", "--rocm"))
    assert found.argv[:3] == ("singularity", "exec", "--rocm")
    assert found.env == {"SINGULARITYENV_PYTHONNOUSERSITE": "1", "SINGULARITYENV_A": "b"}


def test_a_container_sees_the_adapters() -> None:
    program = Program(("vllm",), {}, "/s", model="/m", adapters=("/l/a", "/l/b", "/m"))
    found = command(program, EnvironmentConfig(apptainer=ApptainerConfig("/i.sif")), Host({}, "apptainer"))
    mounts = [word for word in found.argv if word.endswith(":ro")]
    assert mounts == ["/m:/m:ro", "/l/a:/l/a:ro", "/l/b:/l/b:ro"]


def test_what_of_a_node_matters(tmp_path: Path) -> None:
    def host(gpus: int, *programs: str) -> Host:
        for name in programs:
            (tmp_path / name).touch(mode=0o755)
        config = AgentConfig("t", "d", "d-1", 1, ("h:1",), EngineConfig(), ModelConfig(), ("d",), gpus=gpus)
        return this_host(config, {"PATH": str(tmp_path)})

    assert host(0).apptainer == "apptainer"
    assert host(0, "singularity").apptainer == "singularity"
    assert host(0, "apptainer").apptainer == "apptainer"
    assert host(0).gpu_flag == ""
    assert host(1).gpu_flag in ("--nv", "--rocm")


def test_pyxis() -> None:
    environment = EnvironmentConfig(
        pyxis=PyxisConfig("nvcr.io#nvidia/vllm:25.09-py3", ("/data:/data:ro+rprivate",))
    )
    found = started(environment, HF_TOKEN="hf_secret").command
    assert found.argv == (
        *(
            "srun",
            "--nodes=1",
            "--ntasks=1",
            "--ntasks-per-node=1",
            "--nodelist=gpu3",
            "--cpus-per-task=16",
            "--mem=0",
        ),
        *("--overlap", "--export=ALL", "--input=none", "--unbuffered", "--mpi=none", "--kill-on-bad-exit=1"),
        "--container-image=nvcr.io#nvidia/vllm:25.09-py3",
        "--container-mounts=/tmp/penstock-x:/tmp/penstock-x,/scratch/hf:/scratch/hf,/models/x:/models/x:ro"
        ",/data:/data:ro+rprivate",
        "--container-workdir=/tmp/penstock-x",
        "--container-env=DO_NOT_TRACK,HF_HUB_OFFLINE,HF_TOKEN,PENSTOCK_ENGINE_DOOR,PYTHONNOUSERSITE,PYTHONUNBUFFERED"
        ",TRANSFORMERS_OFFLINE,VLLM_NO_USAGE_STATS",
        "--no-container-entrypoint",
        *("sh", "-c", 'echo $$ >"$0" && exec "$@"', "/tmp/penstock-x/engine.pid"),
        *(*WITH_PATH, *SERVE, *DOOR_ARGS, "--max-model-len", "8192"),
    )
    assert found.env["HF_TOKEN"] == "hf_secret"
    assert "PYTHONPATH" not in found.env
    # An image of a registry is nobody's file.
    assert list(found.needs) == ["/models/x"]
    assert found.pid_file == "/tmp/penstock-x/engine.pid"


SCRIPT = """\
command -v module >/dev/null || . /etc/profile
fail() { echo "penstock: $1" >&2; exit 78; }
command -v module >/dev/null || fail "this node has no command module, not even after /etc/profile"
module use /sw/modules
module load cuda/12.8 vllm/0.32 || fail 'module load cuda/12.8 vllm/0.32 failed'
export VIRTUAL_ENV=/opt/vllm PATH=/opt/vllm/bin:"$PATH"
for name in ${!PENSTOCK_SET_@}; do export "${name#PENSTOCK_SET_}=${!name}"; unset "$name"; done
exec "$@\""""


def test_modules() -> None:
    modules = ModuleConfig(("cuda/12.8", "vllm/0.32"), ("/sw/modules",), "/opt/vllm")
    found = started(EnvironmentConfig(module=modules), HF_TOKEN="hf_secret").command
    assert found.argv[:6] == ("bash", "--noprofile", "--norc", "-c", SCRIPT, "penstock-engine")
    # Without the distribution that brings the command, its module is run.
    module = ("/opt/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--model", "/models/x")
    assert found.argv[6:15] == (*WITH_PATH, *module)
    assert found.env["PENSTOCK_SET_HF_TOKEN"] == "hf_secret"
    assert "PYTHONPATH" not in found.env


def test_modules_without_a_virtual_environment() -> None:
    found = started(EnvironmentConfig(module=ModuleConfig(("vllm",)))).command
    assert found.argv[6:] == (*WITH_PATH, *SERVE, *DOOR_ARGS, "--max-model-len", "8192")
    assert "VIRTUAL_ENV" not in found.argv[4]


@pytest.mark.parametrize(
    "environment",
    [
        EnvironmentConfig(venv="/opt/vllm"),
        EnvironmentConfig(module=ModuleConfig(("vllm",))),
        EnvironmentConfig(apptainer=ApptainerConfig("/i.sif")),
        EnvironmentConfig(pyxis=PyxisConfig("/i.sqsh")),
    ],
)
def test_what_the_manifest_sets_stands_on_no_command_line(environment: EnvironmentConfig) -> None:
    found = started(environment, HF_TOKEN="hf_secret").command
    assert not [word for word in found.argv if "hf_secret" in word]
    assert "hf_secret" in found.env.values()


def test_a_snapshot_of_the_hubs_cache_is_seen_with_its_blobs() -> None:
    environment = EnvironmentConfig(apptainer=ApptainerConfig("/i.sif"))
    argv = started(environment, model="/hf/models--a--b/snapshots/c0ffee").command.argv
    assert "/hf/models--a--b:/hf/models--a--b:ro" in argv


@pytest.mark.parametrize("path", ["/models/a:b", "/models/a,b"])
def test_a_path_that_no_container_option_can_carry(path: str) -> None:
    with pytest.raises(ValueError, match="it has a colon or a comma"):
        started(EnvironmentConfig(apptainer=ApptainerConfig("/i.sif")), model=path)


@pytest.mark.parametrize(
    ("modules", "said"),
    [(("there",), "hello from /there"), (("missing",), "penstock: module load missing failed")],
)
def test_the_modules_script_does_what_it_says(tmp_path: Path, modules: tuple[str, ...], said: str) -> None:
    """With a `module` of our own; tests/integration has a real one."""
    own = tmp_path / "own"
    own.write_text('module() { [ "$2" = there ] && export FROM="/$2" A=module; }\n')
    program = Program(("bash", "-c", 'echo "hello from $FROM"; [ "$A" = manifest ]'), {"A": "manifest"}, "/s")
    found = command(
        program, EnvironmentConfig(module=ModuleConfig(modules)), Host({"PATH": os.environ["PATH"]})
    )
    argv = [word.replace(". /etc/profile", f". {own}") for word in found.argv]
    done = subprocess.run(argv, env=dict(found.env), capture_output=True, text=True, timeout=20)
    assert said in done.stdout + done.stderr
    assert done.returncode == (0 if modules == ("there",) else 78)


# --- Several nodes.


def of_rank(number: int, environment: EnvironmentConfig | None = None) -> Command:
    rank = Rank(2, number, "10.0.0.1", 29777, f"10.0.0.{number + 1}")
    sizes = ("--tensor-parallel-size", "8", "--pipeline-parallel-size", "2")
    return launch(
        EngineConfig(args=sizes),
        environment or EnvironmentConfig(),
        ModelConfig(path="/models/x"),
        served_names=("x",),
        door=DOOR if number == 0 else DOOR.folder,
        host=Host(INHERITED, gpu_flag="--nv"),
        rank=rank,
    ).command


def test_vllm_on_two_nodes() -> None:
    """As vLLM's own documentation has it: the same command on each node, `--headless` on all but the first."""
    meeting = ("--master-addr", "10.0.0.1", "--master-port", "29777")
    sizes = ("--tensor-parallel-size", "8", "--pipeline-parallel-size", "2")
    assert of_rank(0).argv == (*SERVE, *DOOR_ARGS, "--nnodes", "2", "--node-rank", "0", *meeting, *sizes)
    assert of_rank(1).argv == (*SERVE, "--nnodes", "2", "--node-rank", "1", *meeting, "--headless", *sizes)
    assert [of_rank(number).env["VLLM_HOST_IP"] for number in (0, 1)] == ["10.0.0.1", "10.0.0.2"]


def test_a_rank_in_a_container() -> None:
    found = of_rank(1, EnvironmentConfig(pyxis=PyxisConfig("/i.sqsh")))
    assert found.argv[0] == "srun"
    assert found.argv[-20:-9] == (
        *('echo $$ >"$0" && exec "$@"', "/tmp/penstock-x/engine.pid"),
        *(*SERVE, "--nnodes", "2", "--node-rank", "1"),
    )


def test_a_virtual_environment_whose_vllm_has_no_command_cannot_have_ranks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no distribution named vllm"):
        of_rank(0, EnvironmentConfig(venv=str(tmp_path)))


def test_the_step_with_the_other_nodes_agents() -> None:
    found = step(Rank(4, 0, "10.0.0.1", 29777, "10.0.0.1"), Path("/shared/tok"), 40123, INHERITED)
    assert found[:7] == (
        *(
            "srun",
            "--nodes=3",
            "--ntasks=3",
            "--ntasks-per-node=1",
            "--relative=1",
            "--cpus-per-task=16",
            "--mem=0",
        ),
    )
    assert found[:13] == srun(INHERITED, nodes=3, where="--relative=1")
    assert found[-6:] == ("-m", "penstock_runtime", "--folder", "/shared/tok", "--head", "10.0.0.1:40123")
