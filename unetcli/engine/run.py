"""Launch a step: freeze its plan, compute the missing blocks, retry the failed ones, and finish the output."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError, counted, listed, pasted
from unetcli.core.files import explain_write_errors
from unetcli.core.options import Options
from unetcli.core.ranges import to_ranges
from unetcli.core.streams import ProgressCallback, silent
from unetcli.engine.clusters import (
    detached_jobs,
    end_earlier_launch,
    executor_for,
    live_jobs,
    require_accepted,
    require_no_live_jobs,
)
from unetcli.engine.receipts import FAILED, UNUSABLE, BlockFailure, current_failures
from unetcli.engine.step import DamagedResult, Step
from unetcli.engine.worker import MAX_ATTEMPTS, StepTask, read_stop_reason, void
from unetcli.executors.contract import Executor, InProcess, JobFailure
from unetcli.executors.options import ClusterOptions
from unetcli.executors.slurm.executor import SlurmExecutor

log = logging.getLogger(__name__)


POLL_SECONDS = 0.5
"""Time between two reads of the receipts."""


@dataclass
class Progress:
    """Reports the progress of a run from its receipts."""

    step: Step
    report: ProgressCallback
    blocks: NDArray[np.intp] | None = None
    """Blocks to report on. Default: all."""
    lines: int = -1
    polled: float = 0.0

    def __call__(self) -> None:
        """Read new receipts, at most once every :data:`POLL_SECONDS`, and report any progress."""
        if time.monotonic() - self.polled < POLL_SECONDS:
            return
        self.polled = time.monotonic()
        if self.step.ledger.refresh().lines != self.lines:
            self.report_now()

    def report_now(self) -> None:
        """Read all receipts and report the voxels done so far."""
        ledger = self.step.ledger.refresh()
        self.lines, counted = ledger.lines, np.ones(self.step.blocks, np.bool_)
        if self.blocks is not None:
            counted[:] = False
            counted[self.blocks] = True
        self.report(self.step.voxels(ledger.done & counted), self.step.voxels(counted))


@dataclass(kw_only=True)
class RetryLoop:
    """Computes the missing blocks once, then retries those that failed, up to ``retries`` times."""

    step: Step
    executor: Executor
    progress: Progress
    stopping: Callable[[], bool]
    retries: int
    failures: list[JobFailure] = field(default_factory=list)

    def run(self, wanted: NDArray[np.intp]) -> list[JobFailure]:
        """Compute the blocks in ``wanted`` that have no receipt; return the jobs that failed in the last attempt.

        Raises
        ------
        UnetcliError
            The first blocks all failed with the same error; its traceback is in the log.
        """
        self.failures = []
        self._run_once(wanted[~self.step.ledger.done[wanted]], [])
        for _ in range(self.retries):
            again, hosts = self._failed(wanted)
            if self.stopping() or not len(again) or any(failure.final for failure in self.failures):
                break
            elsewhere = f", on other hosts than {listed(hosts, 'hosts')} if there are any" if hosts else ""
            log.info("retrying failed blocks: %d%s", len(again), elsewhere)
            self.failures.clear()
            self._run_once(again, hosts)
        return self.failures

    def _run_once(self, blocks: NDArray[np.intp], avoid: list[str]) -> None:
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
        self.progress.report_now()
        if why := read_stop_reason(self.step.folder):
            message, _, traceback = why.partition("\n")
            log.error("%s", traceback.rstrip())
            raise UnetcliError(message)

    def _failed(self, wanted: NDArray[np.intp]) -> tuple[NDArray[np.intp], list[str]]:
        """Return the missing blocks that may succeed when retried, and the hosts where blocks failed."""
        open_failures = current_failures(self.step.folder.failures, self.step.ledger)
        unusable = [failure.block for failure in open_failures if failure.kind == UNUSABLE]
        hosts = {failure.host for failure in open_failures if failure.kind == FAILED}
        hosts |= {failure.host for failure in self.failures if failure.host}
        return np.setdiff1d(wanted[~self.step.ledger.done[wanted]], unusable), sorted(hosts)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options that control how a step runs and do not affect its result."""

    where: ClusterOptions = field(default_factory=ClusterOptions)
    retries: int = 1
    overwrite: bool = False
    take_over: bool = False

    @classmethod
    def of(cls, request: Options, where: ClusterOptions | None = None) -> RunOptions:
        """Take the options from a request, which also holds the cluster options unless ``where`` is given."""
        own = request if isinstance(request, ClusterOptions) else ClusterOptions()
        names = [name for name in ("retries", "overwrite", "take_over") if hasattr(request, name)]
        return cls(where=where or own, **{name: getattr(request, name) for name in names})


