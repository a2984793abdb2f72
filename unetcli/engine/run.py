"""The one launch of every step: freeze the plan, have missing blocks computed, failed ones tried again, finish."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import explain_write_errors
from unetcli.core.options import Options
from unetcli.core.ranges import to_ranges
from unetcli.core.streams import ProgressCallback, silent
from unetcli.engine.clusters import (
    end_earlier_launch,
    executor_for,
    left_at_work,
    live_jobs,
    require_accepted,
    require_no_live_jobs,
)
from unetcli.engine.receipts import FAILED, UNUSABLE, BlockFailure, current_failures
from unetcli.engine.step import DamagedResult, Step
from unetcli.engine.worker import MOST_ATTEMPTS, StepTask, void, why_stopped
from unetcli.executors.contract import Executor, InProcess, JobFailure
from unetcli.executors.options import ClusterOptions
from unetcli.executors.slurm.executor import SlurmExecutor

log = logging.getLogger(__name__)


LOOK_SECONDS = 0.5
"""Between two looks at the receipts."""


@dataclass
class Progress:
    """Reports how far a run is, from its receipts."""

    step: Step
    report: ProgressCallback
    blocks: NDArray[np.intp] | None = None
    """Blocks that count. Default: all."""
    lines: int = -1
    looked: float = 0.0

    def __call__(self) -> None:
        """Look for new receipts, at most once in a while."""
        if time.monotonic() - self.looked < LOOK_SECONDS:
            return
        self.looked = time.monotonic()
        if self.step.ledger.refresh().lines != self.lines:
            self.tell()

    def tell(self) -> None:
        ledger = self.step.ledger.refresh()
        self.lines, counted = ledger.lines, np.ones(self.step.blocks, np.bool_)
        if self.blocks is not None:
            counted[:] = False
            counted[self.blocks] = True
        self.report(self.step.voxels(ledger.done & counted), self.step.voxels(counted))


@dataclass(kw_only=True)
class Rounds:
    """One round over the missing ones of some blocks, then others over those that failed."""

    step: Step
    executor: Executor
    progress: Progress
    stopping: Callable[[], bool]
    retries: int
    failures: list[JobFailure] = field(default_factory=list)

    def run(self, wanted: NDArray[np.intp]) -> list[JobFailure]:
        """Have those of the blocks computed that have no receipt; every job that failed in the last round.

        Raises
        ------
        UnetcliError
            The first blocks all failed alike; the traceback is in the log.
        """
        self.failures = []
        self._round(wanted[~self.step.ledger.done[wanted]], [])
        for _ in range(self.retries):
            again, hosts = self._failed(wanted)
            if self.stopping() or not len(again) or any(failure.final for failure in self.failures):
                break
            log.info(
                "%d blocks failed; once more%s", len(again), f", elsewhere than {', '.join(hosts)}" if hosts else ""
            )
            self.failures.clear()
            self._round(again, hosts)
        return self.failures

    def _round(self, blocks: NDArray[np.intp], avoid: list[str]) -> None:
        if not len(blocks):
            return
        self.failures += self.executor.run(
            StepTask(type(self.step)),
            self.step.folder.path,
            to_ranges(blocks),
            tick=self.progress,
            stopping=self.stopping,
            avoid=avoid,
        )
        self.progress.tell()
        if why := why_stopped(self.step.folder):
            message, _, traceback = why.partition("\n")
            log.error("%s", traceback.rstrip())
            raise UnetcliError(message)

    def _failed(self, wanted: NDArray[np.intp]) -> tuple[NDArray[np.intp], list[str]]:
        """Blocks worth another try, and the hosts where they failed."""
        open_failures = current_failures(self.step.folder.failures, self.step.ledger)
        unusable = [failure.block for failure in open_failures if failure.kind == UNUSABLE]
        hosts = {failure.host for failure in open_failures if failure.kind == FAILED}
        hosts |= {failure.host for failure in self.failures if failure.host}
        return np.setdiff1d(wanted[~self.step.ledger.done[wanted]], unusable), sorted(hosts)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a step is run. Options that do not affect the result."""

    where: ClusterOptions = field(default_factory=ClusterOptions)
    retries: int = 1
    overwrite: bool = False
    take_over: bool = False

    @classmethod
    def of(cls, request: Options, where: ClusterOptions | None = None) -> RunOptions:
        """Options of a request, which is its own cluster options where no others are given."""
        own = request if isinstance(request, ClusterOptions) else ClusterOptions()
        names = {
            name: getattr(request, name) for name in ("retries", "overwrite", "take_over") if hasattr(request, name)
        }
        return cls(where=where or own, **names)


