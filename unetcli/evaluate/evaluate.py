"""evaluate: count, score, compare. The door for commands, reports and notebooks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from unetcli.core.errors import UnetcliError
from unetcli.core.process import cpu_threads
from unetcli.core.streams import ordered_map
from unetcli.engine.retry import Report
from unetcli.evaluate.baseline import compared, packed, require_baseline
from unetcli.evaluate.challenge import evaluate_challenge
from unetcli.evaluate.counts import Counts
from unetcli.evaluate.request import EvaluateRequest
from unetcli.evaluate.resolve import Evaluated
from unetcli.evaluate.result import Evaluation
from unetcli.evaluate.run import Unfinished, counted_in_folder
from unetcli.evaluate.scoring import looks_inverted, score_all
from unetcli.evaluate.totals import total_counts
from unetcli.executors.options import ClusterOptions
from unetcli.volumes.ctc import is_challenge_result, is_challenge_truth

log = logging.getLogger(__name__)

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
    report: Report = lambda done, total: None,
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
        On which machines; None: here.

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


def count(evaluated: Evaluated, report: Report, stopping: Callable[[], bool], where: ClusterOptions) -> Counts:
    """Counts of everything: here and now, or block by block in a run folder."""
    if fits_here(evaluated, where):
        return total_counts(evaluated.plan, counted_here(evaluated, report, stopping))
    return counted_in_folder(evaluated, where, report, stopping)


def fits_here(evaluated: Evaluated, where: ClusterOptions) -> bool:
    """Whether it is a matter of minutes in this process, and nobody asked for more."""
    work = evaluated.plan.region.size * (EM_WORK if "em" in evaluated.plan.settings.metrics else 1)
    plain = where.cluster == "local" and where.workers is None and evaluated.request.run_folder is None
    return plain and work <= WORK_HERE


def counted_here(evaluated: Evaluated, report: Report, stopping: Callable[[], bool]) -> Iterator[Counts]:
    """Counts of the blocks, in order."""
    plan, done = evaluated.plan, 0
    for number, counts in ordered_map(evaluated.count, range(plan.blocks), cpu_threads()):
        if stopping():
            raise Unfinished("stopped; of so small an evaluation nothing is kept, the same command begins anew", [])
        found = counts.result()
        done += plan.box(number).size
        report(done, plan.region.size)
        yield found
