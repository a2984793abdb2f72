"""label: make or adopt a plan, have objects found, merged and numbered stage by stage, close."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from unetcli.core.files import telling_unwritable
from unetcli.engine.clusters import (
    Work,
    end_earlier_launch,
    executor_on,
    left_at_work,
    live_jobs,
    require_accepted,
    require_no_live_jobs,
)
from unetcli.engine.receipts import Ledger
from unetcli.engine.rounds import Progress, Report, Rounds
from unetcli.engine.troubles import current_troubles
from unetcli.executors.contract import Executor, JobFailure
from unetcli.executors.options import ClusterOptions, slurm_request
from unetcli.executors.slurm.request import SlurmRequest
from unetcli.label.ctc import export, require_exportable
from unetcli.label.finding import working_bytes
from unetcli.label.plan import LabelPlan
from unetcli.label.request import LabelRequest
from unetcli.label.setting_up import LabelRun
from unetcli.label.work import label_blocks
from unetcli.volumes.opening import open_volume

log = logging.getLogger(__name__)

BASE_BYTES = 2 * 2**30
"""Of a process; so much merges 10^7 objects."""
VOXELS_PER_JOB = {"components": 4 * 10**9, "watershed": 5 * 10**8}
"""Some minutes of work on one core: then starting a job costs little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSummary:
    """What a call of label found and did."""

    output: str
    table: str
    complete: bool
    objects: int | None
    """None: not known yet."""
    removed: int | None
    """Smaller than the least size."""
    provisional: int | None
    """Found in all blocks together, before those that go on in another were merged."""
    sizes: dict[str, float | int] | None
    """Voxels of the objects: min, median, mean, max."""
    dtype: str | None
    method: str
    threshold: float
    blocks: int
    """Of all stages."""
    found_done: int
    made: int
    set_aside: list[dict[str, Any]]
    failed_jobs: list[str]
    jobs: list[str]
    """SLURM jobs that were left at work, with ``--detach``."""
    ctc_frames: int | None
    seconds: float

    @property
    def sentence(self) -> str:
        """The outcome in one line."""
        if self.jobs:
            shown = f"`unetcli status {self.output}` shows them"
            return f"{self.output}: {len(self.jobs)} SLURM jobs; {shown}, the same command goes on when they have ended"
        if not self.complete:
            aside = f"{len(self.set_aside)} blocks set aside (see above); " if self.set_aside else ""
            jobs = f"{len(self.failed_jobs)} jobs failed; " if self.failed_jobs else ""
            return f"{self.output}: INCOMPLETE; {aside}{jobs}the same command continues"
        small = f", {self.removed} smaller ones removed" if self.removed else ""
        already = " already" if not self.made else ""
        return f"{self.output}: {self.objects} objects above {self.threshold:g}{small}; complete{already}; {self.table}"


@dataclass(frozen=True, slots=True)
class Ends:
    """How the jobs of a call ended, or that they run on."""

    failures: list[JobFailure] = field(default_factory=list)
    left_running: list[str] = field(default_factory=list)


def label_volume(
    request: LabelRequest,
    report: Report = lambda done, total: None,
    stopping: Callable[[], bool] = bool,
    where: ClusterOptions | None = None,
) -> LabelSummary:
    """Instances of a prediction, block by block, in its ``labels`` group; goes on where an earlier call stopped.

    Raises
    ------
    UnetcliError
        Anything about the request that the user can put right; nothing has been written then.
    """
    started, where = time.perf_counter(), where or request
    if request.ctc:
        require_exportable(request.ctc)
    run = LabelRun.settle(request)
    require_accepted(where, needed=request.overwrite or not run.is_complete)
    with telling_unwritable(run.output), run.launcher(take_over=request.take_over):
        if where.cluster != "slurm" or request.overwrite:
            require_no_live_jobs(run.output, run.folder.run)
        run.prepare()
        ledger = run.folder.run.ledger(run.plan.blocks)
        found = int(ledger.done.sum())
        ends = Ends() if ledger.complete else compute(run, ledger, where, report, stopping)
        complete = not ends.left_running and run.close(ledger)
        frames = (
            export(open_volume(run.output), request.ctc, three_d=request.three_d) if complete and request.ctc else None
        )
    return summarise(run, ledger, found, ends, complete, frames, time.perf_counter() - started)