@dataclass(slots=True, kw_only=True)
class RunOutcome:
    """Outcome of a launch: the blocks done before and after it, and what failed."""

    complete: bool = False
    found: NDArray[np.bool_]
    """Mask of the blocks that were done before the launch."""
    done: NDArray[np.bool_]
    """Mask of the blocks that are done after it."""
    failures: Sequence[JobFailure] = ()
    left_running: Sequence[str] = ()
    """SLURM jobs that are still queued or running, with ``--detach``."""
    set_aside: Sequence[BlockFailure] = ()
    result: Any = None
    """Return value of the step's ``finish``."""

    def notes(self) -> dict[str, Any]:
        """Return the fields that the summary of every step contains."""
        return {
            "set_aside": [failure.note() for failure in self.set_aside],
            "failed_jobs": [f"job {failure.job} on {failure.host}: {failure.reason}" for failure in self.failures],
            "jobs": list(self.left_running),
        }


def require_usable(outcome: RunOutcome, reading: range, result: str) -> None:
    """Raise if input of a step can never be read and its result, labels or scores, needs every voxel.

    What was computed is kept. Errors that may pass, such as those of a network, leave the run incomplete instead.

    Parameters
    ----------
    reading
        Blocks that read the input.
    result
        The result, for the message.
    """
    unusable = [each for each in outcome.set_aside if each.kind == UNUSABLE and each.block in reading]
    if unusable and not outcome.left_running:
        more = f", and {counted(len(unusable) - 1, 'more block')}" if len(unusable) > 1 else ""
        raise UnetcliError(
            f"{unusable[0].reason}{more}; {result} need every voxel; restore the file (`unetcli verify --repair` if "
            "unetcli predict wrote it), then the same command continues"
        )


def run(
    step: Step,
    options: RunOptions,
    report: ProgressCallback = silent,
    stopping: Callable[[], bool] = bool,
    then: Any = None,
) -> RunOutcome:
    """Run a step, continuing where an earlier launch stopped.

    Once the output is complete, ``then`` is called while the launcher's lock is still held.

    Raises
    ------
    UnetcliError
        SLURM rejects the request (before anything is written), or another launcher or its jobs use the output.
    """
    begun = step.folder.plan_file.exists() and not options.overwrite
    require_accepted(options.where, step.folder.path, needed=not (begun and step.is_complete()))
    with launching(step, options):
        if options.where.cluster != "slurm" or options.overwrite:  # otherwise this launch attaches to the jobs
            require_no_live_jobs(step.output, step.folder)
        prepare(step, overwrite=options.overwrite)
        outcome = run_to_completion(step, options, report, stopping)
        if then and outcome.complete:
            then()
    return outcome


@contextmanager
def launching(step: Step, options: RunOptions, wait: float = 0) -> Iterator[None]:
    """Hold the launcher's lock (see :meth:`RunFolder.launcher`); raise if a share is being computed."""
    with (
        explain_write_errors(step.output if step.writes_from < step.blocks else step.folder.path),
        step.folder.launcher(
            step.command,
            step.own_files,
            overwrite=options.overwrite,
            take_over=options.take_over and not wait,  # a share takes over its own lock, not the launcher's
            wait=wait,
        ),
    ):
        if not wait:
            step.folder.require_no_shares(take_over=options.take_over)
        yield


def prepare(step: Step, *, overwrite: bool = False) -> None:
    """Freeze the plan and create the output if they do not exist. The caller holds the launcher's lock."""
    step.clear_cache()
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
    """Freeze the plan unless one is frozen already, and return the frozen plan.

    An unreadable plan is replaced if :attr:`Step.replaces_unreadable_plan` is set.
    """
    try:
        return step.folder.publish_plan(step.plan, step.FORMAT)
    except UnetcliError:
        if not step.replaces_unreadable_plan:
            raise
        require_no_workers(step)
        step.folder.clear_run(step.own_files)
        return step.folder.publish_plan(step.plan, step.FORMAT)


