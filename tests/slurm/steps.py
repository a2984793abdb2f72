"""A command that works in steps, keeps a checkpoint and ends as its signals say, as ``train`` does, without a network.

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
"""Of a step; and of writing a checkpoint ten times as long."""


def work(folder: Path, steps: int) -> None:
    """Go on from the checkpoint, if there is one, to so many steps."""
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
