"""The composition root: the only file that knows every concrete class, and the processes that they make up.

    penstock serve ── supervisor ─┬─ embedded PostgreSQL   (where no database is configured)
                                  ├─ gateway               control API, Envoy's configuration, explanations
                                  ├─ Envoy                 the front door
                                  └─ controller            observe → plan → record → execute

Each is a process of its own; `python -m penstock.app controller|gateway` runs one by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import shlex
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import grpc

import penstock
from penstock import process
from penstock import settings as configuration
from penstock.controller.controller import Controller
from penstock.controller.execute import Executor
from penstock.controller.file_calls import FileCalls, FolderSilent
from penstock.controller.folders import AgentSettings, Folders
from penstock.controller.housekeeping import Housekeeping
from penstock.controller.lease import Lease
from penstock.controller.observe import Observer
from penstock.controller.reconcile import Reconciler
from penstock.controller.record import Recorder
from penstock.core.model import Deployment
from penstock.gateway import envoy
from penstock.gateway.door import FrontDoor
from penstock.gateway.follow import Follower
from penstock.gateway.settings import MIB, FrontDoorSettings, header_options
from penstock.rpc.api import add_servicers
from penstock.rpc.deps import Deps
from penstock.rpc.standing import prospect_of
from penstock.settings import Settings
from penstock.slurm.choose import choose
from penstock.slurm.port import Slurm
from penstock.slurm.script import JobPlan, script
from penstock.store import migrate
from penstock.store.clock import DatabaseClock, elapsed, host_time
from penstock.store.database import Database, is_outage
from penstock.store.embedded import EmbeddedServer, EmbeddedServerError
from penstock.store.queries import installation, members, runtime
from penstock.supervisor import Child, Supervisor, only_one

log = logging.getLogger("penstock")

DATABASE_RETRY_S = 1.0
DEAF_AFTER_S = 3 * members.BEAT_INTERVAL_S
"""Two beats in a row that failed: what agents, who report as often, said meanwhile may be lost."""
EMBEDDED_LOOK_S = 1.0
"""Between two looks whether the embedded PostgreSQL runs: a file is read and a pid asked for."""
MAX_MESSAGE_BYTES = 16 * 1024 * 1024


# Controller ------------------------------------------------------------------------------------------------


async def run_controller(settings: Settings) -> None:
    """The controller, until cancelled."""
    db = Database(_database_url(settings), application_name="penstock controller")
    slurm = await choose_slurm(settings)
    try:
        identity = await _await_database(db, settings)
        folders = Folders(_attempts_folder(settings, identity))
        await _make_root(folders)
        agents = AgentSettings(settings.control_addresses, settings.agent_bind, settings.agent_advertise)
        clock = DatabaseClock()
        lease = Lease(db, f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}", clock=clock)
        recorder = Recorder(identity, folders, agents, settings.agent_python)
        reconciler = Reconciler(
            db=db,
            installation=identity,
            observer=Observer(slurm, clock),
            recorder=recorder,
            executor=Executor(db, slurm, folders, clock),
            clock=clock,
            clock_off_s=lambda: clock.off_s,
            orphan_grace_s=settings.orphan_grace_s,
        )
        housekeeping = Housekeeping(db, folders, clock, timedelta(days=settings.retention_days))
        await Controller(db, lease, recorder, reconciler, housekeeping, settings.tick_interval_s).run()
    finally:
        await slurm.close()
        await db.close()


# Gateway ---------------------------------------------------------------------------------------------------


async def run_gateway(settings: Settings) -> None:
    """The control API and the front door's Python, until cancelled."""
    db = Database(_database_url(settings), application_name="penstock gateway")
    slurm = await choose_slurm(settings)
    door_settings = front_door_settings(settings)
    clock = DatabaseClock()
    try:
        identity = await _await_database(db, settings)
        door = FrontDoor(door_settings, lambda name, adapter: prospect_of(db, name, adapter, clock()))
        follower = Follower(door, lambda: _routing_state(db))
        deps = Deps(
            db=db,
            slurm=slurm,
            installation=identity,
            attempts_folder=_attempts_folder(settings, identity),
            version=penstock.__version__,
            clock=clock,
            render_script=lambda deployment: _script(settings, identity, deployment),
            on_routing_change=follower.changed,
            routing_applied=follower.applied,
            front_door_trouble=lambda: door.trouble,
            held_requests=lambda: door.held,
        )
        async with contextlib.AsyncExitStack() as stack:
            control = _server(door_settings.largest_headers_bytes)
            api = add_servicers(control, deps)
            await _serve(stack, control, door_settings.control)
            await door.start()
            stack.push_async_callback(door.stop)
            log.info("the control API is up; Envoy is told where everything is")
            async with asyncio.TaskGroup() as group:
                group.create_task(api.run(on_commit=follower.changed))
                group.create_task(follower.run())
                group.create_task(_need_listener(door, settings))
                group.create_task(_beat(db, door, door_settings, clock))
    except* configuration.SettingsError as errors:
        raise errors.exceptions[0] from None
    finally:
        await slurm.close()
        await db.close()


