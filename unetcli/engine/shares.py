"""predict as one of many: a share of the blocks for each element of a hand-written job array or workflow."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import numpy as np
from numpy.typing import NDArray

from unetcli.config import PredictRequest
from unetcli.core.errors import UnetcliError
from unetcli.core.files import telling_unwritable
from unetcli.core.lock import InUse, hold
from unetcli.engine.closing import Closing, close
from unetcli.engine.prediction import Ends, PredictSummary, announce, summarise
from unetcli.engine.receipts import Ledger
from unetcli.engine.rounds import Progress, Report, Rounds
from unetcli.engine.run import Run
from unetcli.engine.runfolder import Division, RunFolder
from unetcli.engine.troubles import read_troubles
from unetcli.engine.worker import run_blocks
from unetcli.executors.contract import InProcess, JobFailure

log = logging.getLogger(__name__)

WAIT_SECONDS = 300.0
"""How long a share waits for another one that sets up the run or closes it."""


def predict_share(
    request: PredictRequest,
    share: tuple[int, int] | None,
    report: Report = lambda done, total: None,
    stopping: Callable[[], bool] = bool,
) -> PredictSummary:
    """Compute share I of N, or the one that the array's environment names (None); the last one done closes.

    Raises
    ------
    UnetcliError
        The share is at work elsewhere, or the run was divided otherwise.
    """
    started = time.perf_counter()
    if share is None:
        array_index()  # before anything is written
    run = Run.settle(request)
    with telling_unwritable(request.output_path), ExitStack() as held:
        with run.launcher(wait=WAIT_SECONDS):
            run.prepare()
            lift_stop(run.folder)
            number, count = resolve_share(run.folder, share)
            held.enter_context(hold(run.folder.share_lock(number), take_over=request.take_over))
        ledger = run.folder.ledger(run.plan.blocks)
        mine = np.array(run.plan.share(number, count).blocks, np.intp)
        found = int(ledger.done[mine].sum())
        announce(run, found, share=(number, count))
        failures = compute_share(run, ledger, mine, report, stopping)
    closing = close_if_last(run, ledger, stopping)
    return summarise(run, ledger, found, Ends(failures), closing, time.perf_counter() - started, mine)


def compute_share(
    run: Run, ledger: Ledger, blocks: NDArray[np.intp], report: Report, stopping: Callable[[], bool]
) -> list[JobFailure]:
    """Work off those of the blocks that are missing."""
    return Rounds(
        executor=InProcess(),
        task=run_blocks,
        folder=run.folder,
        ledger=ledger,
        progress=Progress(run.plan, ledger, report, blocks),
        stopping=stopping,
        retries=run.request.retries,
    ).run(blocks)


def lift_stop(folder: RunFolder) -> None:
    """Have a stop of earlier shares forgotten: by the first one after them, but not by others of the same array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if not folder.stop.exists() or any(
        trouble.job.split("_")[0] == array for trouble in read_troubles(folder.troubles)
    ):
        return
    with suppress(UnetcliError):  # others are at work: they are to see it
        folder.require_no_shares()
        folder.forget_troubles()


def close_if_last(run: Run, ledger: Ledger, stopping: Callable[[], bool]) -> Closing | None:
    """Close the run if nothing is missing; of several that find so, one does it. None for the others."""
    if not ledger.refresh().complete:
        return None
    with telling_unwritable(run.request.output_path):
        try:
            with run.launcher(wait=WAIT_SECONDS):
                return close(run, ledger, stopping=stopping)
        except InUse as error:  # setting up takes no time: who holds the lock for so long is closing
            log.info("left to another: %s", error)
            return None


def close_run(
    request: PredictRequest,
    report: Report = lambda done, total: None,
    stopping: Callable[[], bool] = bool,
) -> PredictSummary:
    """Mark an output complete whose blocks were computed in shares; changes nothing where some are missing."""
    started = time.perf_counter()
    run = Run.settle(request)
    if run.folder.plan() is None:
        raise UnetcliError(f"{request.output_path}: nothing to close, no share has begun it")
    with telling_unwritable(request.output_path), run.launcher(wait=WAIT_SECONDS):
        run.prepare()
        ledger = run.folder.ledger(run.plan.blocks)
        closing = close(run, ledger, report=report, stopping=stopping)
    return summarise(run, ledger, int(ledger.done.sum()), Ends(), closing, time.perf_counter() - started)


def resolve_share(folder: RunFolder, share: tuple[int, int] | None) -> tuple[int, int]:
    """Number and count of a share; the count is frozen by the first one that asks."""
    if share is None:
        return share_of_array(folder)
    frozen = folder.publish_division(Division(count=share[1]))
    if frozen.count != share[1]:
        raise UnetcliError(
            f"--share {share[0]}/{share[1]}: this run was divided into {frozen.count} shares; "
            f"--share I/{frozen.count} fits, --overwrite starts anew"
        )
    return share


def share_of_array(folder: RunFolder) -> tuple[int, int]:
    """The share that this element of a SLURM array stands for; a later array may name just some of the elements."""
    index = array_index()
    frozen = folder.division() or folder.publish_division(division_of_array())
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


def division_of_array() -> Division:
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
    return Division(count=count, first=first, step=step)
