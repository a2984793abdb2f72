"""predict on one machine: make or adopt a plan, run the blocks that are missing, close."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.config import PredictRequest
from unetcli.errors import UnetcliError
from unetcli.files import remove_aside, require_apart, sweep
from unetcli.model import find_model
from unetcli.opening import open_volume
from unetcli.output import Output, marker, require_ours
from unetcli.plan import Plan, differences
from unetcli.planner import wasted_work
from unetcli.receipts import DONE, Receipt
from unetcli.resolve_predict import resolve_plan
from unetcli.runfolder import RunFolder
from unetcli.volume import Volume, describe
from unetcli.worker import Tally, Worker

log = logging.getLogger(__name__)

Report = Callable[[int, int], None]
"""Told of progress: voxels done by now, and in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictSummary:
    """What a call of predict found and did."""

    output: str
    complete: bool
    blocks: int
    found_done: int
    computed: int
    set_aside: list[dict[str, Any]]
    """Block, place and reason, of blocks whose input cannot be used."""
    voxels: int
    """Of the output, computed by this call."""
    seconds: float
    voxels_per_second: float
    tile: list[int]
    block_shape: list[int]
    wasted_work: float
    device: str
    precision: str

    @property
    def sentence(self) -> str:
        """The outcome in one line."""
        if self.found_done == self.blocks:
            return f"{self.output}: complete already, {self.blocks} blocks found done"
        mega = self.voxels / 1e6
        done = f"{self.computed} of {self.blocks} blocks computed, {self.found_done} found done"
        pace = f"{mega:.1f} Mvoxels in {self.seconds:.1f} s ({self.voxels_per_second / 1e6:.2f} Mvoxels/s)"
        aside = f"; {len(self.set_aside)} set aside (see above)" if self.set_aside else ""
        end = "complete" if self.complete else f"INCOMPLETE{aside}; the same command continues"
        return f"{self.output}: {done}; {pace}; {end}"


def predict_volume(
    request: PredictRequest, report: Report = lambda done, total: None, stopping: Callable[[], bool] = bool
) -> PredictSummary:
    """Foreground probabilities of a volume, block by block; goes on where an earlier call stopped.

    ``stopping`` is asked before each block; once true, what is at work is finished and the rest left for another call.

    Raises
    ------
    UnetcliError
        Anything about the request that the user can put right; nothing has been written then.
    """
    started = time.perf_counter()
    model, source = find_model(request.model), open_volume(request.volume)
    output = request.output_path
    require_place(output, [Path(request.volume), model])
    require_alone(request)
    folder = RunFolder.of(output)
    plan = settle_plan(request, source, model, folder)
    with folder.launcher(take_over=request.take_over):
        receipts = prepare(request, plan, folder, source)
        done = done_blocks(plan, receipts)
        sweep(folder.path)
        if not is_complete(output):
            sweep(output)
        tally = None
        if not done.all():
            announce(plan, source, output, int(done.sum()))
            worker = Worker(
                plan=plan,
                output=Output(output, plan),
                folder=folder,
                source=source,
                model=model,
                device=request.device,
            )
            tally = compute(worker, receipts, report, stopping)
        complete = int(done.sum()) + (tally.computed if tally else 0) == plan.blocks
        if complete and not is_complete(output):
            Output(output, plan).mark_complete()
    return summarise(plan, output, int(done.sum()), complete, tally, time.perf_counter() - started)


def require_place(output: Path, inputs: Sequence[Path]) -> None:
    """Refuse an output that would touch an input, or anything that is not ours."""
    require_apart(output, inputs)
    if not output.absolute().parent.is_dir():
        raise UnetcliError(f"{output}: the folder {output.absolute().parent} does not exist")
    require_ours(output)


def require_alone(request: PredictRequest) -> None:
    """Refuse to replace an output from one of many jobs that share it."""
    if request.overwrite and (task := os.environ.get("SLURM_ARRAY_TASK_ID")):
        raise UnetcliError(
            f"--overwrite: refused in array element {task}, which shares {request.output_path} with others"
        )


