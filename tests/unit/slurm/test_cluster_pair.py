"""What starts a second slurmctld in a namespace of its own."""

from __future__ import annotations

import shlex
from pathlib import Path

from deploy.cluster import pair


def test_a_folder_of_any_name_reaches_the_shell_whole() -> None:
    root = Path("/srv/$(id)&b;c")
    *_, shell, option, script = pair.command(pair.BACKUP, "/opt/my slurm/slurmctld", root)
    assert (shell, option) == ("sh", "-c")
    lexer = shlex.shlex(script, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    assert list(lexer) == [
        "hostname", "controller2", "&&",
        "mount", "--bind", f"{root}/hosts", "/etc/hosts", "&&",
        "mount", "--bind", f"{root}/run/slurmctld-backup", f"{root}/run", "&&",
        "exec", "/opt/my slurm/slurmctld", "-D", "-f", f"{root}/slurm.conf", "-L", f"{root}/log/slurmctld-backup.log",
    ]  # fmt: skip
