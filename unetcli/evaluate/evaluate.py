"""evaluate: count, score, compare; of volumes, and of folders of the cell tracking challenge."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from unetcli.core.arrays import Checksum, file_sha256
from unetcli.core.errors import Incomplete, UnetcliError
from unetcli.core.geometry import Box
from unetcli.core.options import resolve_sections
from unetcli.core.process import cpu_threads
from unetcli.core.streams import ProgressCallback, ordered_map, silent
from unetcli.engine.run import RunOptions, RunOutcome, run
from unetcli.engine.runfolder import EVALUATE, require_claimable
from unetcli.evaluate.baseline import compared, packed, require_baseline
from unetcli.evaluate.counting import Adding, Counts, judge, labels_of, probabilities, total_counts
from unetcli.evaluate.plan import FEW, require_complete
from unetcli.evaluate.request import LABELS, PROBABILITY, EvaluateRequest
from unetcli.evaluate.resolve import Evaluated, kind_of
from unetcli.evaluate.result import Evaluation, SectionImages
from unetcli.evaluate.scoring import looks_inverted, score_all
from unetcli.evaluate.step import EvaluateStep, EvaluationPaths, folder_of
from unetcli.executors.options import ClusterOptions
from unetcli.metrics.cells import CellSums
from unetcli.volumes.ctc import (
    Challenge,
    FrameKey,
    Frames,
    Labels,
    VolumeFrames,
    is_challenge_result,
    is_challenge_truth,
    open_challenge,
    open_frames,
    read_labels,
)
from unetcli.volumes.opening import open_volume

log = logging.getLogger(__name__)


class Unfinished(Incomplete):
    """Blocks are not counted yet; the same command continues."""

    def __init__(self, message: str, jobs: list[str]) -> None:
        super().__init__(message)
        self.jobs = jobs
        """SLURM jobs that were left at work, with ``--detach``."""


def counted_in_folder(
    evaluated: Evaluated, where: ClusterOptions, report: ProgressCallback, stopping: Callable[[], bool]
) -> Counts:
    """Counts of all blocks, by way of a run folder that is deleted at the end.

    Raises
    ------
    Unfinished
        Some are missing.
    """
    request, folder = evaluated.request, folder_of(evaluated.request)
    require_claimable(folder.path, EVALUATE)
    step = EvaluateStep(folder=folder, plan=evaluated.plan, paths=paths_of(evaluated, where))
    outcome = run(step, RunOptions.of(request, where), report, stopping)
    require_counted(step, outcome)
    if request.run_folder is None:
        with suppress(OSError):  # another run of the same store has its folder there
            folder.path.parent.rmdir()
    counts: Counts = outcome.result
    return counts


def paths_of(evaluated: Evaluated, where: ClusterOptions) -> EvaluationPaths:
    """Where the data lie, and how many threads a worker here has."""
    request = evaluated.request
    threads = max(1, cpu_threads() // (where.workers or 1)) if where.cluster == "local" else None
    return EvaluationPaths(prediction=request.prediction, truth=request.truth, mask=request.mask, threads=threads)


def require_counted(step: EvaluateStep, outcome: RunOutcome) -> None:
    """Raise where blocks are missing."""
    if outcome.left_running:
        jobs = list(outcome.left_running)
        raise Unfinished(f"{len(jobs)} SLURM jobs count; the same command tells the scores when they have ended", jobs)
    if not outcome.complete:
        missing = int((~outcome.done).sum())
        raise Unfinished(f"INCOMPLETE: {missing} of {step.blocks} blocks not counted; the same command continues", [])


METRICS = ("cells", "voi")
PARTIAL = (
    "the truth leaves objects out, as gold truth may: what holds extra objects of the result against it is not scored"
)
COMPONENTS = "objects are what is 4-connected above {:g}; `unetcli label` makes better ones where they touch"
NOT_HERE = {"roi": None, "mask": None, "level": 0, "three_d": None, "run_folder": None}
"""Options that folders of frames do not take, and what they are where nobody gives them."""


@dataclass(frozen=True, slots=True)
class ComponentFrames:
    """The frames of a probability volume, as components above a threshold."""

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
            raise UnetcliError(f"{self.place}: frames of {values.ndim} axes; make objects with `unetcli label` first")
        return labels_of(probabilities(values[None], self.place), self.threshold)


def evaluate_challenge(request: EvaluateRequest, report: ProgressCallback, where: ClusterOptions) -> Evaluation:
    """Score a result against a truth folder; see :func:`unetcli.evaluate.evaluate.evaluate_volume`."""
    metrics = require_possible(request, where)
    frames, notes = frames_of(request)
    challenge = chosen_frames(open_challenge(frames, request.truth), request)
    judged = judged_by(challenge, request)
    require_baseline(request, judged)
    keys = sorted({*challenge.segmented, *challenge.marked})
    partial, by_object = challenge.is_partial(), "cells" in metrics and len(challenge.segmented) < FEW
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
        judged=judged,
        sums=packed(scored.families),
        comparison=compared(request, scored.scores, scored.families),
        read_section=lambda section: images(challenge, keys[section.number], request.ignore),
    )


def require_possible(request: EvaluateRequest, where: ClusterOptions) -> tuple[str, ...]:
    """The metrics; refuses what folders of frames do not take."""
    for name, without in NOT_HERE.items():
        if getattr(request, name) != without:
            raise UnetcliError(f"--{name.replace('_', '-')}: not with the folder of frames {request.truth}")
    if where.cluster != "local" or where.workers is not None:
        raise UnetcliError(f"{request.truth}: folders of frames are judged here, frame by frame, without --cluster")
    if impossible := [name for name in request.metrics or () if name not in METRICS]:
        raise UnetcliError(f"--metrics {impossible[0]}: {request.truth} holds objects; cells and voi can be scored")
    return tuple(name for name in METRICS if name in (request.metrics or METRICS))


def frames_of(request: EvaluateRequest) -> tuple[Frames, list[str]]:
    """The frames of the result, and what to say about them."""
    if is_challenge_result(request.prediction):
        return open_frames(request.prediction), []
    require_complete(request.prediction, allowed=request.allow_incomplete)
    volume = open_volume(request.prediction)
    kind = kind_of(replace(request, metrics=METRICS), volume)
    said = [f"the prediction is taken for {kind.name} ({kind.because})"] if kind.because else []
    frames = VolumeFrames(volume)
    if kind.name != PROBABILITY:
        return frames, said
    return ComponentFrames(frames, request.threshold), [*said, COMPONENTS.format(request.threshold)]


def chosen_frames(challenge: Challenge, request: EvaluateRequest) -> Challenge:
    """The frames that ``--sections`` names."""
    if request.sections == (None, None):
        return challenge
    times = {key.time for key in (*challenge.segmented, *challenge.marked)}
    wanted = range(*resolve_sections(request.sections, max(times) + 1, request.truth))
    segmented, marked = (
        {key: path for key, path in files.items() if key.time in wanted}
        for files in (challenge.segmented, challenge.marked)
    )
    if not segmented and not marked:
        raise UnetcliError(f"--sections {wanted.start}:{wanted.stop}: no frame of {request.truth} among them")
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
    """Counts of all frames, numbered by their place among ``keys``."""
    adding, numbers = Adding(), {key: number for number, key in enumerate(keys)}
    files = len(challenge.segmented) + len(challenge.marked)
    for done, pair in enumerate(challenge.pairs(), start=1):
        adding.add(judge(pair.table(ignore), numbers[pair.key], metrics, by_object=by_object))
        report(done, files)
    for done, pair in enumerate(challenge.marker_pairs(), start=1 + len(challenge.segmented)):
        if "cells" in metrics:
            adding.add(Counts(markers={numbers[pair.key]: CellSums.of(pair.table(ignore))}))
        report(done, files)
    return adding.result()


def images(challenge: Challenge, key: FrameKey, ignore: int | None) -> SectionImages:
    """One frame, by its drawn objects where there are some; of a 3-D frame the middle section."""
    path = challenge.segmented.get(key) or challenge.marked[key]
    pair = challenge.pair(key, path)
    planes = [a if a.ndim == 2 else a[len(a) // 2] for a in (pair.reference, pair.result)]
    judged = None if ignore is None else planes[0] != ignore
    return SectionImages(reference=planes[0], true_objects=planes[0], probability=None, labels=planes[1], judged=judged)


def judged_by(challenge: Challenge, request: EvaluateRequest) -> dict[str, Any]:
    """As :meth:`unetcli.evaluate.resolve.Evaluated.judged`."""
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


WORK_HERE = 2**33
"""Voxels that are counted at once, in minutes and leaving nothing behind; beyond, a run folder keeps counts."""
EM_WORK = 50
"""Times as much work on a voxel with em."""
INVERTED = (
    "this looks like the probability of background (membrane): foreground (interior) is predicted mostly where it is "
    "not; scored as it is"
)


def evaluate_volume(
    request: EvaluateRequest,
    report: ProgressCallback = silent,
    stopping: Callable[[], bool] = bool,
    where: ClusterOptions | None = None,
) -> Evaluation:
    """Score a prediction against its truth; see :mod:`unetcli.evaluate.result` for what comes out.

    Parameters
    ----------
    report
        Told of progress in voxels.
    stopping
        Asked before each block of a large evaluation; once true, what is at work is finished and :class:`Unfinished`
        raised.
    where
        On which machines. Default: as the request says.

    Raises
    ------
    Unfinished
        Blocks of a large evaluation are missing: the same call continues.
    UnetcliError
        Anything about the request that the user can put right.
    """
    where = where or request
    if is_challenge_truth(request.truth):
        return evaluate_challenge(request, report, where)
    if is_challenge_result(request.prediction):
        raise UnetcliError(f"{request.prediction}: a folder of masks; its truth is one too, 01_GT or 01_ST, no volume")
    evaluated = Evaluated.of(request)
    require_baseline(request, evaluated.judged())
    counts = count(evaluated, report, stopping, where)
    evaluated.require_probabilities(counts)
    plan, settings = evaluated.plan, evaluated.plan.settings
    scored = score_all(counts, settings.metrics, evaluated.places(), by_object=plan.by_object, three_d=settings.three_d)
    inverted = looks_inverted(counts)
    if inverted:
        log.warning("%s: %s", request.prediction, INVERTED)
    return Evaluation(
        request=request,
        metrics=settings.metrics,
        kind=settings.kind,
        three_d=settings.three_d,
        scores=scored.scores,
        sections=scored.sections,
        curves=scored.curves,
        thresholds=evaluated.thresholds(),
        axes=plan.axes,
        region=plan.region,
        voxel_size=evaluated.pair.voxel_size,
        units=evaluated.pair.units,
        notes=tuple(filter(None, [*evaluated.notes, INVERTED if inverted else None, scored.note_on_intervals()])),
        judged=evaluated.judged(),
        sums=packed(scored.families),
        comparison=compared(request, scored.scores, scored.families),
        read_section=evaluated.images,
    )


def count(
    evaluated: Evaluated, report: ProgressCallback, stopping: Callable[[], bool], where: ClusterOptions
) -> Counts:
    """Counts of everything: here and now, or block by block in a run folder."""
    if fits_here(evaluated, where):
        return total_counts(evaluated.plan, counted_here(evaluated, report, stopping))
    return counted_in_folder(evaluated, where, report, stopping)


def fits_here(evaluated: Evaluated, where: ClusterOptions) -> bool:
    """Whether it is a matter of minutes in this process, and nobody asked for more."""
    work = evaluated.plan.region.size * (EM_WORK if "em" in evaluated.plan.settings.metrics else 1)
    plain = where.cluster == "local" and where.workers is None and evaluated.request.run_folder is None
    return plain and work <= WORK_HERE


def counted_here(evaluated: Evaluated, report: ProgressCallback, stopping: Callable[[], bool]) -> Iterator[Counts]:
    """Counts of the blocks, in order."""
    plan, done = evaluated.plan, 0
    for number, counts in ordered_map(evaluated.count, range(plan.blocks), cpu_threads()):
        if stopping():
            raise Unfinished("stopped; of so small an evaluation nothing is kept, the same command begins anew", [])
        found = counts.result()
        done += plan.box(number).size
        report(done, plan.region.size)
        yield found
