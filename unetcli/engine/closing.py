"""The end of a run: nothing missing? Then its coarser levels are made, and the output says that it is complete."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from unetcli.engine.clusters import left_at_work
from unetcli.engine.pyramid_run import PyramidRun, build_blocks
from unetcli.engine.receipts import Ledger
from unetcli.engine.rounds import Progress, Report, Rounds
from unetcli.engine.run import Run
from unetcli.engine.troubles import UNUSABLE, Trouble, current_troubles
from unetcli.executors.contract import Executor, InProcess, JobFailure
from unetcli.planning.pyramid_plan import PyramidPlan

log = logging.getLogger(__name__)

Executors = Callable[[], AbstractContextManager[Executor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """How closing a run ended."""

    complete: bool
    """Whether nothing is missing: neither of full resolution, nor of the coarser levels that were asked for."""
    levels_missing: int = 0
    """Blocks of coarser levels that are not made."""
    set_aside: Sequence[Trouble] = ()
    """Why they are not, as far as they were tried."""
    failures: Sequence[JobFailure] = ()
    left_running: Sequence[str] = ()
    """SLURM jobs that make them, with ``--detach``."""


def here() -> AbstractContextManager[Executor]:
    """This process as executor."""
    return nullcontext(InProcess())


def close(
    run: Run,
    ledger: Ledger,
    executors: Executors = here,
    report: Report = lambda done, total: None,
    stopping: Callable[[], bool] = bool,
) -> Closing:
    """Close a run if its blocks are all there; for who holds the launcher's lock."""
    if not ledger.refresh().complete:
        return Closing(complete=False)
    if PyramidPlan.of(run.plan, run.request.levels).levels == 1:
        return Closing(complete=run.close(ledger))
    pyramid = PyramidRun.begin(
        run.pyramid_folder,
        run.output,
        run.places(),
        run.request.levels,
        ledger,
        overwrite=run.request.overwrite,
    )
    levels = pyramid.ledger()
    failures, left_running = list[JobFailure](), list[str]()
    if len(pyramid.pending(levels)):
        with executors() as executor:
            failures = build_levels(run, pyramid, levels, executor, report, stopping)
            left_running = left_at_work(executor)
    return Closing(
        complete=pyramid.close(levels) and run.close(ledger),
        levels_missing=len(levels.missing),
        set_aside=current_troubles(pyramid.folder.troubles, levels),
        failures=failures,
        left_running=left_running,
    )


def build_levels(
    run: Run, pyramid: PyramidRun, ledger: Ledger, executor: Executor, report: Report, stopping: Callable[[], bool]
) -> list[JobFailure]:
    """Make what is missing of the levels, stage by stage; how jobs failed."""
    plan = pyramid.pyramid.plan
    log.info("%d levels: %d of %d blocks to make", plan.levels, len(ledger.missing), plan.blocks)
    pyramid.folder.forget_troubles()
    rounds = Rounds(
        executor=executor,
        task=build_blocks,
        folder=pyramid.folder,
        ledger=ledger,
        progress=Progress(plan, ledger, report),
        stopping=stopping,
        retries=run.request.retries,
    )
    while len(todo := pyramid.pending(ledger)) and not stopping():
        rounds.run(todo)
        if np.array_equal(todo, pyramid.pending(ledger)):
            break  # a round that brought nothing: another would not either
    troubles = current_troubles(pyramid.folder.troubles, ledger)
    for trouble in troubles:
        log.warning("block %d of the levels (%s): %s", trouble.block, trouble.place, trouble.reason)
    if any(trouble.kind == UNUSABLE for trouble in troubles):
        log.warning("`unetcli verify --repair %s` computes damaged blocks again", run.request.output_path)
    return rounds.failures
