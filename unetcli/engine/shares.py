"""Run one share of the blocks per element of a user's job array or workflow; the last one finishes the step."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.lock import InUse, hold
from unetcli.core.streams import ProgressCallback, silent
from unetcli.engine.receipts import current_failures, read_failures
from unetcli.engine.run import Progress, RetryLoop, RunOptions, RunOutcome, launching, prepare, run_to_completion
from unetcli.engine.runfolder import RunFolder, ShareLayout
from unetcli.engine.step import Step
from unetcli.executors.contract import InProcess

log = logging.getLogger(__name__)

WAIT_SECONDS = 300.0
"""Time that a share waits for another one that sets up or finishes the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareOutcome:
    """Outcome of one share."""

    blocks: NDArray[np.intp]
    share: RunOutcome
    whole: RunOutcome | None
    """Outcome of finishing the run; None if another share finishes it."""


def run_share(
    step: Step,
    share: tuple[int, int] | None,
    options: RunOptions,
    announce: Callable[[int, tuple[int, int]], None],
    report: ProgressCallback = silent,
    stopping: Callable[[], bool] = bool,
) -> ShareOutcome:
    """Compute share I of N of the first stage; if ``share`` is None, the environment of the array element names it.

    ``announce`` is called with the number of blocks done before and the share, before anything is computed.

    Raises
    ------
    UnetcliError
        Another process is computing the share, or the run has another number of shares.
    """
    if share is None:
        array_index()  # raises before anything is written
    with ExitStack() as held:
        with launching(step, options, wait=WAIT_SECONDS):
            prepare(step, overwrite=options.overwrite)
            clear_stop(step.folder)
            number, count = resolve_share(step.folder, share)
            held.enter_context(hold(step.folder.share_lock(number), take_over=options.take_over))
        ledger, mine = step.ledger.refresh(), share_blocks(step, number, count)
        outcome = RunOutcome(found=ledger.done.copy(), done=ledger.done)
        announce(int(ledger.done[mine].sum()), (number, count))
        outcome.failures = RetryLoop(
            step=step,
            executor=InProcess(),
            progress=Progress(step, report, mine),
            stopping=stopping,
            retries=options.retries,
        ).run(mine)
    outcome.complete = bool(ledger.refresh().done[mine].all())
    outcome.set_aside = current_failures(step.folder.failures, ledger)
    return ShareOutcome(blocks=mine, share=outcome, whole=finish_if_last(step, options, stopping))


def share_blocks(step: Step, number: int, count: int) -> NDArray[np.intp]:
    """Return share ``number`` of ``count``: consecutive blocks of the first stage; sizes differ by at most one."""
    blocks = len(step.stages[0].blocks)
    return np.arange(blocks * number // count, blocks * (number + 1) // count)


def finish_if_last(step: Step, options: RunOptions, stopping: Callable[[], bool]) -> RunOutcome | None:
    """Compute the later stages and finish once the first stage is done; only one of several shares does so."""
    if not shares_done(step):
        return None
    try:
        with launching(step, options, wait=WAIT_SECONDS):
            now = type(step).open(step.folder)  # another share may have asked for other levels
            return run_to_completion(step if now.plan == step.plan else now, options, silent, stopping)
    except InUse as error:  # setup is short: a share that holds the lock for so long is finishing the run
        log.info("another share finishes the run: %s", error)
        return None


def finish_shares(
    step: Step, options: RunOptions, report: ProgressCallback, stopping: Callable[[], bool]
) -> RunOutcome:
    """Finish a run whose blocks were computed in shares; change nothing if some are missing."""
    with launching(step, options, wait=WAIT_SECONDS):
        if shares_done(step):
            prepare(step)
            return run_to_completion(step, options, report, stopping)
        ledger = step.ledger
        failures = current_failures(step.folder.failures, ledger)
        return RunOutcome(found=ledger.done.copy(), done=ledger.done, set_aside=failures)


def shares_done(step: Step) -> bool:
    """Return whether every block of the first stage has a receipt."""
    first = step.stages[0].blocks
    return bool(step.ledger.refresh().done[first.start : first.stop].all())


def clear_stop(folder: RunFolder) -> None:
    """Clear the stop file of earlier shares, unless shares of the same array wrote it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if not folder.stop.exists() or any(
        failure.job.split("_")[0] == array for failure in read_failures(folder.failures)
    ):
        return
    with suppress(UnetcliError):  # other shares are running and have to see the stop file
        folder.require_no_shares()
        folder.clear_failures()


def resolve_share(folder: RunFolder, share: tuple[int, int] | None) -> tuple[int, int]:
    """Return number and count of a share; the first share freezes the count."""
    if share is None:
        return share_of_array(folder)
    frozen = folder.publish_share_layout(ShareLayout(count=share[1]))
    if frozen.count != share[1]:
        raise UnetcliError(
            f"--share {share[0]}/{share[1]}: this run was divided into {frozen.count} shares; "
            f"use --share I/{frozen.count}, or --overwrite to start over"
        )
    return share


def share_of_array(folder: RunFolder) -> tuple[int, int]:
    """Return the share of this SLURM array element; a later array may consist of some of the elements only."""
    index = array_index()
    frozen = folder.share_layout() or folder.publish_share_layout(layout_of_array())
    number, rest = divmod(index - frozen.first, frozen.step)
    if rest or not 0 <= number < frozen.count:
        last = frozen.first + (frozen.count - 1) * frozen.step
        raise UnetcliError(
            f"--share auto: array element {index}, but this run was divided into the elements {frozen.first}-{last}"
            + (f":{frozen.step}" if frozen.step > 1 else "")
        )
    return number, frozen.count


def array_index() -> int:
    """Return the index of this SLURM array element."""
    index = os.environ.get("SLURM_ARRAY_TASK_ID", "")
    if not index.isdecimal():
        raise UnetcliError("--share auto: $SLURM_ARRAY_TASK_ID is not set; outside of a SLURM array, use --share I/N")
    return int(index)


def layout_of_array() -> ShareLayout:
    """Return a layout with one share per element of this job array."""
    names = ("MIN", "MAX", "STEP", "COUNT")
    try:
        first, last, step, count = (int(os.environ[f"SLURM_ARRAY_TASK_{name}"]) for name in names)
    except (KeyError, ValueError):
        raise UnetcliError(
            "--share auto: the environment does not state the size of the array; use --share I/N"
        ) from None
    if (last - first) // step + 1 != count:
        raise UnetcliError(
            f"--share auto: an array of {count} elements between {first} and {last} is incomplete, and the number of "
            f"shares is unknown; run the whole array first, or use --share $SLURM_ARRAY_TASK_ID/N"
        )
    return ShareLayout(count=count, first=first, step=step)
