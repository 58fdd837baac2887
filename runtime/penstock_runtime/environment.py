"""Where the engine's program comes from: the job's PATH, a virtual environment, modules, Apptainer, or Pyxis.

Pure: what is to run and where, in; the process to start, out. The agent itself is never inside: it is Penstock's own
Python, and starts the engine from without; a folder that both see has what they share. Which engine it is, is not
known here.

    nothing     argv as it is
    venv        argv as it is, the folder's bin first on the PATH
    module      bash, which loads the modules and becomes the program
    Apptainer   apptainer exec, a process of this node like any other
    Pyxis       srun --container-image, a step of this job on this node

The rules guarded here: variables never stand on a command line, where everyone on the node can read them; what leads to
the agent's own packages does not lead the engine there; and a container sees the model, its caches and the shared
folder under the paths that they have outside.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from penstock_runtime.config import ApptainerConfig, EnvironmentConfig, ModuleConfig, PyxisConfig
from penstock_runtime.steps import srun

CACHE_VARIABLES = (
    "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR",
    "VLLM_CACHE_ROOT", "XDG_CACHE_HOME",
)  # fmt: skip
"""Variables that name a folder which an engine writes to, and which should outlive a container."""
AGENTS_OWN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""Variables that lead to the agent's packages."""
HANDED_ON = "PENSTOCK_SET_"
"""Before the names of variables that are set once the modules are loaded, so that the manifest has the last word."""
PID_NAME = "engine.pid"


@dataclass(frozen=True, slots=True)
class Host:
    """What of the node matters."""

    inherited: Mapping[str, str]
    # `apptainer`, or `singularity` where only that is there.
    apptainer: str = "apptainer"
    # `--nv` or `--rocm`; empty without GPUs.
    gpu_flag: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """What is to run, as the environment itself would call it."""

    argv: tuple[str, ...]
    # Set for it, over whatever it inherits.
    variables: Mapping[str, str]
    # A folder that it shares with the agent: its door's.
    shared: str
    # A folder or file that it reads; empty for none.
    model: str = ""
    # Folders that it reads too.
    adapters: tuple[str, ...] = ()
    # A folder that its Python is to import from first; empty for none.
    python_path: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """A process to start. `env` is the whole environment, not an addition."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    # Paths that must be there -> the sentence for when one is not.
    needs: Mapping[str, str] = field(default_factory=dict)
    # Folders that are made where they are not there yet.
    makes: tuple[str, ...] = ()
    # See child.Child.
    pid_file: str = ""


def command(program: Program, environment: EnvironmentConfig, host: Host) -> Command:
    """The process that runs `program`. Raises ValueError for paths that a container's options cannot carry."""
    needs = {program.model: f"the model {program.model} is not there"} if program.model else {}
    if environment.module is not None:
        return _with_modules(program, environment.module, host, needs)
    if environment.apptainer is not None:
        return _in_apptainer(program, environment.apptainer, host, needs)
    if environment.pyxis is not None:
        return _in_pyxis(program, environment.pyxis, host, needs)
    env = {**host.inherited, **program.variables}
    if environment.venv:
        env = {**_foreign(host.inherited), **_venv(environment.venv, host.inherited), **program.variables}
    if program.python_path:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (program.python_path, env.get("PYTHONPATH"))))
    return Command(program.argv, env, needs)


def _with_python_path(program: Program) -> tuple[str, ...]:
    """Its argv where the PYTHONPATH that it adds to is known only inside."""
    if not program.python_path:
        return program.argv
    script = 'export PYTHONPATH="$0${PYTHONPATH:+:$PYTHONPATH}"; exec "$@"'
    return ("sh", "-c", script, program.python_path, *program.argv)


