"""The end of a run: nothing missing? Then its coarser levels are made, and the output says that it is complete."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from unetcli.executors.contract import Executor
from unetcli.executors.local import InProcess
from unetcli.planning.pyramid_plan import PyramidPlan
from unetcli.runs.pyramid_run import PyramidRun, build_blocks
from unetcli.runs.receipts import Ledger
from unetcli.runs.rounds import Progress, Report, Rounds
from unetcli.runs.run import Run
from unetcli.runs.troubles import current_troubles

log = logging.getLogger(__name__)

Executors = Callable[[], AbstractContextManager[Executor]]


def here() -> AbstractContextManager[Executor]:
    """This process as executor."""
    return nullcontext(InProcess())


def close(
    run: Run,
    ledger: Ledger,
    executors: Executors = here,
    report: Report = lambda done, total: None,
    stopping: Callable[[], bool] = bool,
) -> bool:
    """Close a run whose blocks are all there; whether it is complete now. For who holds the launcher's lock."""
    if not ledger.refresh().complete:
        return False
    if PyramidPlan.of(run.plan, run.request.levels).levels > 1:
        pyramid = PyramidRun.begin(
            run.pyramid_folder,
            run.output,
            run.places(),
            run.request.levels,
            ledger,
            overwrite=run.request.overwrite,
        )
        if len(pyramid.pending(pyramid.ledger())):
            with executors() as executor:
                build_levels(run, pyramid, executor, report, stopping)
        if not pyramid.close(pyramid.ledger()):
            return False
    return run.close(ledger)


def build_levels(
    run: Run, pyramid: PyramidRun, executor: Executor, report: Report, stopping: Callable[[], bool]
) -> None:
    """Make what is missing of the levels, stage by stage."""
    ledger, plan = pyramid.ledger(), pyramid.pyramid.plan
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
    for trouble in current_troubles(pyramid.folder.troubles, ledger):
        log.warning("block %d of the levels (%s): %s", trouble.block, trouble.place, trouble.reason)
