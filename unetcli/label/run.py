"""label: from a request to complete labels, on any cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unetcli.engine.retry import Report
from unetcli.engine.run import RunOptions, RunOutcome, quiet, run
from unetcli.executors.options import ClusterOptions
from unetcli.label.ctc import export, require_exportable
from unetcli.label.request import LabelRequest
from unetcli.label.resolve import resolve_step
from unetcli.label.step import LabelStep
from unetcli.volumes.opening import open_volume


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


def label_volume(
    request: LabelRequest,
    report: Report = quiet,
    stopping: Callable[[], bool] = bool,
    where: ClusterOptions | None = None,
) -> LabelSummary:
    """Instances of a prediction, block by block, in its ``labels`` group; continues where an earlier call stopped.

    Raises
    ------
    UnetcliError
        Anything about the request that the user can put right; nothing has been written then.
    """
    started, frames = time.perf_counter(), list[int]()
    if request.ctc:
        require_exportable(request.ctc)
    step = resolve_step(request)
    options = RunOptions(
        where=where or ClusterOptions(),
        retries=request.retries,
        overwrite=request.overwrite,
        take_over=request.take_over,
    )

    def export_frames() -> None:
        if request.ctc:
            frames.append(export(open_volume(step.output), request.ctc, three_d=request.three_d))

    outcome = run(step, options, report, stopping, then=export_frames)
    return summarise(step, outcome, frames[0] if frames else None, time.perf_counter() - started)


def summarise(step: LabelStep, outcome: RunOutcome, frames: int | None, seconds: float) -> LabelSummary:
    """The summary of a call."""
    merged = step.files.merged() if step.files.summary_file.exists() else {}
    found, done = int(outcome.found.sum()), int(outcome.done.sum())
    return LabelSummary(
        output=step.paths.output,
        table=str(step.table),
        complete=outcome.complete,
        objects=merged.get("objects"),
        removed=merged.get("removed"),
        provisional=merged.get("provisional"),
        sizes=merged.get("sizes"),
        dtype=merged.get("dtype"),
        method=step.plan.settings.method,
        threshold=step.plan.settings.threshold,
        blocks=step.plan.blocks,
        found_done=found,
        made=done - found,
        **outcome.notes(),
        ctc_frames=frames,
        seconds=round(seconds, 3),
    )
