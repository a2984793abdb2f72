"""predict: make or adopt a plan, have the blocks that are missing computed, close."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.files import telling_unwritable
from unetcli.engine.closing import Closing, close
from unetcli.engine.clusters import (
    end_earlier_launch,
    executor_for,
    left_at_work,
    live_jobs,
    require_accepted,
    require_no_jobs,
)
from unetcli.engine.machines import with_machine
from unetcli.engine.receipts import Ledger
from unetcli.engine.rounds import Progress, Report, Rounds
from unetcli.engine.run import Run
from unetcli.engine.troubles import current_troubles
from unetcli.engine.worker import run_blocks
from unetcli.executors.contract import Executor, JobFailure
from unetcli.executors.options import ClusterOptions
from unetcli.executors.slurm.executor import SlurmExecutor
from unetcli.planning.planner import wasted_work
from unetcli.predict.request import PredictRequest
from unetcli.volumes.volume import describe

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictSummary:
    """What a call of predict found and did."""

    output: str
    complete: bool
    """Whether the whole output is, with the coarser levels that were asked for."""
    finished: bool
    """Whether this call left nothing undone: of the whole output, or of a share and, for the last one, of closing."""
    blocks: int
    found_done: int
    computed: int
    set_aside: list[dict[str, Any]]
    """Block, place and reason, of blocks that have no result: of full resolution, or else of coarser levels."""
    failed_jobs: list[str]
    jobs: list[str]
    """SLURM jobs that were left at work, with ``--detach``."""
    voxels: int
    """Of the output, computed by this call."""
    seconds: float
    voxels_per_second: float
    tile: list[int]
    block_shape: list[int]
    wasted_work: float
    device: str
    precision: str
    levels_missing: int
    """Blocks of coarser levels that are not made, though full resolution is."""

    @property
    def sentence(self) -> str:
        """The outcome in one line."""
        if self.jobs:
            arrays = " ".join(arrays_of(self.jobs))
            return f"{self.output}: {len(self.jobs)} SLURM jobs ({arrays}); `unetcli status {self.output}` shows them"
        if self.found_done == self.blocks and self.finished:
            return f"{self.output}: {self._end} already, {self.blocks} blocks found done"
        mega = self.voxels / 1e6
        done = f"{self.computed} of {self.blocks} blocks computed, {self.found_done} found done"
        pace = f"{mega:.1f} Mvoxels in {self.seconds:.1f} s ({self.voxels_per_second / 1e6:.2f} Mvoxels/s)"
        return f"{self.output}: {done}; {pace}; {self._end}"

    @property
    def _end(self) -> str:
        if self.complete:
            return "complete"
        if self.finished:
            return "this share is complete, others are missing"
        levels = f"{self.levels_missing} blocks of coarser levels missing; " if self.levels_missing else ""
        aside = f"{len(self.set_aside)} set aside (see above); " if self.set_aside else ""
        jobs = f"{len(self.failed_jobs)} jobs failed; " if self.failed_jobs else ""
        return f"INCOMPLETE; {levels}{aside}{jobs}the same command continues"


def predict_volume(
    request: PredictRequest,
    report: Report = lambda done, total: None,
    stopping: Callable[[], bool] = bool,
    where: ClusterOptions | None = None,
) -> PredictSummary:
    """Foreground probabilities of a volume, block by block; goes on where an earlier call stopped.

    ``stopping`` is asked before each block; once true, what is at work is finished and the rest left for another call.

    Raises
    ------
    UnetcliError
        Anything about the request that the user can put right; nothing has been written then.
    """
    started = time.perf_counter()
    where = where or request
    run = Run.settle(with_machine(request, where))
    require_accepted(where, needed=request.overwrite or not run.is_complete)
    with telling_unwritable(request.output_path), run.launcher(take_over=request.take_over):
        run.folder.require_no_shares(take_over=request.take_over)
        require_no_jobs(where, run)
        run.prepare()
        ledger = run.folder.ledger(run.plan.blocks)
        found = int(ledger.done.sum())
        ends = Ends() if ledger.complete else compute(run, ledger, where, report, stopping)
        closing = None if ends.left_running else close(run, ledger, lambda: executor_for(where, run), report, stopping)
    return summarise(run, ledger, found, ends, closing, time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class Ends:
    """How the jobs of a call ended, or that they run on."""

    failures: list[JobFailure] = field(default_factory=list)
    left_running: list[str] = field(default_factory=list)


def compute(run: Run, ledger: Ledger, where: ClusterOptions, report: Report, stopping: Callable[[], bool]) -> Ends:
    """Have the missing blocks worked off."""
    attached = live_jobs(run.folder)
    end_earlier_launch(run.folder, attached)
    if not attached:
        run.folder.forget_troubles()  # they are tried again
        run.folder.sweep_workers()
        run.output.store.sweep()
    announce(run, int(ledger.done.sum()))
    progress = Progress(run.plan, ledger, report)
    progress.tell()
    with executor_for(where, run) as executor:
        rounds = Rounds(
            executor=executor,
            task=run_blocks,
            folder=run.folder,
            ledger=ledger,
            progress=progress,
            stopping=stopping,
            retries=0 if where.detach else run.request.retries,
        )
        try:
            failures = rounds.run()
        except KeyboardInterrupt:
            say_what_runs_on(run, executor)
            raise
        return Ends(failures, left_at_work(executor))


def say_what_runs_on(run: Run, executor: Executor) -> None:
    """After Ctrl-C: jobs of an array go on without us."""
    if isinstance(executor, SlurmExecutor) and executor.jobs:
        arrays = " ".join(arrays_of(executor.jobs))
        log.info(
            "%d SLURM jobs run on; `unetcli status %s` shows them, the same command attaches, `scancel %s` ends them",
            len(executor.jobs),
            run.request.output_path,
            arrays,
        )


def arrays_of(jobs: Iterable[str]) -> list[str]:
    """Ids of whole arrays.

    >>> arrays_of(["12_0", "12_1", "15"])
    ['12', '15']
    """
    return list(dict.fromkeys(job.partition("_")[0] for job in jobs))


def announce(run: Run, found: int, share: tuple[int, int] | None = None) -> None:
    """What is about to be done: where, and how."""
    plan = run.plan
    tile, inner = plan.tile[-1], plan.footprint.output(plan.tile)[-1]
    blocks = f"{plan.blocks} blocks of {'x'.join(map(str, plan.block_shape))}"
    part = f"share {share[0]} of {share[1]} (0-{share[1] - 1}) of " if share else ""
    before = f" ({found} found done)" if found else ""
    log.info("%s (%s) -> %s", run.source.path, describe(plan.region, plan.axes), run.request.output_path)
    log.info(
        "%s%s%s; tile %d -> %d, %.0f%% extra for context; %s %s",
        part,
        blocks,
        before,
        tile,
        inner,
        100 * wasted_work(plan),
        plan.choices.device,
        plan.choices.precision,
    )


def summarise(
    run: Run,
    ledger: Ledger,
    found: int,
    ends: Ends,
    closing: Closing | None,
    seconds: float,
    blocks: NDArray[np.intp] | None = None,
) -> PredictSummary:
    """The summary of a call over some blocks (None: all) that found so many of them done.

    ``closing`` is None for a call that did not have to close the run.
    """
    plan = run.plan
    wanted = np.arange(plan.blocks) if blocks is None else blocks
    done, missing = int(ledger.done[wanted].sum()), set(wanted[~ledger.done[wanted]].tolist())
    voxels = round(plan.region.size * (done - found) / plan.blocks)
    finished = closing.complete if closing else done == len(wanted)
    closing = closing or Closing(complete=False)
    troubles = [trouble for trouble in current_troubles(run.folder.troubles, ledger) if trouble.block in missing]
    return PredictSummary(
        output=str(run.request.output_path),
        complete=finished and run.is_complete,
        finished=finished,
        blocks=len(wanted),
        found_done=found,
        computed=done - found,
        set_aside=[trouble.note() for trouble in [*troubles, *closing.set_aside]],
        failed_jobs=[
            f"job {failure.job} on {failure.host}: {failure.reason}" for failure in [*ends.failures, *closing.failures]
        ],
        jobs=[*ends.left_running, *closing.left_running],
        voxels=voxels,
        seconds=round(seconds, 3),
        voxels_per_second=round(voxels / seconds, 1),
        tile=list(plan.tile),
        block_shape=list(plan.block_shape),
        wasted_work=round(wasted_work(plan), 4),
        device=plan.choices.device,
        precision=plan.choices.precision,
        levels_missing=closing.levels_missing,
    )