def compute(run: LabelRun, ledger: Ledger, where: ClusterOptions, report: Report, stopping: Callable[[], bool]) -> Ends:
    """Have the missing blocks worked off, stage by stage."""
    folder, plan = run.folder.run, run.plan
    attached = live_jobs(folder)
    end_earlier_launch(folder, attached)
    if not attached:
        folder.forget_troubles()
        run.folder.sweep_workers()
    log.info("%s -> %s", run.parent.volume.path, run.output)
    log.info("%d blocks of %s, %s", plan.pieces, "x".join(map(str, plan.block_shape)), plan.settings.method)
    progress = Progress(plan, ledger, report)
    progress.tell()
    with executor(where, run) as executing:
        rounds = Rounds(
            executor=executing,
            task=label_blocks,
            folder=folder,
            ledger=ledger,
            progress=progress,
            stopping=stopping,
            retries=0 if where.detach else run.request.retries,
        )
        failures = work_off(run, rounds, stopping)
        left = left_at_work(executing)
    for trouble in current_troubles(folder.troubles, ledger):
        log.warning("block %d (%s): %s", trouble.block, trouble.place, trouble.reason)
    return Ends(failures, left)


def work_off(run: LabelRun, rounds: Rounds, stopping: Callable[[], bool]) -> list[JobFailure]:
    """All stages in turn, as long as that leads anywhere; how jobs of the last one failed."""
    plan, ledger, failures = run.plan, rounds.ledger, list[JobFailure]()
    while len(todo := plan.pending(ledger.refresh().missing)) and not stopping():
        run.prepare_stage(plan.stage(int(todo[0])))
        failures = rounds.run(todo)
        if np.array_equal(todo, plan.pending(ledger.refresh().missing)):
            break  # a round that brought nothing, or one that goes on without us
    return failures


def executor(where: ClusterOptions, run: LabelRun) -> AbstractContextManager[Executor]:
    """The executor that was asked for."""
    work = Work(
        folder=run.folder.run,
        blocks=run.plan.pieces,
        sized=lambda: share_of(run.plan, slurm_request(where)),
    )
    return executor_on(where, work)


def share_of(plan: LabelPlan, asked: SlurmRequest) -> tuple[SlurmRequest, int]:
    """What each SLURM job asks for, with memory by estimate where nothing was said, and how many blocks it gets."""
    blocks = asked.blocks_per_job or max(1, VOXELS_PER_JOB[plan.settings.method] // math.prod(plan.block_shape))
    if asked.mem or any(name.startswith("mem-per-") for name, _ in asked.extra):
        return asked, blocks
    return replace(asked, mem=f"{math.ceil((BASE_BYTES + working_bytes(plan)) / 2**30)}G"), blocks


def summarise(
    run: LabelRun, ledger: Ledger, found: int, ends: Ends, complete: bool, frames: int | None, seconds: float
) -> LabelSummary:
    """The summary of a call that found so many blocks done."""
    plan, done = run.plan, int(ledger.done.sum())
    told = run.folder.merged() if run.folder.summary_file.exists() else {}
    return LabelSummary(
        output=str(run.output),
        table=str(run.table),
        complete=complete,
        objects=told.get("objects"),
        removed=told.get("removed"),
        provisional=told.get("provisional"),
        sizes=told.get("sizes"),
        dtype=told.get("dtype"),
        method=plan.settings.method,
        threshold=plan.settings.threshold,
        blocks=plan.blocks,
        found_done=found,
        made=done - found,
        set_aside=[trouble.note() for trouble in current_troubles(run.folder.run.troubles, ledger)],
        failed_jobs=[f"job {failure.job} on {failure.host}: {failure.reason}" for failure in ends.failures],
        jobs=ends.left_running,
        ctc_frames=frames,
        seconds=round(seconds, 3),
    )
