"""The schema as text: what `db/migrations/schema.sql` holds, so that a change of the schema is read before it
is merged.

`python -m penstock.store.schema` writes the file (`--check`: says whether it is fresh) from a database of its
own, brought to head by the migrations.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from penstock.store import migrate
from penstock.store.database import conninfo
from penstock.store.embedded import EmbeddedServer, installed_binaries

HEADER = "-- The schema at head, dumped by `make schema`. To change it, write a migration.\n\n"

_NOISE = re.compile(r"^(--|SET |SELECT pg_catalog\.set_config|\\restrict|\\unrestrict)")
"""What depends on the server's version, or is chance: comments, session settings, psql's restricted mode."""


def dump(url: str) -> str:
    """The schema of a database, Alembic's own table left out: equal texts for equal schemas."""
    written = subprocess.run(
        [installed_binaries() / "pg_dump", "--schema-only", "--no-owner", "--no-privileges", "--no-comments",
         "--exclude-table=alembic_version", "--dbname", conninfo(url)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line for line in written.stdout.splitlines() if not _NOISE.match(line)]
    return HEADER + re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def main() -> int:
    """Writes or checks the file. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m penstock.store.schema", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file is not fresh")
    check = parser.parse_args().check
    path = migrate.migrations_folder() / "schema.sql"
    with tempfile.TemporaryDirectory(prefix="penstock-schema-") as name:
        folder = Path(name)
        # The server may run as another account, which must pass through; what is inside is closed to everyone else.
        folder.chmod(0o711)
        server = EmbeddedServer(folder / "postgres", settings={"fsync": "off"})
        try:
            url = server.start()
            migrate.upgrade(url)
            text = dump(url)
        finally:
            server.stop()
    if path.exists() and path.read_text() == text:
        return 0
    if check:
        print(f"{path} is not fresh; run: make schema", file=sys.stderr)
        return 1
    path.write_text(text)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
