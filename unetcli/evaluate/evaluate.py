"""Evaluate volumes and folders of the cell tracking challenge: count, score, compare."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from unetcli.core.arrays import Checksum, file_sha256
from unetcli.core.errors import Incomplete, UnetcliError, UnreadableBlock, counted, require_no_warnings, warn
from unetcli.core.geometry import Box
from unetcli.core.memory import available_memory
from unetcli.core.options import resolve_sections
from unetcli.core.process import cpu_threads
from unetcli.core.streams import ProgressCallback, ordered_map, silent
from unetcli.engine.run import RunOptions, RunOutcome, require_usable, run
from unetcli.engine.runfolder import EVALUATE, require_claimable
from unetcli.engine.step import is_unusable
from unetcli.evaluate.baseline import comparison_of, packed, require_baseline
from unetcli.evaluate.blocks import BlockCounter
from unetcli.evaluate.counting import Counts, CountsAccumulator, labels_of, probabilities, total_counts, unit_counts
from unetcli.evaluate.plan import MIN_UNITS, open_prediction, require_complete
from unetcli.evaluate.request import LABELS, METRICS, PROBABILITY, EvaluateRequest
from unetcli.evaluate.resolve import COMPONENTS, ResolvedRequest, kind_notes, resolve_kind
from unetcli.evaluate.result import Evaluation, SectionImages
from unetcli.evaluate.scoring import looks_inverted, score_all
from unetcli.evaluate.step import EvaluateStep, EvaluationPaths, folder_of
from unetcli.executors.options import ClusterOptions, slurm_request
from unetcli.executors.slurm.request import memory_in_bytes
from unetcli.metrics.cells import CellSums
from unetcli.volumes.ctc import (
    Challenge,
    Frames,
    Labels,
    VolumeFrames,
    is_challenge_result,
    open_challenge,
    open_frames,
    read_labels,
)
from unetcli.volumes.truth_frames import FrameKey, is_challenge_truth

log = logging.getLogger(__name__)


class Unfinished(Incomplete):
    """Raised if blocks are not counted yet; the same command continues."""

    def __init__(self, message: str, jobs: list[str]) -> None:
        super().__init__(message)
        self.jobs = jobs
        """SLURM jobs that continue, with ``--detach``."""


def count_in_folder(
    resolved: ResolvedRequest, where: ClusterOptions, report: ProgressCallback, stopping: Callable[[], bool]
) -> Counts:
    """Count all blocks in a run folder, which is deleted at the end.

    Raises
    ------
    Unfinished
        Blocks are missing.
    """
    request, folder = resolved.request, folder_of(resolved.request)
    require_claimable(folder.path, EVALUATE)
    step = EvaluateStep(folder=folder, plan=resolved.plan, paths=paths_of(resolved, where))
    outcome = run(step, RunOptions.of(request, where), report, stopping)
    require_counted(step, outcome)
    if request.run_folder is None:
        with suppress(OSError):  # the run folder of another step may be next to it
            folder.path.parent.rmdir()
    counts: Counts = outcome.result
    return counts


def paths_of(resolved: ResolvedRequest, where: ClusterOptions) -> EvaluationPaths:
    """Paths of the data, and threads of a local worker."""
    request = resolved.request
    threads = max(1, threads_that_fit(resolved) // (where.workers or 1)) if where.on_this_machine else None
    return EvaluationPaths(prediction=request.prediction, truth=request.truth, mask=request.mask, threads=threads)


def require_counted(step: EvaluateStep, outcome: RunOutcome) -> None:
    """Raise :class:`Unfinished` if blocks are missing, :class:`UnetcliError` if their data can never be read."""
    if outcome.left_running:
        jobs = list(outcome.left_running)
        raise Unfinished(f"{counted(len(jobs), 'SLURM job')} counting; the same command prints the scores later", jobs)
    require_usable(outcome, range(step.blocks), "scores")
    if not outcome.complete:
        missing = int((~outcome.done).sum())
        raise Unfinished(f"INCOMPLETE: {missing} of {step.blocks} blocks not counted; the same command continues", [])


CHALLENGE_METRICS = tuple(name for name, metric in METRICS.items() if metric.objects)
PARTIAL = (
    "the truth is incomplete, as gold truth may be: scores that extra objects of the result would lower are withheld"
)
UNSUPPORTED = {
    "classes": None,
    "background": None,
    "label_threshold": None,
    "roi": None,
    "mask": None,
    "level": 0,
    "three_d": None,
    "run_folder": None,
}
"""Options that cannot be used with folders of frames, and their defaults."""


@dataclass(frozen=True, slots=True)
class ComponentFrames:
    """Frames of a probability volume, as connected components above a threshold."""

    frames: VolumeFrames
    threshold: float

    @property
    def place(self) -> str:
        return self.frames.place

    def has(self, time: int) -> bool:
        return self.frames.has(time)

    def read(self, time: int) -> Labels:
        values = self.frames.stored(time)
        if values.ndim != 2:
            raise UnetcliError(
                f"{self.place}: frames have {values.ndim} axes, expected y, x; run `unetcli label` first"
            )
        return labels_of(probabilities(values[None], self.place), self.threshold, pieces=True)


def evaluate_challenge(request: EvaluateRequest, report: ProgressCallback, where: ClusterOptions) -> Evaluation:
    """Score a result against a truth folder of the cell tracking challenge; see :func:`evaluate_volume`."""
    metrics = require_possible(request, where)
    frames, notes = frames_of(request)
    challenge = chosen_frames(open_challenge(frames, request.truth), request)
    scope = scope_of(challenge, request)
    require_baseline(request, scope)
    keys = sorted({*challenge.segmented, *challenge.marked})
    partial, by_object = challenge.is_partial(), "cells" in metrics and len(challenge.segmented) < MIN_UNITS
    if not challenge.segmented:
        metrics = ("cells",)
    counts = count_frames(challenge, request.ignore, keys, metrics, report, by_object=by_object)
    places = [((key.time,) if key.section < 0 else (key.time, key.section), str(key)) for key in keys]
    scored = score_all(counts, metrics, places, by_object=by_object, partial=partial)
    shape = read_labels(next(iter({**challenge.segmented, **challenge.marked}.values()))).shape
    return Evaluation(
        request=request,
        metrics=metrics,
        kind=PROBABILITY if isinstance(frames, ComponentFrames) else LABELS,
        three_d=len(shape) == 3,
        scores=scored.scores,
        sections=scored.sections,
        curves=scored.curves,
        thresholds={"objects": request.threshold} if isinstance(frames, ComponentFrames) else {},
        axes="t" + "zyx"[-len(shape) :],
        region=Box((keys[0].time, *[0] * len(shape)), (keys[-1].time + 1, *shape)),
        voxel_size={},
        units={},
        notes=tuple(filter(None, [*notes, PARTIAL if partial else None, scored.note_on_intervals()])),
        scope=scope,
        sums=packed(scored.score_groups),
        comparison=comparison_of(request, scored.scores, scored.score_groups),
        read_section=lambda section: images(challenge, keys[section.number], request.ignore),
    )


def require_possible(request: EvaluateRequest, where: ClusterOptions) -> tuple[str, ...]:
    """Metrics to score; raises ``UnetcliError`` for options that cannot be used with folders of frames."""
    for name, without in UNSUPPORTED.items():
        if getattr(request, name) != without:
            raise UnetcliError(f"--{name.replace('_', '-')}: cannot be used with the folder of frames {request.truth}")
    if where.cluster != "local" or where.workers is not None:
        raise UnetcliError(
            f"{request.truth}: a folder of frames is scored in this process; omit --cluster and --workers"
        )
    if impossible := [name for name in request.metrics or () if name not in CHALLENGE_METRICS]:
        expected = ", ".join(CHALLENGE_METRICS)
        raise UnetcliError(f"--metrics {impossible[0]}: {request.truth} contains objects; expected {expected}")
    return tuple(name for name in CHALLENGE_METRICS if name in (request.metrics or CHALLENGE_METRICS))


def frames_of(request: EvaluateRequest) -> tuple[Frames, list[str]]:
    """Frames of the result, and notes for the user."""
    if is_challenge_result(request.prediction):
        return open_frames(request.prediction), []
    require_complete(request.prediction, allowed=request.allow_incomplete)
    volume = open_prediction(request)
    kind = resolve_kind(replace(request, metrics=CHALLENGE_METRICS), volume)
    notes = kind_notes(kind)
    frames = VolumeFrames(volume)
    if kind.name != PROBABILITY:
        return frames, notes
    return ComponentFrames(frames, request.threshold), [*notes, COMPONENTS.format(request.threshold)]


def chosen_frames(challenge: Challenge, request: EvaluateRequest) -> Challenge:
    """Frames that ``--sections`` selects."""
    if request.sections == (None, None):
        return challenge
    times = {key.time for key in (*challenge.segmented, *challenge.marked)}
    wanted = range(*resolve_sections(request.sections, max(times) + 1, request.truth))
    segmented, marked = (
        {key: path for key, path in files.items() if key.time in wanted}
        for files in (challenge.segmented, challenge.marked)
    )
    if not segmented and not marked:
        raise UnetcliError(
            f"--sections {wanted.start}:{wanted.stop}: {request.truth} has frames {min(times)} to {max(times)}"
        )
    return replace(challenge, segmented=segmented, marked=marked)


def count_frames(
    challenge: Challenge,
    ignore: int | None,
    keys: list[FrameKey],
    metrics: tuple[str, ...],
    report: ProgressCallback,
    *,
    by_object: bool,
) -> Counts:
    """Counts of all frames, numbered by their position in ``keys``."""
    accumulator, numbers = CountsAccumulator(), {key: number for number, key in enumerate(keys)}
    files = len(challenge.segmented) + len(challenge.marked)
    for done, pair in enumerate(challenge.pairs(), start=1):
        accumulator.add(unit_counts(pair.table(ignore), numbers[pair.key], metrics, by_object=by_object))
        report(done, files)
    for done, pair in enumerate(challenge.marker_pairs(), start=1 + len(challenge.segmented)):
        if "cells" in metrics:
            accumulator.add(Counts(sums={"markers": {numbers[pair.key]: CellSums.of(pair.table(ignore))}}))
        report(done, files)
    return accumulator.result()


def images(challenge: Challenge, key: FrameKey, ignore: int | None) -> SectionImages:
    """Images of one frame (of a 3-D frame: its middle section), with its segmented objects or else its markers."""
    path = challenge.segmented.get(key) or challenge.marked[key]
    pair = challenge.pair(key, path)
    planes = [a if a.ndim == 2 else a[len(a) // 2] for a in (pair.reference, pair.result)]
    valid = None if ignore is None else planes[0] != ignore
    return SectionImages(reference=planes[0], true_objects=planes[0], probability=None, labels=planes[1], valid=valid)


def scope_of(challenge: Challenge, request: EvaluateRequest) -> dict[str, Any]:
    """Truth and frames, as in :meth:`.ResolvedRequest.scope`. Baselines store these texts, and must match."""
    digest = Checksum()
    for files in (challenge.segmented, challenge.marked):
        for key, path in files.items():
            digest.add(f"{key} {file_sha256(path)}\n".encode())
    return {
        "truth": request.truth,
        "truth_fingerprint": digest.hexdigest(),
        "region": f"{len(challenge.segmented)} frames with drawn objects, {len(challenge.marked)} with markers",
        "ignore": request.ignore,
        "objects": "each frame alone",
    }


EM_PIXEL_BYTES = 72
"""Memory to count em per pixel of a section; up to 70 were measured, 62 of them for its own arrays."""
REPORT_PIXEL_BYTES = 48
"""Memory for pictures of a section, per pixel."""
GB = 1e9
MAX_WORK_IN_PROCESS = 2**33
"""Maximum work, in voxels, to count in this process, which takes minutes; larger evaluations use a run folder."""
EM_WORK = 50
"""Work per voxel with em, relative to other metrics."""
INVERTED = (
    "the prediction looks inverted, like the probability of background (membrane) instead of foreground (interior); it "
    "was scored unchanged"
)


def evaluate_volume(
    request: EvaluateRequest,
    report: ProgressCallback = silent,
    stopping: Callable[[], bool] = bool,
    where: ClusterOptions | None = None,
) -> Evaluation:
    """Score a prediction against its truth.

    Parameters
    ----------
    request
        Arguments and options.
    report
        Called with the progress in voxels.
    stopping
        Called before each block of a large evaluation; once it returns True, blocks in progress are finished and
        :class:`Unfinished` is raised.
    where
        Options of the cluster. Default: those of the request.

    Returns
    -------
    Evaluation
        See :mod:`unetcli.evaluate.result`.

    Raises
    ------
    Unfinished
        Blocks of a large evaluation are missing: the same call continues.
    UnetcliError
        Anything about the request that the user can correct.
    """
    where = where or request
    if is_challenge_truth(request.truth):
        return evaluate_challenge(request, report, where)
    if is_challenge_result(request.prediction):
        raise UnetcliError(
            f"{request.prediction}: a folder of masks; expected a folder 01_GT or 01_ST as truth, not a volume"
        )
    resolved = ResolvedRequest.of(request)
    require_baseline(request, resolved.scope())
    require_no_warnings()
    require_memory(resolved, where)
    counts = count(resolved, report, stopping, where)
    resolved.require_probabilities(counts)
    plan, settings = resolved.plan, resolved.plan.settings
    scored = score_all(counts, settings.metrics, resolved.places(), by_object=plan.by_object, three_d=settings.three_d)
    inverted = looks_inverted(counts)
    if inverted:
        warn(f"{request.prediction}: {INVERTED}")
    return Evaluation(
        request=request,
        metrics=settings.metrics,
        kind=settings.kind,
        three_d=settings.three_d,
        scores=scored.scores,
        sections=scored.sections,
        curves=scored.curves,
        thresholds=resolved.thresholds(),
        axes=plan.axes,
        region=plan.region,
        voxel_size=resolved.pair.voxel_size,
        units=resolved.pair.units,
        notes=tuple(filter(None, [*resolved.notes, INVERTED if inverted else None, scored.note_on_intervals()])),
        scope=resolved.scope(),
        sums=packed(scored.score_groups),
        comparison=comparison_of(request, scored.scores, scored.score_groups),
        read_section=resolved.images,
    )


def count(
    resolved: ResolvedRequest, report: ProgressCallback, stopping: Callable[[], bool], where: ClusterOptions
) -> Counts:
    """Count all blocks, in this process or in a run folder."""
    if runs_in_process(resolved, where):
        return total_counts(resolved.plan, count_in_process(resolved, report, stopping))
    return count_in_folder(resolved, where, report, stopping)


def require_memory(resolved: ResolvedRequest, where: ClusterOptions) -> None:
    """Raise ``UnetcliError`` if whole sections are needed, for em or for pictures, and one does not fit the memory.

    With a cluster, the memory that the request names is compared; without one, jobs request what they need.
    """
    settings, sides = resolved.plan.settings, resolved.plan.region.shape[-2:]
    if settings.needs_sections and (there := memory_of_worker(where)):
        names = ",".join(name for name in settings.metrics if METRICS[name].whole_sections)
        require_section(f"--metrics {names}", sides, EM_PIXEL_BYTES, there, "other metrics are counted in blocks")
    if resolved.request.report is not None:
        words = "without it, scores are the same"
        require_section("--report", sides, REPORT_PIXEL_BYTES, available_memory(), words)


def require_section(
    name: str, sides: tuple[int, ...], pixel_bytes: int, there: tuple[float, str], otherwise: str
) -> None:
    """Raise ``UnetcliError`` if a section does not fit: ``there`` is the memory in bytes, and what limits it."""
    needed, available = pixel_bytes * math.prod(sides), there[0]
    if needed > available:
        raise UnetcliError(
            f"{name}: a section of {sides[0]} x {sides[1]} pixels needs {needed / GB:.1f} GB of memory, "
            f"{max(available, 0) / GB:.1f} GB are {there[1]}; --roi selects a smaller region, and {otherwise}"
        )


def memory_of_worker(where: ClusterOptions) -> tuple[float, str] | None:
    """Memory for counting, in bytes, and what limits it; None if jobs request what they need, or it is not known."""
    if where.cluster == "local":
        return available_memory()
    asked = slurm_request(where).mem if where.needs_slurm else None
    return (memory_in_bytes(asked), "requested with --mem") if asked and asked.strip("0") else None


def threads_that_fit(resolved: ResolvedRequest) -> int:
    """Threads of this process to count with; fewer than its cores if sections for all of them do not fit the memory."""
    threads = cpu_threads()
    if not resolved.plan.settings.needs_sections:
        return threads
    section = EM_PIXEL_BYTES * math.prod(resolved.plan.region.shape[-2:])
    return int(max(1, min(threads, available_memory()[0] // section)))


def runs_in_process(resolved: ResolvedRequest, where: ClusterOptions) -> bool:
    """Whether counting takes minutes in this process, and no option asks for workers or a run folder."""
    work = resolved.plan.region.size * (EM_WORK if "em" in resolved.plan.settings.metrics else 1)
    plain = where.cluster == "local" and where.workers is None and resolved.request.run_folder is None
    return plain and work <= MAX_WORK_IN_PROCESS


def count_in_process(
    resolved: ResolvedRequest, report: ProgressCallback, stopping: Callable[[], bool]
) -> Iterator[Counts]:
    """Counts of the blocks, in order, computed by threads of this process."""
    plan, done = resolved.plan, 0
    count_block = BlockCounter(plan, resolved.pair)
    for number, counts in ordered_map(count_block, range(plan.blocks), threads_that_fit(resolved)):
        if stopping():
            raise Unfinished("stopped; counts of a small evaluation are not stored, the same command starts again", [])
        found = finished(counts, lambda again=number: count_block(again))  # type: ignore[misc]
        done += plan.box(number).size
        report(done, plan.region.size)
        yield found


def finished(counts: Future[Counts], again: Callable[[], Counts]) -> Counts:
    """Counts of a block; an I/O error that may pass is tried again once, as the engine does."""
    try:
        return counts.result()
    except UnreadableBlock as error:
        if is_unusable(error):
            raise
        log.warning("%s; trying again", error)
        return again()
