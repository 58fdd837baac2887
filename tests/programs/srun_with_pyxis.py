"""`srun` as it is where Pyxis is installed, for machines without it: first on the PATH, it takes Pyxis's options.

A command without `--container-image` is srun's own. With it, the options are checked as Pyxis and enroot would (an
image and mounts that are there, a working folder that is mounted, variables that are set), written down, and the real
srun is given the rest. The container is played: a folder with a `bin`, first on the PATH, every mount where it was.
"""

import json
import os
import shutil
import sys
from pathlib import Path


def main() -> None:
    mine = Path(sys.argv[0]).resolve().parent
    path = os.pathsep.join(
        part for part in os.environ["PATH"].split(os.pathsep) if Path(part).resolve() != mine
    )
    srun = shutil.which("srun", path=path)
    assert srun is not None
    given = sys.argv[1:]
    pyxis = dict(
        word[2:].partition("=")[::2] for word in given if word.startswith(("--container-", "--no-container-"))
    )
    if "container-image" not in pyxis:
        os.execv(srun, [srun, *given])
    begin = next(index for index, word in enumerate(given) if not word.startswith("--"))
    options = [word for word in given[:begin] if word[2:].partition("=")[0] not in pyxis]
    image = Path(pyxis["container-image"])
    mounts = [mount.split(":") for mount in pyxis["container-mounts"].split(",")]
    problems = [f"no image {image}"] if not (image / "bin").is_dir() else []
    problems += [f"no mount source {mount[0]}" for mount in mounts if not os.path.exists(mount[0])]
    problems += [f"not one folder: {mount}" for mount in mounts if mount[0] != mount[1]]
    if pyxis["container-workdir"] not in [mount[1] for mount in mounts]:
        problems.append(f"no folder {pyxis['container-workdir']} in the container")
    problems += [f"{name} is not set" for name in pyxis["container-env"].split(",") if name not in os.environ]
    if problems:
        sys.exit("pyxis: " + "; ".join(problems))
    (image / "asked.json").write_text(
        json.dumps({"options": options, "pyxis": pyxis, "command": given[begin:]})
    )
    inside = ["env", f"PATH={image}/bin:{path}", *given[begin:]]
    os.execv(srun, [srun, *options, f"--chdir={pyxis['container-workdir']}", *inside])


main()