def require_no_workers(step: Step) -> None:
    """Raise if a worker still uses the frozen plan, which is about to be replaced.

    The new plan may number the blocks differently.
    """
    step.folder.require_no_shares()
    require_no_live_jobs(step.output, step.folder)
    if left := end_earlier_launch(step.folder, []):
        raise UnetcliError(f"{step.output}: in use by {counted(left, 'worker')} of an earlier launch; try again later")


def run_to_completion(
    step: Step, options: RunOptions, report: ProgressCallback, stopping: Callable[[], bool]
) -> RunOutcome:
    """Compute the missing blocks, stage by stage, and finish. The caller holds the launcher's lock."""
    ledger = step.ledger.refresh()
    outcome = RunOutcome(found=ledger.done.copy(), done=ledger.done)
    while True:
        if not ledger.complete:
            compute_missing(step, options, outcome, report, stopping)
        if outcome.left_running or not ledger.refresh().complete or finish(step, outcome):
            break
    outcome.set_aside = current_failures(step.folder.failures, ledger)
    later = step.stages[0].blocks.stop
    if any(failure.kind == UNUSABLE and failure.block >= later for failure in outcome.set_aside):
        log.warning("`unetcli verify --repair %s` recomputes damaged blocks", step.output)
    return outcome


def compute_missing(
    step: Step, options: RunOptions, outcome: RunOutcome, report: ProgressCallback, stopping: Callable[[], bool]
) -> None:
    """Compute the missing blocks, stage by stage, until none is left or no progress is made."""
    attached = live_jobs(step.folder)
    end_earlier_launch(step.folder, attached)
    if not attached:
        step.folder.clear_failures()  # they are tried again
        step.folder.sweep_workers()
        step.sweep()
    first = step.stages[0].blocks
    step.announce(int(step.ledger.done[first.start : first.stop].sum()))
    progress = Progress(step, report)
    progress.report_now()
    with executor_for(options.where, step) as executor:
        retry_loop = RetryLoop(
            step=step,
            executor=executor,
            progress=progress,
            stopping=stopping,
            retries=0 if options.where.detach else options.retries,
        )
        try:
            outcome.failures = run_stages(step, retry_loop, stopping)
        except KeyboardInterrupt:
            name_running_jobs(step, executor)
            raise
        outcome.left_running = detached_jobs(executor)
    if not isinstance(executor, InProcess):  # it has logged each failure already
        for failure in current_failures(step.folder.failures, step.ledger.refresh()):
            log.warning("block %d (%s) set aside: %s", failure.block, failure.place, failure.reason)


def run_stages(step: Step, retry_loop: RetryLoop, stopping: Callable[[], bool]) -> list[JobFailure]:
    """Run the blocks of each stage in turn; return the jobs that failed in the last one."""
    failures = list[JobFailure]()
    while len(todo := step.pending()):
        step.prepare_stage(step.stage_of(int(todo[0])))
        failures = retry_loop.run(todo)
        if stopping() or not len(np.setdiff1d(step.pending(), todo)):
            break  # the missing blocks have been tried, or detached jobs compute them
    return failures


def finish(step: Step, outcome: RunOutcome) -> bool:
    """Finish a step whose blocks are all done; if one is damaged, void its receipt and return False."""
    try:
        outcome.result, outcome.complete = step.finish(), True
    except DamagedResult as error:
        if step.ledger.attempts[error.block] >= MAX_ATTEMPTS:
            raise
        log.warning("%s", error)
        void(step, step.ledger, [error.block])
        step.ledger.refresh()
    return outcome.complete


def name_running_jobs(step: Step, executor: Executor) -> None:
    """Log the SLURM jobs that keep running after Ctrl-C."""
    if isinstance(executor, SlurmExecutor) and executor.jobs:
        arrays = " ".join(arrays_of(executor.jobs))
        shown = f"`unetcli status {pasted(step.output)}` shows them"
        ways = f"{shown}, the same command attaches, `scancel {arrays}` cancels them"
        log.info("SLURM jobs still running: %d; %s", len(executor.jobs), ways)


def arrays_of(jobs: Iterable[str]) -> list[str]:
    """Return the ids of the arrays that the jobs belong to.

    >>> arrays_of(["12_0", "12_1", "15"])
    ['12', '15']
    """
    return list(dict.fromkeys(job.partition("_")[0] for job in jobs))