def _foreign(inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment for another Python than the agent's."""
    return {name: value for name, value in inherited.items() if name not in AGENTS_OWN}


def _venv(venv: str, inherited: Mapping[str, str]) -> dict[str, str]:
    path = f"{PurePosixPath(venv) / 'bin'}{os.pathsep}{inherited.get('PATH', os.defpath)}"
    return {"VIRTUAL_ENV": venv, "PATH": path}


def _with_modules(program: Program, module: ModuleConfig, host: Host, needs: Mapping[str, str]) -> Command:
    script = _module_script(module)
    env = _foreign(host.inherited) | {HANDED_ON + name: value for name, value in program.variables.items()}
    shell = ("bash", "--noprofile", "--norc", "-c", script, "penstock-engine")
    return Command((*shell, *_with_python_path(program)), env, needs)


def _module_script(module: ModuleConfig) -> str:
    """Sites define `module` for login shells; a user's own profile is left alone, since it may do anything."""
    load = "module load " + shlex.join(module.load)
    lines = [
        "command -v module >/dev/null || . /etc/profile",
        'fail() { echo "penstock: $1" >&2; exit 78; }',
        'command -v module >/dev/null || fail "this node has no command module, not even after /etc/profile"',
        *(f"module use {shlex.quote(folder)}" for folder in module.use),
        f"{load} || fail {shlex.quote(f'{load} failed')}",
    ]
    if module.venv:
        folder = shlex.quote(module.venv)
        lines.append(f'export VIRTUAL_ENV={folder} PATH={folder}/bin:"$PATH"')
    lines += [
        f'for name in ${{!{HANDED_ON}@}}; do export "${{name#{HANDED_ON}}}=${{!name}}"; unset "$name"; done',
        'exec "$@"',
    ]
    return "\n".join(lines)


def _in_apptainer(
    program: Program, apptainer: ApptainerConfig, host: Host, needs: Mapping[str, str]
) -> Command:
    variables = {"PYTHONNOUSERSITE": "1", **program.variables}
    caches = _caches(host.inherited, variables)
    binds = (*_folders(program, caches), *apptainer.binds)
    # With this beginning they win over what the image itself sets.
    prefix = "SINGULARITYENV_" if PurePosixPath(host.apptainer).name == "singularity" else "APPTAINERENV_"
    env = _foreign(host.inherited) | {prefix + name: value for name, value in variables.items()}
    argv = (
        host.apptainer,
        "exec",
        *((host.gpu_flag,) if host.gpu_flag else ()),
        *(word for bind in binds for word in ("--bind", bind)),
        "--pwd",
        program.shared,
        apptainer.image,
        *_with_python_path(program),
    )
    return Command(argv, env, {**_image(apptainer.image, "apptainer"), **needs}, caches)


def _in_pyxis(program: Program, pyxis: PyxisConfig, host: Host, needs: Mapping[str, str]) -> Command:
    variables = {"PYTHONNOUSERSITE": "1", **program.variables}
    caches = _caches(host.inherited, variables)
    mounts = (*_folders(program, caches), *pyxis.mounts)
    node = host.inherited.get("SLURMD_NODENAME", "")
    pid_file = f"{program.shared}/{PID_NAME}"
    argv = (
        *srun(host.inherited, nodes=1, where=f"--nodelist={node}"),
        f"--container-image={pyxis.image}",
        f"--container-mounts={','.join(mounts)}",
        f"--container-workdir={program.shared}",
        # Over what the image sets; names alone, their values come from srun's own environment.
        f"--container-env={','.join(sorted(variables))}",
        "--no-container-entrypoint",
        # srun answers SIGTERM by killing; with its pid the engine can be told itself.
        "sh",
        "-c",
        'echo $$ >"$0" && exec "$@"',
        pid_file,
        *_with_python_path(program),
    )
    env = _foreign(host.inherited) | variables
    return Command(argv, env, {**_image(pyxis.image, "pyxis"), **needs}, caches, pid_file)


def _image(image: str, kind: str) -> dict[str, str]:
    if not image.startswith("/"):
        return {}
    return {image: f"the container image {image} (spec.environment.{kind}.image) is not there"}


def _caches(inherited: Mapping[str, str], variables: Mapping[str, str]) -> tuple[str, ...]:
    named = (({**inherited, **variables}).get(name, "") for name in CACHE_VARIABLES)
    return tuple(dict.fromkeys(folder for folder in named if folder.startswith("/")))


def _folders(program: Program, caches: Sequence[str]) -> tuple[str, ...]:
    """Bind mounts, `source:target[:ro]`. Devices are there anyway."""
    read_only = [_whole_model(path) for path in (program.model, *program.adapters) if path]
    for path in (program.shared, *read_only, *caches):
        if ":" in path or "," in path:
            raise ValueError(f"{path!r} cannot be mounted into a container: it has a colon or a comma")
    mounts = [f"{path}:{path}" for path in (program.shared, *caches)]
    mounts += [f"{path}:{path}:ro" for path in dict.fromkeys(read_only) if not path.startswith("/dev/")]
    return tuple(mounts)


def _whole_model(model: str) -> str:
    """What a container must see of the model. In the hub's cache a snapshot is links to ../../blobs.

    >>> _whole_model("/hf/models--a--b/snapshots/c0ffee"), _whole_model("/models/a")
    ('/hf/models--a--b', '/models/a')
    """
    path = PurePosixPath(model)
    return str(path.parent.parent) if path.parent.name == "snapshots" else model
