"""How a command ends whose work was stopped by a signal."""

from __future__ import annotations

import signal
from typing import NoReturn

import typer

from unetcli.cli.options import INCOMPLETE
from unetcli.core.signals import Signals

INTERRUPTED = 130


def leave(signals: Signals) -> NoReturn:
    """Exit with work left to do: 130 after Ctrl-C, else 3. Call once all is safe on disk.

    SIGUSR2 is SLURM's warning of the time limit: the job goes back into the queue first. SIGTERM is not, as ``scancel``
    sends it too, and a cancelled job must not come back.
    """
    number = signals.stop()
    if number == signal.SIGUSR2:
        from unetcli.executors.slurm.worker import requeue_job

        requeue_job()
    raise typer.Exit(INTERRUPTED if number == signal.SIGINT else INCOMPLETE)
