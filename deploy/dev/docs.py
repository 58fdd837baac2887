"""Write the pages under docs/ that are made from the code: reasons.md and states.md.

`--check` writes nothing and fails when a page is stale.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from penstock.core.decisions import Reason
from penstock.core.model import ReplicaState
from penstock.core.states import MEANINGS, MOVES

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOTE = "<!-- Made from the code by `make docs`; change the code. -->\n"

SUBJECTS = {
    "About a deployment": (Reason.SCALE_UP, Reason.PROGRESSING),
    "About a replica": (Reason.SUBMIT, Reason.REMOVE),
    "About the cluster": (Reason.CLUSTER_REACHABLE, Reason.ORPHAN_CANCELLED),
}
"""Heading -> the first and the last reason under it, in the order of the code."""


def reasons() -> str:
    """Every reason with its meaning, a table for each kind of subject."""
    listed = list(Reason)
    parts = [
        NOTE,
        "# Reasons\n",
        "Whatever the controller does, and whatever it does not do, it says why: a reason from this list and one"
        " sentence with its numbers. `penstock why NAME` shows what stands, `penstock events` what happened. The"
        " words are part of the API: alerts and scripts may match them, and they change only with a changelog"
        " line.\n",
    ]
    for heading, (first, last) in SUBJECTS.items():
        some = listed[listed.index(first) : listed.index(last) + 1]
        rows = "\n".join(f"| `{reason.word}` | {reason.meaning} |" for reason in some)
        parts.append(f"## {heading}\n\n| reason | meaning |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


def states() -> str:
    """Every state of a replica with its meaning, the legal moves, and a diagram of them."""
    rows = "\n".join(f"| `{state}` | {MEANINGS[state]} | {_moves(state)} |" for state in ReplicaState)
    return "\n".join(
        [
            NOTE,
            "# States of a replica\n",
            "A replica's state is derived afresh at each tick from its attempt's row, its job in Slurm's listing and"
            " its agent's reports. The table says which states one tick may move it to; anything else is a bug that"
            " ends the tick. A move may skip states, because the controller may have been away meanwhile.\n",
            f"| state | meaning | may become |\n|---|---|---|\n{rows}\n",
            "The usual way, and the ways back: solid arrows follow the order of the states, dotted ones are what an"
            " attempt's end and Slurm's requeue add.\n",
            f"```mermaid\n{_diagram()}```\n",
        ]
    )


def _moves(state: ReplicaState) -> str:
    return ", ".join(f"`{after}`" for after in ReplicaState if after in MOVES[state]) or "nothing"


def _diagram() -> str:
    order = list(ReplicaState)
    lines = ["flowchart LR"]
    for before in order:
        for after in (state for state in order if state in MOVES[before]):
            step = order.index(after) - order.index(before)
            # Moves that only skip states would hide the picture; the table has them.
            if step == 1 or step < 0:
                lines.append(f"    {before} {'-->' if step == 1 else '-.->'} {after}")
    return "\n".join(lines) + "\n"


PAGES = {"reasons.md": reasons, "states.md": states}


def main() -> None:
    """Writes the pages, or checks them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        if path.exists() and path.read_text() == text:
            continue
        stale.append(f"docs/{name}")
        if not check:
            path.write_text(text)
    if check and stale:
        sys.exit(f"stale: {', '.join(stale)}; run: make docs")


if __name__ == "__main__":
    main()