@dataclass(slots=True, kw_only=True)
class RunOutcome:
    """What a launch found, did and left."""

    complete: bool = False
    found: NDArray[np.bool_]
    """Mask of blocks that were done before."""
    done: NDArray[np.bool_]
    """Mask of blocks that are done now."""
    failures: Sequence[JobFailure] = ()
    left_running: Sequence[str] = ()
    """SLURM jobs that were left at work, with ``--detach``."""
    set_aside: Sequence[BlockFailure] = ()
    result: Any = None
    """What the step's ``finish`` returned."""

    def notes(self) -> dict[str, Any]:
        """The part of a command's summary that every step has."""
        return {
            "set_aside": [failure.note() for failure in self.set_aside],
            "failed_jobs": [f"job {failure.job} on {failure.host}: {failure.reason}" for failure in self.failures],
            "jobs": list(self.left_running),
        }


def run(
    step: Step,
    options: RunOptions,
    report: ProgressCallback = silent,
    stopping: Callable[[], bool] = bool,
    then: Any = None,
) -> RunOutcome:
    """Continue a step where an earlier launch stopped; ``then`` is called while the lock is held, once all is there.

    Raises
    ------
    UnetcliError
        SLURM refuses the request (nothing has been written then), or another launcher or its jobs work on the output.
    """
    begun = step.folder.plan_file.exists() and not options.overwrite
    require_accepted(options.where, needed=not (begun and step.is_complete()))
    with launching(step, options):
        attaches = options.where.cluster == "slurm" and not options.overwrite
        if not attaches:
            require_no_live_jobs(step.output, step.folder)
        prepare(step, overwrite=options.overwrite)
        outcome = work_off(step, options, report, stopping)
        if then and outcome.complete:
            then()
    return outcome


@contextmanager
def launching(step: Step, options: RunOptions, wait: float = 0) -> Iterator[None]:
    """Hold the launcher's lock; see :meth:`RunFolder.launcher`. No share may be at work."""
    with (
        explain_write_errors(step.output if step.writes_from < step.blocks else step.folder.path),
        step.folder.launcher(
            step.command,
            step.own_files,
            overwrite=options.overwrite,
            take_over=options.take_over and not wait,  # a share takes over its own lock, not that of setting up
            wait=wait,
        ),
    ):
        if not wait:
            step.folder.require_no_shares(take_over=options.take_over)
        yield


def prepare(step: Step, *, overwrite: bool = False) -> None:
    """Freeze the plan and make the output where they are not there yet. The caller holds the launcher's lock."""
    step.look_again()
    if overwrite:
        step.folder.clear_run(step.own_files)
        step.discard()
    step.continue_from(publish_plan(step))
    if step.is_gone(step.ledger.refresh().done):
        step.folder.clear_receipts(step.own_files)
        step.ledger.refresh()
    step.create()
    step.folder.write_paths(step.paths.absolute())


def publish_plan(step: Step) -> Any:
    """Freeze the plan; returns the one that holds. A plan that cannot be read is begun anew where the step says so."""
    try:
        return step.folder.publish_plan(step.plan, step.FORMAT)
    except UnetcliError:
        if not step.begins_anew:
            raise
        require_nobody_at_work(step)
        step.folder.clear_run(step.own_files)
        return step.folder.publish_plan(step.plan, step.FORMAT)


