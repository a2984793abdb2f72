"""predict: from a request to a complete output, on any cluster, or as one of many shares."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, is_remote, require_apart
from unetcli.core.streams import ProgressCallback, silent
from unetcli.engine.run import RunOptions, RunOutcome, arrays_of, run
from unetcli.engine.runfolder import PREDICT, require_claimable
from unetcli.engine.shares import ShareOutcome, finish_shares, run_share
from unetcli.engine.step import require_continued
from unetcli.executors.options import ClusterOptions
from unetcli.model.file import find_model
from unetcli.planning.plan import FORMAT, Plan
from unetcli.planning.planner import wasted_work
from unetcli.predict.request import PredictRequest
from unetcli.predict.resolve import folder_of, resolve_plan, with_machine
from unetcli.predict.step import PredictStep, log_plan
from unetcli.predict.stores import Paths
from unetcli.volumes.image import require_no_foreign_labels, require_own_output
from unetcli.volumes.opening import open_volume

ELSEWHERE = "--output names another place"


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictSummary:
    """What a call of predict found and did."""

    output: str
    complete: bool
    """Whether the whole output is, with the coarser levels that were asked for."""
    finished: bool
    """Whether this call left nothing undone: of the whole output, or of a share and, for the last one, of finishing."""
    blocks: int
    """Blocks of full resolution that this call was to compute; ``found_done`` and ``computed`` count these."""
    found_done: int
    computed: int
    set_aside: list[dict[str, Any]]
    """Block, place and reason, of blocks that have no result."""
    failed_jobs: list[str]
    jobs: list[str]
    """SLURM jobs that were left at work, with ``--detach``."""
    voxels: int
    """Voxels of the output, computed by this call."""
    seconds: float
    voxels_per_second: float
    tile: list[int]
    block_shape: list[int]
    wasted_work: float
    device: str
    precision: str
    levels_missing: int
    """Blocks of coarser levels that are not made, though full resolution is complete."""

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
    report: ProgressCallback = silent,
    stopping: Callable[[], bool] = bool,
    where: ClusterOptions | None = None,
) -> PredictSummary:
    """Foreground probabilities of a volume, block by block; continues where an earlier call stopped.

    ``stopping`` is asked before each block; once true, what is at work is finished and the rest left for another call.

    Raises
    ------
    UnetcliError
        Anything about the request that the user can put right; nothing has been written then.
    """
    started = time.perf_counter()
    step = resolve_step(with_machine(request, where or request))
    outcome = run(step, RunOptions.of(request, where), report, stopping)
    return summarise(step, outcome, time.perf_counter() - started)


def predict_share(
    request: PredictRequest,
    share: tuple[int, int] | None,
    report: ProgressCallback = silent,
    stopping: Callable[[], bool] = bool,
) -> PredictSummary:
    """Compute share I of N, or the one that the array's environment names (None); the last one to end finishes.

    Raises
    ------
    UnetcliError
        The share is at work elsewhere, or the run was divided otherwise.
    """
    started, step, here = time.perf_counter(), resolve_step(request), RunOptions.of(request, ClusterOptions())
    outcome = run_share(step, share, here, lambda found, mine: log_plan(step, found, mine), report, stopping)
    return summarise_share(step, outcome, time.perf_counter() - started)


def close_run(
    request: PredictRequest, report: ProgressCallback = silent, stopping: Callable[[], bool] = bool
) -> PredictSummary:
    """Finish an output whose blocks were computed in shares; changes nothing where some are missing."""
    started, step = time.perf_counter(), resolve_step(request)
    if not step.folder.plan_file.exists():
        raise UnetcliError(f"{request.output_path}: nothing to close, no share has begun it")
    outcome = finish_shares(step, RunOptions.of(request, ClusterOptions()), report, stopping)
    return summarise(step, outcome, time.perf_counter() - started)


def resolve_step(request: PredictRequest) -> PredictStep:
    """Resolve a request; nothing is written yet.

    Raises
    ------
    UnetcliError
        Anything about the request that the user can put right.
    """
    model, source = find_model(request.model), open_volume(request.volume)
    inputs = [request.volume, *([request.mask] if request.mask else [])]
    made = require_place(request.output_path, [*inputs, model])  # before the plan: another share may publish both now
    require_alone(request)
    if request.overwrite:
        require_no_foreign_labels(request.output_path)
    folder = folder_of(request)
    require_claimable(folder.path, PREDICT, overwrite=request.overwrite)
    frozen = None if request.overwrite else folder.read_plan(Plan, FORMAT)
    step = PredictStep(folder=folder, plan=resolve_plan(request, source, model, frozen), paths=paths_of(request, model))
    step.known(made)
    if not request.overwrite and (frozen or made):
        require_continued(step, frozen, f"--overwrite starts anew, {ELSEWHERE}")
    return step


def paths_of(request: PredictRequest, model: Path) -> Paths:
    """Where the data of a request lie now."""
    return Paths(
        volume=request.volume,
        model=str(model),
        output=str(request.output_path),
        mask=request.mask,
        device=request.device,
    )


def require_place(output: Place, inputs: Sequence[Place]) -> dict[str, Any] | None:
    """The marker of the output; refuses one that would touch an input, or anything that unetcli did not write."""
    require_apart(output, inputs)
    if not is_remote(output) and not (folder := Path(output).absolute().parent).is_dir():
        raise UnetcliError(f"{output}: the folder {folder} does not exist")
    return require_own_output(output, PREDICT, ELSEWHERE)


def require_alone(request: PredictRequest) -> None:
    """Refuse to replace an output from one of many jobs that share it."""
    if request.overwrite and (task := os.environ.get("SLURM_ARRAY_TASK_ID")):
        raise UnetcliError(
            f"--overwrite: refused in array element {task}, which shares {request.output_path} with others"
        )


def summarise(
    step: PredictStep,
    outcome: RunOutcome,
    seconds: float,
    blocks: NDArray[np.intp] | None = None,
    finished: bool | None = None,
) -> PredictSummary:
    """The summary of a call over some blocks of full resolution (default: all)."""
    plan = step.plan
    wanted = np.arange(plan.blocks) if blocks is None else blocks
    found, done = int(outcome.found[wanted].sum()), int(outcome.done[wanted].sum())
    voxels = round(plan.region.size * (done - found) / plan.blocks)
    levels = outcome.done[plan.blocks :] if outcome.done[: plan.blocks].all() else np.ones(0, np.bool_)
    finished = outcome.complete if finished is None else finished
    return PredictSummary(
        output=str(step.paths.output),
        complete=finished and step.is_complete(),
        finished=finished,
        blocks=len(wanted),
        found_done=found,
        computed=done - found,
        **outcome.notes(),
        voxels=voxels,
        seconds=round(seconds, 3),
        voxels_per_second=round(voxels / seconds, 1),
        tile=list(plan.tile),
        block_shape=list(plan.block_shape),
        wasted_work=round(wasted_work(plan), 4),
        device=plan.settings.device,
        precision=plan.settings.precision,
        levels_missing=int((~levels).sum()),
    )


def summarise_share(step: PredictStep, outcome: ShareOutcome, seconds: float) -> PredictSummary:
    """The summary of a share, and of finishing where it was the last one."""
    finished = outcome.share.complete and (outcome.whole is None or outcome.whole.complete)
    step.look_again()  # the run may have been finished by another step, with other levels
    told = outcome.share
    if outcome.whole is not None:
        told.done = outcome.whole.done
        told.failures = [*told.failures, *outcome.whole.failures]
        told.set_aside = outcome.whole.set_aside
    mine = set(outcome.blocks.tolist())
    told.set_aside = [each for each in told.set_aside if each.block in mine or each.block >= step.plan.blocks]
    return summarise(step, told, seconds, outcome.blocks, finished)
