"""The library calls behind ``predict``: a whole output on any cluster, or one of many shares."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError, counted, pasted, require_no_warnings, warn
from unetcli.core.files import Place, require_apart, require_folder_for
from unetcli.core.streams import ProgressCallback, silent
from unetcli.engine.run import RunOptions, RunOutcome, arrays_of, run
from unetcli.engine.runfolder import PREDICT, require_claimable
from unetcli.engine.shares import ShareOutcome, finish_shares, run_share
from unetcli.engine.step import OtherSettings, require_continued
from unetcli.executors.options import ClusterOptions
from unetcli.planning.plan import FORMAT, Plan
from unetcli.predict.models import find_models
from unetcli.predict.request import PredictRequest
from unetcli.predict.resolve import folder_of, resolve_plan, with_machine
from unetcli.predict.step import PredictStep, log_plan
from unetcli.predict.stores import Paths
from unetcli.volumes.image import require_no_foreign_labels, require_own_output
from unetcli.volumes.opening import open_volume

OTHER_OUTPUT = "choose another path with --output"
"""Advice in errors about an output that cannot be written or continued."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictSummary:
    """Outcome of a call of ``predict``."""

    output: str
    complete: bool
    """Whether the whole output is complete, with the coarser levels that were requested."""
    finished: bool
    """Whether this call left nothing to do: its whole output, or its share, is finished. The last share is finished
    once the output is complete."""
    blocks: int
    """Blocks of full resolution that this call had to compute; ``found_done`` and ``computed`` count these."""
    found_done: int
    """Blocks that earlier calls had computed."""
    computed: int
    """Blocks that this call computed."""
    set_aside: list[dict[str, Any]]
    """Block, place and reason of each block without a result."""
    failed_jobs: list[str]
    """Jobs that failed, with host and reason."""
    jobs: list[str]
    """SLURM jobs that are still running or queued, with ``--detach``."""
    voxels: int
    """Voxels of the output that this call computed."""
    seconds: float
    """Duration of this call."""
    voxels_per_second: float
    tile: list[int]
    """Input shape of a tile, in voxels."""
    block_shape: list[int]
    """Shape of a block, in voxels."""
    wasted_work: float
    """Multiply-adds of all tiles, as a multiple of those of a tile without end, minus 1."""
    device: str
    """Kind of device: cpu, cuda or mps."""
    precision: str
    """Precision of the network: float32 or bfloat16."""
    rotations: int
    """Turned copies of each tile that were averaged; 1: the tile alone."""
    models: int
    """Models whose probabilities were averaged."""
    levels_missing: int
    """Blocks of coarser levels that are missing although full resolution is complete."""
    warnings: tuple[str, ...] = ()
    """Warnings that this call gave: reasons to doubt the result."""

    @property
    def sentence(self) -> str:
        """The outcome in one line."""
        if self.jobs:
            jobs = f"{counted(len(self.jobs), 'SLURM job')} ({' '.join(arrays_of(self.jobs))})"
            return f"{self.output}: {jobs}; `unetcli status {pasted(self.output)}` shows the progress"
        if self.found_done == self.blocks and self.finished:
            return f"{self.output}: already {self._state} ({counted(self.blocks, 'block')})"
        mega = self.voxels / 1e6
        done = f"{self.computed} of {self.blocks} blocks computed, {self.found_done} already done"
        pace = f"{mega:.1f} Mvoxels in {self.seconds:.1f} s ({self.voxels_per_second / 1e6:.2f} Mvoxels/s)"
        return f"{self.output}: {done}; {pace}; {self._state}"

    @property
    def _state(self) -> str:
        if self.complete:
            return "complete"
        if self.finished:
            return "complete as a share, other shares are missing"
        levels = f"{counted(self.levels_missing, 'block')} of coarser levels missing; " if self.levels_missing else ""
        aside = f"{len(self.set_aside)} set aside (see above); " if self.set_aside else ""
        jobs = f"{counted(len(self.failed_jobs), 'job')} failed; " if self.failed_jobs else ""
        return f"INCOMPLETE; {levels}{aside}{jobs}the same command continues"


def predict_volume(
    request: PredictRequest,
    report: ProgressCallback = silent,
    stopping: Callable[[], bool] = bool,
    cluster: ClusterOptions | None = None,
) -> PredictSummary:
    """Write the class probabilities of a volume, block by block; continues where an earlier call stopped.

    Parameters
    ----------
    request : PredictRequest
    report : callable
        Receives the progress in voxels.
    stopping : callable
        Called before each block. Once it returns True, blocks in progress are finished and the others are left for
        another call.
    cluster : ClusterOptions, optional
        Where the blocks are computed. Default: as the request says.

    Raises
    ------
    UnetcliError
        Volume, model or options do not fit together; nothing has been written.
    """
    started = time.perf_counter()
    step = resolve_step(with_machine(request, cluster or request))
    outcome = run(step, RunOptions.of(request, cluster), report, stopping)
    return summarise(step, outcome, time.perf_counter() - started)


def predict_share(
    request: PredictRequest,
    share: tuple[int, int] | None,
    report: ProgressCallback = silent,
    stopping: Callable[[], bool] = bool,
) -> PredictSummary:
    """Compute one share of a run; the last share to end completes the output.

    Parameters
    ----------
    request : PredictRequest
    share : (I, N) with I from 0, or None
        None takes both from the environment of a SLURM array task.
    report, stopping
        As of :func:`predict_volume`.

    Raises
    ------
    UnetcliError
        Another process works on this share, or the run was divided into another number of shares.
    """
    started, here = time.perf_counter(), RunOptions.of(request, ClusterOptions())

    def run_now() -> tuple[PredictStep, ShareOutcome]:
        step = resolve_step(request)
        return step, run_share(step, share, here, lambda found, mine: log_plan(step, found, mine), report, stopping)

    try:
        step, outcome = run_now()
    except OtherSettings:  # those that another share chose and froze at this moment; they are taken now
        step, outcome = run_now()
    return summarise_share(step, outcome, time.perf_counter() - started)