def require_nobody_at_work(step: Step) -> None:
    """Raise while anybody works by the frozen plan, which is about to be replaced: blocks get other numbers."""
    step.folder.require_no_shares()
    require_no_live_jobs(step.output, step.folder)
    if left := end_earlier_launch(step.folder, []):
        raise UnetcliError(f"{step.output}: {left} workers of an earlier launch are still at work; try again later")


def work_off(step: Step, options: RunOptions, report: ProgressCallback, stopping: Callable[[], bool]) -> RunOutcome:
    """Have missing blocks computed, stage by stage, and finish. The caller holds the launcher's lock."""
    ledger = step.ledger.refresh()
    outcome = RunOutcome(found=ledger.done.copy(), done=ledger.done)
    while True:
        if not ledger.complete:
            compute(step, options, outcome, report, stopping)
        if outcome.left_running or not ledger.refresh().complete:
            break
        if finish(step, outcome):
            break
    outcome.set_aside = current_failures(step.folder.failures, ledger)
    later = step.stages[0].blocks.stop
    if any(failure.kind == UNUSABLE and failure.block >= later for failure in outcome.set_aside):
        log.warning("`unetcli verify --repair %s` computes damaged blocks again", step.output)
    return outcome


def compute(
    step: Step, options: RunOptions, outcome: RunOutcome, report: ProgressCallback, stopping: Callable[[], bool]
) -> None:
    """Have the missing blocks worked off, stage by stage, as long as that leads anywhere."""
    attached = live_jobs(step.folder)
    end_earlier_launch(step.folder, attached)
    if not attached:
        step.folder.clear_failures()  # they are tried again
        step.folder.sweep_workers()
        step.sweep()
    first = step.stages[0].blocks
    step.announce(int(step.ledger.done[first.start : first.stop].sum()))
    progress = Progress(step, report)
    progress.tell()
    with executor_for(options.where, step) as executor:
        rounds = Rounds(
            step=step,
            executor=executor,
            progress=progress,
            stopping=stopping,
            retries=0 if options.where.detach else options.retries,
        )
        try:
            outcome.failures = run_stages(step, rounds, stopping)
        except KeyboardInterrupt:
            name_running_jobs(step, executor)
            raise
        outcome.left_running = left_at_work(executor)
    if not isinstance(executor, InProcess):  # which has said it itself
        for failure in current_failures(step.folder.failures, step.ledger.refresh()):
            log.warning("block %d (%s) set aside: %s", failure.block, failure.place, failure.reason)


def run_stages(step: Step, rounds: Rounds, stopping: Callable[[], bool]) -> list[JobFailure]:
    """Rounds over all stages in turn; the jobs that failed in the last one."""
    failures = list[JobFailure]()
    while len(todo := step.pending()):
        step.prepare_stage(step.stage_of(int(todo[0])))
        failures = rounds.run(todo)
        if stopping() or not len(np.setdiff1d(step.pending(), todo)):
            break  # what is missing was tried, or goes on without us
    return failures


def finish(step: Step, outcome: RunOutcome) -> bool:
    """Finish a step whose blocks are all there; False where one turned out to be damaged, which is void then."""
    try:
        outcome.result, outcome.complete = step.finish(), True
    except DamagedResult as error:
        if step.ledger.attempts[error.block] >= MOST_ATTEMPTS:
            raise
        log.warning("%s", error)
        void(step, step.ledger, [error.block])
        step.ledger.refresh()
    return outcome.complete


def name_running_jobs(step: Step, executor: Executor) -> None:
    """After Ctrl-C: jobs of an array go on without us."""
    if isinstance(executor, SlurmExecutor) and executor.jobs:
        arrays = " ".join(arrays_of(executor.jobs))
        ways = f"`unetcli status {step.output}` shows them, the same command attaches, `scancel {arrays}` ends them"
        log.info("%d SLURM jobs run on; %s", len(executor.jobs), ways)


def arrays_of(jobs: Iterable[str]) -> list[str]:
    """Ids of whole arrays.

    >>> arrays_of(["12_0", "12_1", "15"])
    ['12', '15']
    """
    return list(dict.fromkeys(job.partition("_")[0] for job in jobs))
