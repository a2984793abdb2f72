"""Command that works in steps, writes checkpoints and handles signals like ``train``, but without a network.

python -m slurm.steps FOLDER STEPS
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

import typer

from unetcli.cli.console import leave
from unetcli.core.process import Signals

SECONDS = 0.1
"""Duration of a step; writing a checkpoint takes ten times as long."""


def work(folder: Path, steps: int) -> None:
    """Continue from the checkpoint, if there is one, up to the given number of steps."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    signals = Signals().listen()
    checkpoint = folder / f"checkpoint.{os.environ.get('SLURM_PROCID', '0')}"
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    logging.info("at work")
    while done < steps and not signals.stopping():
        time.sleep(SECONDS)
        done += 1
        if signals.checkpoint():
            checkpoint.write_text(str(done))
    if signals.stopping():
        time.sleep(10 * SECONDS)
    checkpoint.write_text(str(done))
    if done < steps:
        leave(signals)


if __name__ == "__main__":
    typer.run(work)