def front_door_settings(settings: Settings) -> FrontDoorSettings:
    """The front door's own settings."""
    folder = settings.run_folder
    return FrontDoorSettings(
        state_folder=folder,
        control=f"unix:{folder}/control.sock",
        gateway=f"unix:{folder}/gateway.sock",
        gateway_rest=f"unix:{folder}/rest.sock",
        xds=f"unix:{folder}/xds.sock",
        listen=settings.listen,
        runtime_listen=settings.runtime_listen,
        cors_origins=settings.cors_origins,
        # Agents call it too.
        hosts=settings.hosts
        and (*settings.hosts, *(address.rpartition(":")[0].lower() for address in settings.control)),
        max_heap_bytes=settings.envoy_memory_mib * MIB,
        worker_threads=settings.envoy_threads,
    )


def _server(largest_headers_bytes: int) -> grpc.aio.Server:
    return grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
            *header_options(largest_headers_bytes),
        ]
    )


async def _serve(stack: contextlib.AsyncExitStack, server: grpc.aio.Server, address: str) -> None:
    """Serves at a socket of our own user's until the stack is left."""
    server.add_insecure_port(address)
    await server.start()
    Path(address.removeprefix("unix:")).chmod(0o600)
    stack.push_async_callback(server.stop, 1.0)


async def _need_listener(door: FrontDoor, settings: Settings) -> None:
    """Raises SettingsError when the front door's very first try to listen fails: a daemon without a door is no use.

    A later failure is told by GetSystem instead, for then there are streams that would be cut.
    """
    if why := await door.taken_addresses():
        raise configuration.SettingsError(f"listen: the front door cannot be opened: {why}")


async def _beat(
    db: Database, door: FrontDoor, door_settings: FrontDoorSettings, clock: DatabaseClock
) -> None:
    """Says that agents' reports can be heard here, and keeps Envoy's log bounded."""
    identity = f"{socket.gethostname()}/{door_settings.state_folder}"
    trouble, beat_at = "", -math.inf
    while True:
        # Agents come through Envoy, and what they say is written down.
        deaf = bool(door.trouble) or elapsed() > beat_at + DEAF_AFTER_S
        try:
            async with db.transaction() as connection:
                await members.beat(connection, members.GATEWAY, identity, door_settings.listen, came=deaf)
                await clock.sync(connection)
            beat_at = elapsed()
        except Exception as error:
            if not is_outage(error):
                raise
        before, trouble = trouble, ""
        try:
            envoy.bound_log(door_settings)
        except OSError as error:  # A full disk; it is no reason to go without a front door.
            trouble = str(error)
        if trouble != before:
            log.warning("Envoy's log: %s", trouble or "bounded again")
        await asyncio.sleep(members.BEAT_INTERVAL_S)


async def _routing_state(db: Database) -> Any:
    async with db.snapshot() as connection:
        return await runtime.routing_state(connection)


async def _make_root(folders: Folders) -> None:
    """What cannot be made ends the controller, with its reason. A file server that hangs does not: there is more to do
    than submissions, and each of those makes the folder, too."""
    try:
        await FileCalls(folders.root).do(folders.make_root)
    except FolderSilent as silent:
        log.warning("%s; nothing is submitted until it answers", silent)


def _attempts_folder(settings: Settings, identity: str) -> Path:
    """This installation's own: several may share a file system, and each forgets only what is its own."""
    return settings.attempts_folder / identity


def _script(settings: Settings, identity: str, deployment: Deployment) -> str:
    folder = PurePosixPath(_attempts_folder(settings, identity) / "TOKEN")
    python = settings.agent_python
    name = f"{deployment.name}-N"
    job = JobPlan(identity, deployment.name, name, deployment.revision, "TOKEN", folder, python)
    return script(job, deployment.spec)


# All of it -------------------------------------------------------------------------------------------------


