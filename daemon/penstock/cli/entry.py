"""Where the `penstock` command begins. It knows only whether the packages that the command needs are installed.

A compute node has the base install, which is what a job needs; the command belongs to the server extra.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; ends with one sentence where the server extra is missing."""
    try:
        from penstock.cli.main import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "penstock":
            raise
        sys.exit(f"the penstock command needs {error.name}: install the server extra, penstock[server]")
    app()
