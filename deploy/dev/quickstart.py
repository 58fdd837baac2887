"""`make quickstart`: a Slurm cluster, Penstock and a model on this machine, from nothing to a streamed
answer.

Everything lives in `.quickstart/` in the checkout, but for what is costly to build (the engine, the model),
which is kept in the user's cache. Each step does nothing when it is done already, so that the second call
takes seconds. `down` stops what `up` started, and nothing else: the cluster and the daemon know their own
processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".quickstart"
CLUSTER = FOLDER / "cluster"
if len(str(CLUSTER)) > 70:  # Slurm's sockets would not fit: a short place of this checkout's own.
    CLUSTER = Path(tempfile.gettempdir()) / f"penstock-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]}"
PENSTOCK = [str(ROOT / ".venv/bin/penstock")]
MANIFEST = "deploy/examples/smollm2.yaml"
NAME = "smollm2"
QUESTION = "What is the capital of France? Answer in one short sentence."

READY_WITHIN_S = 600
"""Cold, on two busy cores, the engine takes a minute and a half to import itself."""
DAEMON_WITHIN_S = 60
STOP_WITHIN_S = 60

console = Console(highlight=False)


class Failure(Exception):
    """The quickstart cannot go on; the message says what to do."""


def up() -> None:
    """Brings everything up and shows an answer."""
    began = time.monotonic()
    FOLDER.mkdir(mode=0o711, exist_ok=True)
    with step("the engine and the model (the first time: some minutes)"):
        parts = engine()
    with step("a Slurm cluster of two nodes"):
        conf = cluster_up()
    server = daemon_up(conf)
    with step(f"penstock apply -f {MANIFEST}"):
        link("engine", Path(parts["engine"]))
        link("models", Path(parts["model:SmolLM2-135M-Instruct"]).parent)
        penstock(server, "apply", "-f", MANIFEST)
    wait_ready(server)
    console.print(f"\n[bold]ready after {time.monotonic() - began:.0f} s[/bold]")
    show(server, "chat", NAME, QUESTION, "--temperature", "0", "--max-tokens", "64")
    show(server, "why", NAME)
    console.print(next_steps(server), soft_wrap=True)


def down() -> None:
    """Stops everything that `up` started."""
    with step("Penstock"):
        daemon_down()
    with step("the Slurm cluster"):
        if CLUSTER.exists():
            run([sys.executable, "-m", "deploy.cluster", "down", "--root", str(CLUSTER)])


@contextmanager
def step(title: str) -> Iterator[None]:
    """Shows what is being done, and how long it took."""
    began = time.monotonic()
    with console.status(title):
        yield
    console.print(f"[green]✓[/green] {title} [dim]{time.monotonic() - began:.1f} s[/dim]")


def engine() -> dict[str, str]:
    command = [sys.executable, "deploy/engine/environment.py", "--json", "--progress"]
    done = subprocess.run(
        [*command, "--only", "engine", "--only", "model:SmolLM2-135M-Instruct"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise Failure("the engine's environment could not be made; the reason stands above")
    parts: dict[str, str] = json.loads(done.stdout)
    return parts


def cluster_up() -> str:
    done = run([sys.executable, "-m", "deploy.cluster", "up", "--root", str(CLUSTER)])
    return next(line.partition("=")[2] for line in done.splitlines() if line.startswith("export SLURM_CONF="))


def link(name: str, target: Path) -> None:
    """A name in `.quickstart/` for something in the cache, so that the manifest's paths are the same
    everywhere."""
    path = FOLDER / name
    if path.is_symlink() and path.readlink() == target:
        return
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def daemon_up(conf: str) -> str:
    """Starts `penstock serve` unless it runs, and waits until it answers. Returns its address."""
    noted = daemon()
    if noted is not None:
        server: str = noted["server"]
        return server
    server = f"127.0.0.1:{free_port()}"
    config = FOLDER / "penstock.toml"
    config.write_text(
        f'state_dir = "{FOLDER / "state"}"\nlisten = "{server}"\nslurm_conf = "{conf}"\ntick_interval_s = 2.0\n'
    )
    with step(f"penstock serve, at {server}"):
        command = [*PENSTOCK, "serve", "--config", str(config)]
        with (FOLDER / "serve.log").open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        created = psutil.Process(process.pid).create_time()
        note = {"pid": process.pid, "created": created, "server": server}
        (FOLDER / "daemon.json").write_text(json.dumps(note))
        wait_until(lambda: answers(server, process), DAEMON_WITHIN_S, f"see {FOLDER / 'serve.log'}")
    return server


def answers(server: str, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        raise Failure(f"penstock serve ended with {process.returncode}; see {FOLDER / 'serve.log'}")
    return penstock_try(server, "get", "deployments") is not None


def daemon() -> dict[str, Any] | None:
    """What is noted of the daemon, if that very process runs."""
    try:
        noted: dict[str, Any] = json.loads((FOLDER / "daemon.json").read_text())
        process = psutil.Process(noted["pid"])
        same = abs(process.create_time() - noted["created"]) < 0.01
        return noted if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return None


def daemon_down() -> None:
    noted = daemon()
    if noted is None:
        return
    # Its jobs end with the cluster; deleted, they are not missed when the cluster comes back.
    penstock_try(noted["server"], "delete", NAME, "--force", "--wait")
    process = psutil.Process(noted["pid"])
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_WITHIN_S)
    except psutil.TimeoutExpired:
        raise Failure(
            f"penstock serve (pid {process.pid}) does not stop; see {FOLDER / 'serve.log'}"
        ) from None
    (FOLDER / "daemon.json").unlink()


def wait_ready(server: str) -> None:
    """Waits for the first ready replica, showing what it waits for."""
    deadline = time.monotonic() + READY_WITHIN_S
    began = time.monotonic()
    with console.status("waiting for the model") as status:
        while True:
            text = penstock(server, "get", "deployments", NAME, "-o", "json")
            conditions = json.loads(text).get("status", {}).get("conditions", [])
            ready: dict[str, str] = next((entry for entry in conditions if entry["type"] == "Ready"), {})
            if ready.get("status") == "CONDITION_STATUS_TRUE":
                break
            if time.monotonic() > deadline:
                raise Failure(f"not ready after {READY_WITHIN_S} s: {ready.get('message', 'no word yet')}")
            status.update(f"{ready.get('message', 'waiting for the model')}")
            time.sleep(0.5)
    console.print(f"[green]✓[/green] {ready['message']} [dim]{time.monotonic() - began:.1f} s[/dim]")


def show(server: str, *arguments: str) -> None:
    """Runs a command as the user would, its output going straight to the terminal."""
    words = " ".join(f'"{word}"' if " " in word else word for word in arguments)
    console.print(f"\n[bold]$ penstock {words}[/bold]", soft_wrap=True)
    sys.stdout.flush()
    done = subprocess.run([*PENSTOCK, *arguments], cwd=ROOT, env=environment(server))
    if done.returncode:
        raise Failure(f"penstock {arguments[0]} ended with {done.returncode}")


def penstock(server: str, *arguments: str) -> str:
    done = subprocess.run(
        [*PENSTOCK, *arguments], cwd=ROOT, env=environment(server), capture_output=True, text=True
    )
    if done.returncode:
        raise Failure(f"penstock {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def penstock_try(server: str, *arguments: str) -> str | None:
    try:
        return penstock(server, *arguments)
    except Failure:
        return None


def environment(server: str) -> dict[str, str]:
    return {**os.environ, "PENSTOCK_SERVER": server}


def run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise Failure(done.stderr.strip() or f"{command} ended with {done.returncode}")
    return done.stdout


def wait_until(holds: Any, within_s: float, otherwise: str) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            raise Failure(f"not after {within_s:.0f} s; {otherwise}")
        time.sleep(0.2)


def free_port() -> int:
    """8600 where nobody has it, else any."""
    for port in (8600, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            chosen: int = probe.getsockname()[1]
            return chosen
    raise Failure("no port of 127.0.0.1 is free")


def next_steps(server: str) -> str:
    lines = [
        "",
        "[bold]Go on with[/bold]",
        f"  export PATH={ROOT / '.venv/bin'}:$PATH PENSTOCK_SERVER={server} SLURM_CONF={CLUSTER / 'slurm.conf'}",
        f"  penstock chat {NAME}                      talk to the model",
        "  penstock get replicas                     what runs where; squeue shows the same jobs",
        "  penstock apply -f deploy/examples/standin.yaml",
        "  penstock scale standin --replicas 3",
        "  penstock events --follow                  what the controller decides, and why",
        f"  penstock logs {NAME}-1 --follow           the engine's output",
        "  make quickstart-down                      stop it all",
    ]
    return "\n".join(lines)


def main() -> int:
    try:
        {"up": up, "down": down}[sys.argv[1]]()
    except Failure as failure:
        console.print(f"[red]✗ {failure}[/red]", markup=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
