"""A large evaluation: its blocks counted by any executor, goes on where it stopped, then leaves nothing behind."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from unetcli.config import Where
from unetcli.core.errors import UnetcliError
from unetcli.core.files import telling_unwritable
from unetcli.core.process import cpu_threads
from unetcli.engine.clusters import Work, end_earlier_launch, executor_on, left_at_work, live_jobs, require_no_live_jobs
from unetcli.engine.machines import slurm_request
from unetcli.engine.reading_back import OTHER, void
from unetcli.engine.receipts import Ledger
from unetcli.engine.rounds import Progress, Report, Rounds
from unetcli.engine.troubles import current_troubles
from unetcli.evaluate.counts import Counts
from unetcli.evaluate.folder import EvaluationFolder, Inputs
from unetcli.evaluate.plan import EvaluationPlan
from unetcli.evaluate.settling import Settled
from unetcli.evaluate.totals import total_counts
from unetcli.evaluate.work import count_blocks, digest
from unetcli.executors.slurm.request import SlurmRequest
from unetcli.label.tables import DamagedTable
from unetcli.predict.resolve import absolute

log = logging.getLogger(__name__)

BASE_BYTES, VOXEL_BYTES = 2**30, 128
"""Of a process, and of a voxel of a block that is counted."""
MOST_ATTEMPTS = 8
VOXELS_PER_JOB = {True: 10**8, False: 10**10}
"""Some minutes of work on one core, with em and without."""


class Unfinished(UnetcliError):
    """Blocks are not counted yet; the same command continues."""

    def __init__(self, message: str, jobs: list[str]) -> None:
        super().__init__(message)
        self.jobs = jobs
        """SLURM jobs that were left at work, with ``--detach``."""


def counted_in_folder(
    settled: Settled, where: Where, report: Report, stopping: Callable[[], bool], *, folder: EvaluationFolder
) -> Counts:
    """Counts of all blocks, by way of a run folder that is deleted at the end.

    Raises
    ------
    Unfinished
        Some are missing.
    """
    plan, request = settled.plan, settled.request
    with telling_unwritable(folder.run.path), folder.launcher(take_over=request.take_over):
        if where.cluster != "slurm":
            require_no_live_jobs(request.prediction, folder.run)
        folder.begin(plan, inputs_of(settled, where))
        ledger = folder.run.ledger(plan.blocks)
        counts = None
        while counts is None:
            if not ledger.complete:
                require_counted(folder, ledger, work_off(settled, folder, ledger, where, report, stopping))
            counts = total_or_take_back(plan, folder, ledger)
        folder.remove()
    if request.run_folder is None:
        with suppress(OSError):  # another run of the same store has its folder there
            folder.run.path.parent.rmdir()
    return counts


def read_counts(folder: EvaluationFolder, ledger: Ledger) -> Iterator[Counts]:
    """Of all blocks, in order.

    Raises
    ------
    DamagedTable
        Those of a block are not what its receipt says.
    """
    for number in range(len(ledger.done)):
        arrays = folder.counts.load(number)
        if digest(arrays) != ledger.checksum(number):
            raise DamagedTable(number, folder.counts.path(number), ValueError(OTHER))
        yield Counts.from_arrays(arrays)


def total_or_take_back(plan: EvaluationPlan, folder: EvaluationFolder, ledger: Ledger) -> Counts | None:
    """All counts together; None where those of a block are damaged, whose receipt is void then.

    Where that happens again and again, the disk is at fault: raises.
    """
    try:
        return total_counts(plan, read_counts(folder, ledger))
    except DamagedTable as error:
        if ledger.attempts[error.piece] >= MOST_ATTEMPTS:
            raise
        log.warning("%s", error)
        void(folder.run, folder.run.path, ledger, [error.piece])
        ledger.refresh()
        return None


def inputs_of(settled: Settled, where: Where) -> Inputs:
    request, local = settled.request, where.cluster == "local"
    return Inputs(
        prediction=absolute(request.prediction),
        truth=absolute(request.truth),
        mask=absolute(request.mask) if request.mask else None,
        threads=max(1, cpu_threads() // (where.workers or 1)) if local else None,
    )


def work_off(
    settled: Settled,
    folder: EvaluationFolder,
    ledger: Ledger,
    where: Where,
    report: Report,
    stopping: Callable[[], bool],
) -> list[str]:
    """Have the missing blocks counted; SLURM jobs that were left at work."""
    attached = live_jobs(folder.run)
    end_earlier_launch(folder.run, attached)
    if not attached:
        folder.run.forget_troubles()
        folder.sweep_workers()
    found = f" ({int(ledger.done.sum())} found done)" if ledger.done.any() else ""
    log.info("%d blocks to count%s; what is counted is kept in %s", settled.plan.blocks, found, folder.run.path)
    progress = Progress(settled.plan, ledger, report)
    progress.tell()
    work = Work(folder=folder.run, blocks=settled.plan.blocks, sized=lambda: sized(where, settled.plan))
    with executor_on(where, work) as executor:
        Rounds(
            executor=executor,
            task=count_blocks,
            folder=folder.run,
            ledger=ledger,
            progress=progress,
            stopping=stopping,
            retries=0 if where.detach else settled.request.retries,
        ).run()
        return left_at_work(executor)


def require_counted(folder: EvaluationFolder, ledger: Ledger, jobs: list[str]) -> None:
    """Raise where blocks are missing, after telling why."""
    if jobs:
        raise Unfinished(f"{len(jobs)} SLURM jobs count; the same command tells the scores when they have ended", jobs)
    for trouble in current_troubles(folder.run.troubles, ledger):
        log.warning("block %d (%s): %s", trouble.block, trouble.place, trouble.reason)
    if missing := len(ledger.refresh().missing):
        raise Unfinished(
            f"INCOMPLETE: {missing} of {len(ledger.done)} blocks not counted; the same command continues", []
        )


def sized(where: Where, plan: EvaluationPlan) -> tuple[SlurmRequest, int]:
    """What each SLURM job asks for, with memory by estimate where nothing was said, and how many blocks it gets."""
    asked, voxels = slurm_request(where), math.prod(plan.block_shape)
    blocks = asked.blocks_per_job or max(1, VOXELS_PER_JOB["em" in plan.settings.metrics] // voxels)
    if asked.mem or any(name.startswith("mem-per-") for name, _ in asked.extra):
        return asked, blocks
    at_once = 1 + int(asked.cpus_per_task or 1)
    return replace(asked, mem=f"{math.ceil((BASE_BYTES + at_once * VOXEL_BYTES * voxels) / 2**30)}G"), blocks
