"""A large evaluation: its blocks are counted by any executor; continues where it stopped, leaves nothing behind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

from unetcli.core.errors import UnetcliError
from unetcli.core.process import cpu_threads
from unetcli.engine.ownership import EVALUATE, require_claimable
from unetcli.engine.retry import Report
from unetcli.engine.run import RunOptions, RunOutcome, run
from unetcli.evaluate.counts import Counts
from unetcli.evaluate.resolve import Evaluated
from unetcli.evaluate.step import EvaluateStep, EvaluationPaths, folder_of
from unetcli.executors.options import ClusterOptions

log = logging.getLogger(__name__)


class Unfinished(UnetcliError):
    """Blocks are not counted yet; the same command continues."""

    def __init__(self, message: str, jobs: list[str]) -> None:
        super().__init__(message)
        self.jobs = jobs
        """SLURM jobs that were left at work, with ``--detach``."""


def counted_in_folder(
    evaluated: Evaluated, where: ClusterOptions, report: Report, stopping: Callable[[], bool]
) -> Counts:
    """Counts of all blocks, by way of a run folder that is deleted at the end.

    Raises
    ------
    Unfinished
        Some are missing.
    """
    request, folder = evaluated.request, folder_of(evaluated.request)
    require_claimable(folder.path, EVALUATE)
    step = EvaluateStep(folder=folder, plan=evaluated.plan, paths=paths_of(evaluated, where))
    options = RunOptions(where=where, retries=request.retries, take_over=request.take_over)
    outcome = run(step, options, report, stopping)
    require_counted(step, outcome)
    if request.run_folder is None:
        with suppress(OSError):  # another run of the same store has its folder there
            folder.path.parent.rmdir()
    counts: Counts = outcome.result
    return counts


def paths_of(evaluated: Evaluated, where: ClusterOptions) -> EvaluationPaths:
    """Where the data lie, and how many threads a worker here has."""
    request = evaluated.request
    threads = max(1, cpu_threads() // (where.workers or 1)) if where.cluster == "local" else None
    return EvaluationPaths(prediction=request.prediction, truth=request.truth, mask=request.mask, threads=threads)


def require_counted(step: EvaluateStep, outcome: RunOutcome) -> None:
    """Raise where blocks are missing."""
    if outcome.left_running:
        jobs = list(outcome.left_running)
        raise Unfinished(f"{len(jobs)} SLURM jobs count; the same command tells the scores when they have ended", jobs)
    if not outcome.complete:
        missing = int((~outcome.done).sum())
        raise Unfinished(f"INCOMPLETE: {missing} of {step.blocks} blocks not counted; the same command continues", [])