def close_run(
    request: PredictRequest, report: ProgressCallback = silent, stopping: Callable[[], bool] = bool
) -> PredictSummary:
    """Complete an output whose shares are finished; changes nothing if blocks are missing.

    Raises
    ------
    UnetcliError
        No share has begun the output.
    """
    started, step = time.perf_counter(), resolve_step(request)
    if not step.folder.plan_file.exists():
        raise UnetcliError(f"{request.output_path}: nothing to close, as no share has begun this output")
    outcome = finish_shares(step, RunOptions.of(request, ClusterOptions()), report, stopping)
    return summarise(step, outcome, time.perf_counter() - started)


def resolve_step(request: PredictRequest) -> PredictStep:
    """Resolve a request to a step; nothing is written.

    Raises
    ------
    UnetcliError
        Volume, model or options do not fit, or the output cannot be written or continued.
    """
    models, source = find_models(request.model), open_volume(request.volume, parts=True)
    inputs = [request.volume, *([request.mask] if request.mask else [])]
    # Read before the plan, because another share may publish both at this moment.
    made = require_writable(request.output_path, [*inputs, *models])
    require_no_array(request)
    if request.overwrite:
        require_no_foreign_labels(request.output_path)
    folder = folder_of(request)
    require_claimable(folder.path, PREDICT, overwrite=request.overwrite)
    frozen = None if request.overwrite else folder.read_plan(Plan, FORMAT)
    step = PredictStep(
        folder=folder, plan=resolve_plan(request, source, models, frozen), paths=paths_of(request, models)
    )
    step.cache_marker(made)
    if not request.overwrite and (frozen or made):
        require_continued(step, frozen, f"start over with --overwrite, or {OTHER_OUTPUT}")
    require_no_warnings()
    return step


def paths_of(request: PredictRequest, models: Sequence[Path]) -> Paths:
    """Current paths of the data of a request."""
    return Paths(
        volume=request.volume,
        model=str(models[0]),
        others=tuple(map(str, models[1:])),
        output=str(request.output_path),
        mask=request.mask,
        device=request.device,
    )


def require_writable(output: Place, inputs: Sequence[Place]) -> dict[str, Any] | None:
    """The marker of the output, or None if there is no output yet.

    Raises
    ------
    UnetcliError
        The path overlaps an input, or exists and was not written by ``predict``.
    """
    require_apart(output, inputs)
    require_folder_for(output)
    return require_own_output(output, PREDICT, OTHER_OUTPUT)


def require_no_array(request: PredictRequest) -> None:
    """Refuse ``--overwrite`` in a task of a SLURM array: other tasks write to the same output."""
    if request.overwrite and (task := os.environ.get("SLURM_ARRAY_TASK_ID")):
        raise UnetcliError(
            f"--overwrite: refused in array element {task}, because other elements write to {request.output_path} too; "
            "submit the array without --overwrite"
        )


def summarise(
    step: PredictStep,
    outcome: RunOutcome,
    seconds: float,
    blocks: NDArray[np.intp] | None = None,
    finished: bool | None = None,
) -> PredictSummary:
    """Summary of a call.

    Parameters
    ----------
    step : PredictStep
    outcome : RunOutcome
    seconds : duration of the call
    blocks : (n,), intp, optional
        Numbers of the blocks of full resolution that the call had to compute. Default: all.
    finished : bool, optional
        Default: whether the output is complete.
    """
    plan = step.plan
    wanted = np.arange(plan.blocks) if blocks is None else blocks
    found, done = int(outcome.found[wanted].sum()), int(outcome.done[wanted].sum())
    voxels = round(plan.region.size * (done - found) / plan.blocks)
    levels = outcome.done[plan.blocks :] if outcome.done[: plan.blocks].all() else np.ones(0, np.bool_)
    finished = outcome.complete if finished is None else finished
    complete = finished and step.is_complete()
    if complete and (text := step.single_class()) is not None:
        warn(f"{step.paths.output}: {text}")
    return PredictSummary(
        output=str(step.paths.output),
        complete=complete,
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
        wasted_work=round(step.wasted_work, 4),
        device=plan.settings.device,
        precision=plan.settings.precision,
        rotations=plan.settings.rotations,
        models=plan.settings.models,
        levels_missing=int((~levels).sum()),
    )


def summarise_share(step: PredictStep, outcome: ShareOutcome, seconds: float) -> PredictSummary:
    """Summary of a share, and of completing the output if it was the last share."""
    finished = outcome.share.complete and (outcome.whole is None or outcome.whole.complete)
    step.clear_cache()  # another process may have completed the run, with other levels
    merged = outcome.share
    if outcome.whole is not None:
        merged.done = outcome.whole.done
        merged.failures = [*merged.failures, *outcome.whole.failures]
        merged.set_aside = outcome.whole.set_aside
    own = set(outcome.blocks.tolist())
    merged.set_aside = [each for each in merged.set_aside if each.block in own or each.block >= step.plan.blocks]
    return summarise(step, merged, seconds, outcome.blocks, finished)
