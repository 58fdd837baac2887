"""Who changes something, and why: what the revisions' history is told."""

from __future__ import annotations

import getpass
import socket
from typing import Annotated

import typer

AUTHOR_MAX = 256
"""Characters, as the contract has it."""

Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why; kept in the history of the rollouts.")
]


def author() -> str:
    """user@host of whoever runs the command; as much of it as is known."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # No such account here, as in some containers.
        user = ""
    return f"{user}@{socket.gethostname()}"[:AUTHOR_MAX]