def settle_plan(request: PredictRequest, source: Volume, model: Path, folder: RunFolder) -> Plan:
    """The plan that the request means; refused where the output belongs to another one."""
    frozen = None if request.overwrite else folder.plan()
    plan = resolve_plan(request, source, model, frozen)
    if frozen:
        require_same(frozen, plan, request.output_path)
    elif marker(request.output_path) and not request.overwrite:
        raise UnetcliError(
            f"{request.output_path}: exists, but {folder.plan_file}, which says how it was made, is gone; "
            "--overwrite starts anew, --output names another place"
        )
    return plan


def require_same(frozen: Plan, plan: Plan, output: Path) -> None:
    """Refuse to go on with other settings than the output was begun with."""
    if told := differences(frozen, plan):
        raise UnetcliError(
            f"{output}: begun with other settings: {'; '.join(told)}; "
            "use those again, --overwrite starts anew, --output names another place"
        )


def prepare(request: PredictRequest, plan: Plan, folder: RunFolder, source: Volume) -> dict[int, Receipt]:
    """Freeze the plan and make the output where they are not there yet; the receipts that hold."""
    output = request.output_path
    if request.overwrite:
        folder.forget_run()
        if marker(output):
            remove_aside(output)
    require_same(folder.publish_plan(plan), plan, output)
    if marker(output) is None:
        folder.forget_receipts()  # of an output that was deleted
        Output(output, plan).create(source)
    folder.set_aside.unlink(missing_ok=True)  # they are tried again
    return folder.latest_receipts()


def done_blocks(plan: Plan, receipts: dict[int, Receipt]) -> NDArray[np.bool_]:
    """Which blocks have a receipt that counts."""
    done = np.zeros(plan.blocks, np.bool_)
    done[[receipt.block for receipt in receipts.values() if receipt.state == DONE]] = True
    return done


def compute(worker: Worker, receipts: dict[int, Receipt], report: Report, stopping: Callable[[], bool]) -> Tally:
    """Work off the blocks without a receipt, in this process."""
    done = done_blocks(worker.plan, receipts)
    total, progress = worker.plan.region.size, worker.plan.voxels(done)
    report(progress, total)

    def block_done(voxels: int) -> None:
        nonlocal progress
        progress += voxels
        report(progress, total)

    attempts = {number: receipt.attempt for number, receipt in receipts.items()}
    return worker.run(map(int, np.flatnonzero(~done)), attempts, block_done, stopping)


def is_complete(output: Path) -> bool:
    """Whether every block of a prediction of ours is there, by its own word."""
    return bool((marker(output) or {}).get("complete"))


def announce(plan: Plan, source: Volume, output: Path, found: int) -> None:
    """What is about to be done: where, and how."""
    tile, inner = plan.tile[-1], plan.footprint.output(plan.tile)[-1]
    blocks = f"{plan.blocks} blocks of {'x'.join(map(str, plan.block_shape))}"
    before = f" ({found} found done)" if found else ""
    log.info("%s (%s) -> %s", source.path, describe(plan.region, plan.axes), output)
    log.info(
        "%s%s; tile %d -> %d, %.0f%% extra for context; %s %s",
        blocks,
        before,
        tile,
        inner,
        100 * wasted_work(plan),
        plan.choices.device,
        plan.choices.precision,
    )


def summarise(
    plan: Plan, output: Path, found: int, complete: bool, tally: Tally | None, seconds: float
) -> PredictSummary:
    """The summary of a call; ``tally`` is None where nothing was left to do."""
    voxels = tally.voxels if tally else 0
    return PredictSummary(
        output=str(output),
        complete=complete,
        blocks=plan.blocks,
        found_done=found,
        computed=tally.computed if tally else 0,
        set_aside=tally.set_aside if tally else [],
        voxels=voxels,
        seconds=round(seconds, 3),
        voxels_per_second=round(voxels / seconds, 1),
        tile=list(plan.tile),
        block_shape=list(plan.block_shape),
        wasted_work=round(wasted_work(plan), 4),
        device=plan.choices.device,
        precision=plan.choices.precision,
    )
