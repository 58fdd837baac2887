"""Write the pages under docs/ that are made from the code: reasons.md, states.md and slurm.md.

`--check` writes nothing and fails when a page is stale.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from penstock.core.decisions import Reason
from penstock.core.model import ReplicaState
from penstock.core.slurm_words import ACCUSING_STATES, DOES, REASONS, STATES, Blame
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


def slurm() -> str:
    """Every state and reason of a Slurm job: what it means, what the controller does, what is shown."""
    states = "\n".join(
        f"| `{state}` | {row.meaning} | {row.kind.value} | {row.does} | {row.shown} |"
        for state, row in STATES.items()
    )
    blamed = "\n".join(
        f"| {blame.value} | {', '.join(f'`{state}`' for state, row in STATES.items() if row.blame is blame)} |"
        for blame in Blame
    )
    accusing = ", ".join(f"`{state}`" for state in STATES if state in ACCUSING_STATES)
    reasons = "\n".join(
        f"| `{word}` | {row.meaning} | {row.wait.value} |"
        for word, row in sorted(REASONS.items(), key=lambda pair: pair[0].casefold())
    )
    does = "\n".join(f"| {wait.value} | {what} |" for wait, what in DOES.items())
    return "\n".join(
        [
            NOTE,
            "# What Slurm does to jobs\n",
            "Slurm's own words for what becomes of a job (22.05 through 26.05), and what Penstock makes of them. A word"
            " that is not here is shown as Slurm says it; nothing follows from it.\n",
            "## States\n\n| state | meaning | of its processes | what the controller does | the replica is shown as |\n"
            f"|---|---|---|---|---|\n{states}\n",
            "An end that Penstock did not ask for is counted against:\n",
            f"| whom | ends |\n|---|---|\n{blamed}\n",
            f"Three of these ends within an hour on one node, and new submissions avoid it: {accusing}. Where all"
            " of them are one deployment's, and Slurm blames the node for none, only that deployment avoids it.\n",
            "Only what is counted against the revision makes the replica back off and uses its budget of failures; a"
            " revision whose attempts end well is not held up by a cluster that preempts. A replica that was ready when"
            " its time limit came, or its script ended with 0, is no failure either.\n",
            "## Reasons\n",
            "What a job waits for says what the controller does:\n",
            f"| it waits | what the controller does |\n|---|---|\n{does}\n",
            f"| reason | meaning | it waits |\n|---|---|---|\n{reasons}\n",
        ]
    )


PAGES = {"reasons.md": reasons, "states.md": states, "slurm.md": slurm}


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
