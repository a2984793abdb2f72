"""Entry point of a job: ``python -P -u -m unetcli.executors.slurm.job FOLDER`` runs the function pickled in FOLDER."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

NOBODY = 65534
"""Owner that a network file system shows if it does not map users."""


def command(folder: Path) -> str:
    """Shell command of a job. With ``-P``, Python imports nothing from the folder in which the user submits."""
    return f"{shlex.quote(sys.executable)} -P -u -m {__name__} {shlex.quote(str(folder))}"


def require_own(folder: Path) -> None:
    """Exit if the folder belongs to another user.

    Whoever can write to the folder above could put another folder in its place, but not one of this user. File systems
    that hide the owner show root or nobody.
    """
    owner = folder.stat().st_uid
    if owner not in (os.getuid(), 0, NOBODY):
        sys.exit(f"unetcli: {folder}: belongs to user {owner}, who could change the job; nothing of it is run")


if __name__ == "__main__":
    from submitit.core.submission import submitit_main

    require_own(Path(sys.argv[1]))
    submitit_main()
