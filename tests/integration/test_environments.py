"""An engine from modules, in Apptainer and in Pyxis, on real Slurm: served, drained, and nothing left behind.

In each the `vllm` that is found is the stand-in, by the very command that would start vLLM. Modules and Apptainer are
real; Pyxis is played in front of the real srun (tests/programs/srun_with_pyxis.py), since it is in no package.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deploy.cluster import apptainer
from deploy.cluster.chroot import ChrootError
from deploy.cluster.cluster import Cluster
from tests.clusters import lane_missing
from tests.penstocks import Penstock, running, wait_until

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ROOT / "runtime"
PLAY = ROOT / "tests" / "programs" / "srun_with_pyxis.py"


@pytest.fixture(scope="module")
def site() -> Iterator[Path]:
    """The site's shared folders: a model, an image, module files, and programs for the PATH."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-site-"))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    program(folder / "image" / "bin" / "vllm", sys.executable, str(RUNTIME))
    program(folder / "software" / "bin" / "vllm", sys.executable, str(RUNTIME))
    module = folder / "modules" / "vllm" / "1"
    module.parent.mkdir(parents=True)
    module.write_text(
        f"#%Module\nprepend-path PATH {folder}/software/bin\nsetenv FROM_MODULE yes\nsetenv HF_HOME /of-the-module\n"
    )
    srun = folder / "programs" / "srun"
    srun.parent.mkdir()
    shutil.copy(PLAY, srun.with_name("play.py"))
    srun.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{srun.with_name("play.py")}" "$@"\n')
    srun.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def program(path: Path, python: str, runtime: str) -> None:
    """A `vllm` that is the stand-in: `vllm serve MODEL ...`."""
    path.parent.mkdir(parents=True)
    path.write_text(
        f'#!/bin/sh\nmodel="$2"; shift 2\nPYTHONPATH="{runtime}:$PYTHONPATH" exec "{python}"'
        ' -m penstock_runtime.standin --model "$model" "$@"\n'
    )
    path.chmod(0o755)


@pytest.fixture(scope="module")
def penstock(slurm_cluster: Cluster, site: Path) -> Iterator[Penstock]:
    """An installation whose jobs find the site's programs first."""
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{site}/programs:{apptainer.folder()}/bin:{before}"
    try:
        with running(slurm_cluster) as installation:
            yield installation
    finally:
        os.environ["PATH"] = before


def manifest(name: str, site: Path, environment: str, *, gpus: int = 1, nodes: int = 1) -> str:
    return f"""
apiVersion: penstock/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  model: {{path: {site}/model}}
  engine:
    args: [--tokens-per-second, "50"]
    env: {{HF_HOME: {site}/hf, HF_TOKEN: not-on-a-command-line}}
  environment: {environment}
  resources: {{gpus: {gpus}, nodes: {nodes}{", cpus: 1, memory: 256MiB" if nodes == 1 else ""}}}
  drain_timeout_s: 10
  restart: {{backoff_initial_s: 1, backoff_max_s: 4}}
"""


def engines(name: str) -> list[psutil.Process]:
    """The live stand-ins that serve this deployment."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "penstock_runtime.standin" in line and name in line:
            found.append(process)
    return found


def served_and_drained(penstock: Penstock, name: str, wanted: str, *, nodes: int = 1) -> list[dict[str, str]]:
    """From apply to nothing left; returns the engines' environments."""
    penstock.apply(wanted)
    try:
        penstock.wait_ready(name, 1)
        said = penstock.cli("chat", name, "one two", "--max-tokens", "5").stdout
        assert re.findall(r":(\d+)", said) == ["0", "1", "2", "3", "4"]
        running_now = engines(name)
        assert len(running_now) == nodes
        environments = [process.environ() for process in running_now]
        lines = [word for each in psutil.process_iter(["cmdline"]) for word in each.info["cmdline"] or []]
        assert not [word for word in lines if "not-on-a-command-line" in word]
        # An engine that dies is replaced, whoever is between it and its agent.
        token = penstock.get("replicas", f"{name}-1")["attempt"]["token"]
        os.kill(running_now[0].pid, signal.SIGKILL)
        wait_until(
            lambda: penstock.get("replicas", f"{name}-1")["attempt"]["token"] != token, 60, "it is replaced"
        )
        penstock.wait_ready(name, 1)
        last = engines(name)
        assert len(last) == nodes
    finally:
        penstock.cli("delete", name, "--wait")
    _, alive = psutil.wait_procs([*running_now, *last], timeout=60)
    assert not alive
    return environments


