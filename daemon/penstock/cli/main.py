"""The `penstock` command: its commands, its options, and what becomes of a failure. Everything else is in the
commands' own files."""

from __future__ import annotations

import os
import reprlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from penstock.cli import apply, change, cluster, daemon, get, logs, talk, tell, waiting
from penstock.cli.connection import DEFAULT_SERVER
from penstock.cli.failures import USAGE, Failure
from penstock.cli.output import say
from penstock.cli.rollout import rollout

HELP = f"""Keep language models served on a Slurm cluster, and use them.

The server is --server, or PENSTOCK_SERVER, or `server = "host:port"` in ~/.config/penstock/config.toml, or
{DEFAULT_SERVER}.

Exit codes: 0 done; 1 the server refused or failed; 2 wrong usage or a bad manifest; 3 the server, or
something behind it, does not answer; 4 the time to wait was up.

Examples:

  penstock apply -f smollm2.yaml

  penstock wait smollm2

  penstock chat smollm2 "What is the capital of France?"

  penstock why smollm2
"""


class Commands(TyperGroup):
    """Ends a failed command with its sentence and its exit code, and takes --server behind the command too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _server_first(args))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Failure as failure:
            if failure.message:
                say(f"error: {failure.message}", style="red", stderr=True)
            for detail in failure.details:
                say(f"  {detail}", stderr=True)
            raise typer.Exit(failure.code) from failure
        except (UnicodeEncodeError, UnicodeDecodeError) as error:
            # Of an argument or of standard input. A terminal of another encoding is not what this is about.
            if error.encoding != "utf-8":
                raise
            given = reprlib.repr(error.object)
            say(f"error: {given} is no text in UTF-8: {error.reason}", style="red", stderr=True)
            raise typer.Exit(USAGE) from error
        except BrokenPipeError as error:
            # Whoever read the output has seen enough; what Python has not written yet goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from error


def _server_first(args: list[str]) -> list[str]:
    """The same arguments, with --server and its value before the command. Behind `--` nothing is an option."""
    end = args.index("--") if "--" in args else len(args)
    for index, argument in enumerate(args[:end]):
        if argument.startswith("--server="):
            return [argument, *args[:index], *args[index + 1 :]]
        if argument == "--server" and index + 1 < end:
            return [argument, args[index + 1], *args[:index], *args[index + 2 :]]
    return args


app = typer.Typer(
    name="penstock",
    cls=Commands,
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
db = typer.Typer(help="The daemon's database.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _options(
    server: Annotated[
        str | None,
        typer.Option("--server", metavar="HOST:PORT", help="The server to talk to. [env: PENSTOCK_SERVER]"),
    ] = None,
) -> None:
    # Read by the commands from the root context.
    pass


for _command in (
    apply.apply,
    get.get,
    tell.describe,
    tell.why,
    tell.events,
    logs.logs,
    waiting.wait,
    change.scale,
    change.restart,
    change.pause,
    change.resume,
    change.drain,
    change.delete,
    talk.chat,
    talk.generate,
    talk.embed,
    talk.models,
    cluster.cluster,
    daemon.serve,
    daemon.version,
):
    app.command()(_command)
db.command("upgrade")(daemon.upgrade)
app.add_typer(db, name="db")
app.add_typer(rollout, name="rollout")
