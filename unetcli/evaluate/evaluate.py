"""evaluate: count, score, compare. The door for commands, reports and notebooks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from unetcli.config import Where
from unetcli.core.errors import UnetcliError
from unetcli.core.process import cpu_threads
from unetcli.engine.rounds import Report
from unetcli.evaluate.baseline import compared, packed, require_baseline
from unetcli.evaluate.challenge import evaluate_challenge
from unetcli.evaluate.counts import Counts
from unetcli.evaluate.folder import EvaluationFolder
from unetcli.evaluate.here import in_order
from unetcli.evaluate.request import EvaluateRequest
from unetcli.evaluate.result import Evaluation
from unetcli.evaluate.run import Unfinished, counted_in_folder
from unetcli.evaluate.scoring import looks_inverted, score_all
from unetcli.evaluate.settling import Settled
from unetcli.evaluate.totals import total_counts
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
    where: Where | None = None,
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
    where = where or Where()
    if is_challenge_truth(request.truth):
        return evaluate_challenge(request, report, where)
    if is_challenge_result(request.prediction):
        raise UnetcliError(f"{request.prediction}: a folder of masks; its truth is one too, 01_GT or 01_ST, no volume")
    settled = Settled.of(request)
    require_baseline(request, settled.judged())
    counts = count(settled, report, stopping, where)
    settled.require_probabilities(counts)
    plan, settings = settled.plan, settled.plan.settings
    scored = score_all(counts, settings.metrics, settled.places(), by_object=plan.by_object, three_d=settings.three_d)
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
        thresholds=settled.thresholds(),
        axes=plan.axes,
        region=plan.region,
        voxel_size=settled.pair.voxel_size,
        units=settled.pair.units,
        notes=tuple(filter(None, [*settled.notes, INVERTED if inverted else None, scored.note_on_intervals()])),
        judged=settled.judged(),
        sums=packed(scored.families),
        comparison=compared(request, scored.scores, scored.families),
        read_section=settled.images,
    )


def count(settled: Settled, report: Report, stopping: Callable[[], bool], where: Where) -> Counts:
    """Counts of everything: here and now, or block by block in a run folder."""
    if fits_here(settled, where):
        return total_counts(settled.plan, counted_here(settled, report, stopping))
    folder = EvaluationFolder.of(settled.request)
    return counted_in_folder(settled, where, report, stopping, folder=folder)


def fits_here(settled: Settled, where: Where) -> bool:
    """Whether it is a matter of minutes in this process, and nobody asked for more."""
    work = settled.plan.region.size * (EM_WORK if "em" in settled.plan.settings.metrics else 1)
    plain = where.cluster == "local" and where.workers is None and settled.request.run_folder is None
    return plain and work <= WORK_HERE


def counted_here(settled: Settled, report: Report, stopping: Callable[[], bool]) -> Iterator[Counts]:
    """Counts of the blocks, in order."""
    plan, done = settled.plan, 0
    for number, counts in in_order(settled.count, range(plan.blocks), cpu_threads()):
        if stopping():
            raise Unfinished("stopped; of so small an evaluation nothing is kept, the same command begins anew", [])
        found = counts.result()
        done += plan.box(number).size
        report(done, plan.region.size)
        yield found