def test_modules(penstock: Penstock, site: Path) -> None:
    if not Path("/etc/profile.d/modules.sh").exists():
        lane_missing("NO MODULES: apt-get install environment-modules")
    wanted = manifest("by-module", site, f"{{module: {{use: [{site}/modules], load: [vllm/1]}}}}")
    shown = penstock.cli("apply", "-f", "-", "--dry-run", stdin=wanted).stdout
    assert "# The agent starts the engine vllm with the modules vllm/1." in shown
    (seen,) = served_and_drained(penstock, "by-module", wanted)
    assert seen["FROM_MODULE"] == "yes"
    assert seen["HF_HOME"] == f"{site}/hf"
    assert seen["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_module_that_is_not_there_is_told(penstock: Penstock, site: Path) -> None:
    if not Path("/etc/profile.d/modules.sh").exists():
        lane_missing("NO MODULES: apt-get install environment-modules")
    penstock.apply(manifest("no-module", site, "{module: {load: [no-such/1]}}"))
    try:
        said = "penstock: module load no-such/1 failed"
        wait_until(lambda: said in penstock.cli("logs", "no-module-1", check=False).stdout, 60, said)
        wait_until(
            lambda: "exit code 78" in penstock.cli("why", "no-module").stdout, 60, "the exit code is told"
        )
    finally:
        penstock.cli("delete", "no-module", "--wait")


def test_apptainer(penstock: Penstock, site: Path) -> None:
    try:
        made = apptainer.ensure()
    except ChrootError as error:
        lane_missing(f"NO APPTAINER: {error}")
    # The image's command and the stand-in come by bind mounts of the manifest's.
    path = site / "vllm"
    path.write_text(
        '#!/bin/sh\nmodel="$2"; shift 2\n[ -f "$model/config.json" ] || exit 5\n'
        '! touch "$model/x" 2>/dev/null || exit 6\n'
        'touch "$HF_HOME/written" || exit 7\n'
        'PYTHONPATH="/penstock-runtime:$PYTHONPATH" exec python3 -m penstock_runtime.standin --model "$model" "$@"\n'
    )
    path.chmod(0o755)
    binds = f'["{RUNTIME}:/penstock-runtime:ro", "{path}:/usr/local/bin/vllm:ro"]'
    wanted = manifest("by-apptainer", site, f"{{apptainer: {{image: {made.sandbox}, binds: {binds}}}}}")
    (seen,) = served_and_drained(penstock, "by-apptainer", wanted)
    assert seen["APPTAINER_CONTAINER"] == str(made.sandbox)
    assert seen["HF_HOME"] == f"{site}/hf"
    assert seen["CUDA_VISIBLE_DEVICES"] == "0"
    assert seen["PYTHONNOUSERSITE"] == "1"
    assert (site / "hf" / "written").exists()


@pytest.mark.parametrize("nodes", [1, 2])
def test_pyxis(penstock: Penstock, site: Path, nodes: int) -> None:
    name = f"by-pyxis-{nodes}"
    wanted = manifest(name, site, f"{{pyxis: {{image: {site}/image}}}}", gpus=2, nodes=nodes)
    environments = served_and_drained(penstock, name, wanted, nodes=nodes)
    assert sorted(each["SLURMD_NODENAME"] for each in environments) == ["node1", "node2"][:nodes]
    for seen in environments:
        assert seen["HF_HOME"] == f"{site}/hf"
        assert seen["CUDA_VISIBLE_DEVICES"] == "0,1"
        # A step of its own, beside the batch script's and the rank's agent's.
        assert seen["SLURM_STEP_ID"].isdigit()
        assert seen["SLURM_STEP_NUM_NODES"] == "1"
    asked = json.loads((site / "image" / "asked.json").read_text())
    assert f"{site}/model:{site}/model:ro" in asked["pyxis"]["container-mounts"].split(",")
    assert "no-container-entrypoint" in asked["pyxis"]


def test_an_image_that_is_not_there_is_refused(penstock: Penstock, site: Path) -> None:
    wanted = manifest("no-image", site, f"{{apptainer: {{image: {site}/vllm.sif}}}}")
    done = penstock.cli("apply", "-f", "-", stdin=wanted, check=False)
    assert done.returncode == 1
    assert (
        f"spec.environment.apptainer.image: there is no {site}/vllm.sif, though the folder {site}"
        in done.stderr
    )
