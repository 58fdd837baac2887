"""One of Penstock's processes, from start to exit code: settings that cannot be, its log, its signals, its last words.

What a human must mend is one sentence and FINAL_EXIT; what may mend itself is one sentence and 1. It does not know what
the process does.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from penstock.gateway.settings import AddressError, envoy_address
from penstock.settings import Settings, SettingsError
from penstock.slurm.port import SlurmUnavailable
from penstock.store.database import driver_url
from penstock.store.embedded import EmbeddedServerError
from penstock.store.errors import SchemaMismatch
from penstock.supervisor import FINAL_EXIT, AlreadyRunning, Hopeless

log = logging.getLogger("penstock")


def run(main: Callable[[Settings], Coroutine[Any, Any, None]], settings: Settings) -> int:
    """Runs `main` until it ends, or one of the signals ends it; the exit code.

    SIGTERM, SIGINT, and SIGHUP where it is not ignored (nohup): each is a wish to stop, with all that was started.
    """
    logging.basicConfig(
        level=settings.log_level.upper(),
        format=f"%(asctime)s %(levelname)s {main.__name__[4:]}: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        _refuse_unusable(settings)
        asyncio.run(_until_told(main, settings))
    except asyncio.CancelledError:
        return 0
    except (SchemaMismatch, Hopeless, AlreadyRunning, SettingsError) as error:
        log.error("%s", error)
        return FINAL_EXIT
    except (EmbeddedServerError, SlurmUnavailable) as error:
        # A file system may be mounted late: worth another try.
        log.error("%s", error)
        return 1
    return 0


async def _until_told(main: Callable[[Settings], Coroutine[Any, Any, None]], settings: Settings) -> None:
    task = asyncio.current_task()
    assert task is not None  # Inside a coroutine there is one.
    told = False

    def stop() -> None:
        # Once: a second signal (an impatient Ctrl-C, `timeout`) would end the stopping, and leave children behind.
        nonlocal told
        if not told:
            told = True
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, stop)
    await main(settings)


def _refuse_unusable(settings: Settings) -> None:
    """Raises SettingsError for what no part could use: starting it again and again would not help."""
    for key in ("listen", "runtime_listen"):
        if (address := getattr(settings, key)) is not None:
            try:
                envoy_address(address)
            except AddressError as error:
                raise SettingsError(f"{key}: {error}") from error
    if settings.database_url is not None:
        try:
            driver_url(settings.database_url)
        except ValueError as error:
            raise SettingsError(f"database_url: {error}") from error
    try:
        mode = settings.state_dir.stat().st_mode & 0o7777
    except OSError:
        return  # Not there yet; whoever makes it says what is wrong with the place.
    if mode & 0o022:
        raise SettingsError(
            f"state_dir: others may write to {settings.state_dir} (mode {mode:04o}), and so could be Penstock;"
            " accepted: a folder that only its owner may write to"
        )
