"""A share of the blocks for each element of a hand-written job array or workflow; the last one to end finishes."""

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
from unetcli.engine.run import Progress, Rounds, RunOptions, RunOutcome, launching, prepare, work_off
from unetcli.engine.runfolder import RunFolder, ShareLayout
from unetcli.engine.step import Step
from unetcli.executors.contract import InProcess

log = logging.getLogger(__name__)

WAIT_SECONDS = 300.0
"""How long a share waits for another one that sets up the run or finishes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareOutcome:
    """What one share found and did."""

    blocks: NDArray[np.intp]
    share: RunOutcome
    whole: RunOutcome | None
    """How finishing ended; None where another share finishes."""


def run_share(
    step: Step,
    share: tuple[int, int] | None,
    options: RunOptions,
    announce: Callable[[int, tuple[int, int]], None],
    report: ProgressCallback = silent,
    stopping: Callable[[], bool] = bool,
) -> ShareOutcome:
    """Compute share I of N of the first stage, or the one that the array's environment names (None).

    ``announce`` is called with the number of blocks found done and the share, before anything is computed.

    Raises
    ------
    UnetcliError
        The share is at work elsewhere, or the run was divided otherwise.
    """
    if share is None:
        array_index()  # before anything is written
    with ExitStack() as held:
        with launching(step, options, wait=WAIT_SECONDS):
            prepare(step, overwrite=options.overwrite)
            lift_stop(step.folder)
            number, count = resolve_share(step.folder, share)
            held.enter_context(hold(step.folder.share_lock(number), take_over=options.take_over))
        ledger, mine = step.ledger.refresh(), share_blocks(step, number, count)
        outcome = RunOutcome(found=ledger.done.copy(), done=ledger.done)
        announce(int(ledger.done[mine].sum()), (number, count))
        outcome.failures = Rounds(
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
    """Share ``number`` of ``count``: consecutive blocks of the first stage, sizes differing by one at most."""
    blocks = len(step.stages[0].blocks)
    return np.arange(blocks * number // count, blocks * (number + 1) // count)


def finish_if_last(step: Step, options: RunOptions, stopping: Callable[[], bool]) -> RunOutcome | None:
    """Work off later stages and finish, if nothing is missing of the first; of several that find so, one does it."""
    if not shares_done(step):
        return None
    try:
        with launching(step, options, wait=WAIT_SECONDS):
            now = type(step).open(step.folder)  # another share may have asked for other levels
            return work_off(step if now.plan == step.plan else now, options, silent, stopping)
    except InUse as error:  # setting up takes no time: who holds the lock for so long is finishing
        log.info("left to another: %s", error)
        return None


def finish_shares(
    step: Step, options: RunOptions, report: ProgressCallback, stopping: Callable[[], bool]
) -> RunOutcome:
    """Finish a run whose blocks were computed in shares; changes nothing where some are missing."""
    with launching(step, options, wait=WAIT_SECONDS):
        if shares_done(step):
            prepare(step)
            return work_off(step, options, report, stopping)
        ledger = step.ledger
        failures = current_failures(step.folder.failures, ledger)
        return RunOutcome(found=ledger.done.copy(), done=ledger.done, set_aside=failures)


def shares_done(step: Step) -> bool:
    """Whether every block of the first stage has its receipt."""
    first = step.stages[0].blocks
    return bool(step.ledger.refresh().done[first.start : first.stop].all())


def lift_stop(folder: RunFolder) -> None:
    """Have a stop of earlier shares forgotten: by the first one after them, but not by others of the same array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if not folder.stop.exists() or any(
        failure.job.split("_")[0] == array for failure in read_failures(folder.failures)
    ):
        return
    with suppress(UnetcliError):  # others are at work: they are to see it
        folder.require_no_shares()
        folder.clear_failures()


def resolve_share(folder: RunFolder, share: tuple[int, int] | None) -> tuple[int, int]:
    """Number and count of a share; the count is frozen by the first one that asks."""
    if share is None:
        return share_of_array(folder)
    frozen = folder.publish_share_layout(ShareLayout(count=share[1]))
    if frozen.count != share[1]:
        raise UnetcliError(
            f"--share {share[0]}/{share[1]}: this run was divided into {frozen.count} shares; "
            f"--share I/{frozen.count} fits, --overwrite starts anew"
        )
    return share


def share_of_array(folder: RunFolder) -> tuple[int, int]:
    """The share that this element of a SLURM array stands for; a later array may name just some of the elements."""
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
    """Number of this element of a SLURM array."""
    index = os.environ.get("SLURM_ARRAY_TASK_ID", "")
    if not index.isdecimal():
        raise UnetcliError("--share auto: no SLURM array element here ($SLURM_ARRAY_TASK_ID); --share I/N names one")
    return int(index)


def layout_of_array() -> ShareLayout:
    """One share for each element of this job array."""
    names = ("MIN", "MAX", "STEP", "COUNT")
    try:
        first, last, step, count = (int(os.environ[f"SLURM_ARRAY_TASK_{name}"]) for name in names)
    except (KeyError, ValueError):
        raise UnetcliError("--share auto: the array's size is not in the environment; --share I/N says it") from None
    if (last - first) // step + 1 != count:
        raise UnetcliError(
            f"--share auto: an array of {count} elements between {first} and {last} is not whole, and nothing says how "
            f"many shares there are; run the whole array first, or --share $SLURM_ARRAY_TASK_ID/N"
        )
    return ShareLayout(count=count, first=first, step=step)