async def run_all(settings: Settings) -> None:
    """`penstock serve`: every process, kept alive until cancelled. Raises AlreadyRunning and Hopeless."""
    # PostgreSQL does not run as root; its own account must be able to pass, and can list nothing.
    settings.state_dir.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    settings.attempts_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with only_one(settings.run_folder):
        async with contextlib.AsyncExitStack() as stack:
            url = settings.database_url
            if url is None:
                url = await stack.enter_async_context(
                    _embedded(EmbeddedServer(settings.state_dir / "postgresql"))
                )
            door_settings = front_door_settings(settings)
            environment = {"PENSTOCK_DATABASE_URL": url}
            module = [sys.executable, "-m", "penstock.app"]
            children = [
                Child("gateway", [*module, "gateway"], environment),
                Child(
                    "envoy",
                    envoy.command(door_settings, envoy.write_bootstrap(door_settings)),
                    adoptable=True,
                ),
                Child("controller", [*module, "controller"], environment),
            ]
            await Supervisor(settings.run_folder, children).run()


@contextlib.asynccontextmanager
async def _embedded(server: EmbeddedServer) -> AsyncIterator[str]:
    """The embedded server's URL; it is started, kept running, and stopped at the end.

    Starting and stopping happen in threads, which nothing can cancel, so each is waited for: a start that went on
    after the stop would leave a server behind.
    """
    stopping = asyncio.Event()
    starting = asyncio.create_task(asyncio.to_thread(_start_embedded, server))
    try:
        url = await asyncio.shield(starting)
    except BaseException:
        await asyncio.wait({starting})
        with contextlib.suppress(EmbeddedServerError, OSError):  # Why it did not start says more.
            await asyncio.to_thread(server.stop)
        raise
    keeper = asyncio.create_task(_keep_embedded(server, stopping))
    try:
        yield url
    finally:
        stopping.set()
        await keeper
        await asyncio.to_thread(server.stop)


def _start_embedded(server: EmbeddedServer) -> str:
    """The embedded server with its schema: made where there is none, since nobody else could have prepared it."""
    url = server.start()
    if migrate.current(url) is None:
        migrate.upgrade(url)
    return url


async def _keep_embedded(server: EmbeddedServer, stopping: asyncio.Event) -> None:
    """Starts the server again whenever it has ended, until told to stop."""
    trouble = ""
    while not stopping.is_set():
        try:
            if await asyncio.to_thread(lambda: server.pid) is None:
                if not trouble:
                    log.warning("the embedded PostgreSQL ended and is started again")
                await asyncio.to_thread(server.start)
            trouble = ""
        except (
            Exception
        ) as error:  # Whatever it is, it is tried again: nothing is decided without the database.
            if str(error) != trouble:
                log.error("the embedded PostgreSQL does not run; it is tried again: %s", error)
            trouble = str(error) or repr(error)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), EMBEDDED_LOOK_S)


async def choose_slurm(settings: Settings) -> Slurm:
    """The configured backend."""
    slurm, why = await choose(
        settings.slurm_backend,
        conf=str(settings.slurm_conf) if settings.slurm_conf is not None else None,
        pyslurm_python=shlex.split(settings.pyslurm_python),
        prefix=shlex.split(settings.slurm_prefix),
    )
    log.info("%s", why)
    return slurm


async def _await_database(db: Database, settings: Settings) -> str:
    """Waits until PostgreSQL answers, and returns which installation this is. Raises SchemaMismatch."""
    waiting = False
    while True:
        try:
            await asyncio.to_thread(migrate.require_head, _database_url(settings))
            async with db.transaction() as connection:
                return await installation.ensure(connection, host_time())
        except Exception as error:
            if not is_outage(error):
                raise
            if not waiting:
                log.warning("PostgreSQL does not answer; waiting for it: %s", error)
            waiting = True
        await asyncio.sleep(DATABASE_RETRY_S)


def _database_url(settings: Settings) -> str:
    if settings.database_url is None:
        raise configuration.SettingsError(
            "database_url is not set: only `penstock serve` brings an embedded PostgreSQL, its parts need a URL"
        )
    return settings.database_url


def main() -> int:
    """`python -m penstock.app gateway|controller|all`."""
    processes = {"controller": run_controller, "gateway": run_gateway, "all": run_all}
    if len(sys.argv) != 2 or sys.argv[1] not in processes:
        print(f"usage: python -m penstock.app {'|'.join(processes)}", file=sys.stderr)
        return 2
    return process.run(processes[sys.argv[1]], configuration.load())


if __name__ == "__main__":
    sys.exit(main())
