"""Cross-validation: one model for each fold of the sections, trained one after another, and their scores."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from unetcli.core.errors import UnetcliError, pasted
from unetcli.train.distributed import OtherRankFailed, ProcessGroup
from unetcli.train.folder import TrainingFolder
from unetcli.train.request import TrainRequest, fold_words
from unetcli.train.saving import kept_row, measures_of
from unetcli.train.settings import Ranges

if TYPE_CHECKING:
    from unetcli.train.train import TrainSummary

log = logging.getLogger(__name__)
Scores = Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldSummary:
    """One fold of a cross-validation."""

    fold: int
    """Number of the fold, counted from 1."""
    held_out: Ranges
    """Sections of the fold, by pair."""
    scores: Scores
    """Measures of the saved model on the sections of the fold, which selected it among the validations."""
    training: TrainSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldsSummary:
    """Result of ``train --fold all``."""

    output: str
    total: int
    """Number of folds."""
    folds: tuple[FoldSummary, ...]
    """Folds of which training has begun."""
    mean: Scores
    """Mean of each score over the folds that are finished; None if a fold has no such score."""
    spread: Scores
    """Standard deviation of each score over these folds (n - 1); None for fewer than two."""
    warnings: tuple[str, ...] = ()
    """Warnings that this call gave: reasons to doubt the result."""

    @property
    def finished(self) -> bool:
        """Whether all folds are finished."""
        return len(self.folds) == self.total and all(each.training.finished for each in self.folds)

    @property
    def sentence(self) -> str:
        """The outcome in one line."""
        done = sum(each.training.finished for each in self.folds)
        if not self.finished:
            return f"{self.output}: {done} of {self.total} folds finished; the same command continues"
        return f"{self.output}: all {self.total} folds finished"

    @property
    def advice(self) -> str:
        """The command that averages the models, as advice to the user."""
        models = " ".join(f"--model {pasted(f'{self.output}/fold-{each.fold}')}" for each in self.folds)
        return f"to average the models: unetcli predict VOLUME {models}"


def train_folds(request: TrainRequest, train_fold: Callable[[TrainRequest], TrainSummary | str | None]) -> FoldsSummary:
    """Train one fold after the other, each in its own folder, until one of them is stopped.

    Parameters
    ----------
    request : TrainRequest
        Request for all folds.
    train_fold : callable
        Trains one fold, or continues with it.

    Raises
    ------
    UnetcliError
        The output holds a training of its own, several processes were started, or a fold cannot be trained.
    """
    group = ProcessGroup.from_environment()
    if group.size > 1:
        text = (
            f"--fold all: the {group.size} processes train one model; start them for each fold: {fold_words(request)}"
        )
        raise UnetcliError(text) if group.is_first else OtherRankFailed(text)
    if TrainingFolder(request.output).config.exists():
        raise UnetcliError(f"{request.output}: holds a training, not folds of one; use another --output")
    return summary_of(request, list(_trained(request, train_fold)))


def _trained(
    request: TrainRequest, train_fold: Callable[[TrainRequest], TrainSummary | str | None]
) -> Iterator[tuple[int, TrainSummary]]:
    """Yield number and summary of each fold, up to the first one that is not finished."""
    steps = request.steps
    assert request.folds is not None
    for number in range(1, request.folds + 1):
        own = request.of_fold(number)
        log.info("fold %d of %d: %s", number, request.folds, own.output)
        begun = not request.overwrite and TrainingFolder(own.output).frozen() is not None
        summary = train_fold(own if begun else replace(own, steps=steps))
        if summary is None or isinstance(summary, str):
            return
        yield number, summary
        if not summary.finished:
            return
        steps = steps or summary.goal  # measured for the first fold; the others train for as long


def summary_of(request: TrainRequest, trained: Sequence[tuple[int, TrainSummary]]) -> FoldsSummary:
    """Scores of the folds, with their mean and spread."""
    folds = tuple(_fold(request, number, summary) for number, summary in trained)
    scores = [each.scores for each in folds if each.training.finished]
    names = list(scores[0]) if scores else []
    values = {name: [found.get(name) for found in scores] for name in names}
    return FoldsSummary(
        output=str(request.output),
        total=request.folds or 0,
        folds=folds,
        mean={name: _over(fmean, values[name], 1) for name in names},
        spread={name: _over(stdev, values[name], 2) for name in names},
    )


def _fold(request: TrainRequest, number: int, summary: TrainSummary) -> FoldSummary:
    folder = TrainingFolder(request.of_fold(number).output)
    frozen, best = folder.frozen(), kept_row(folder) or {}
    scores = {name: value for name, value in measures_of(best).items() if name != "threshold"}
    return FoldSummary(fold=number, held_out=frozen[0].validation if frozen else (), scores=scores, training=summary)


def _over(function: Callable[[list[float]], float], values: Sequence[float | None], least: int) -> float | None:
    """A statistic of values, rounded; None if one of them is undefined, or there are fewer than ``least``."""
    defined = [value for value in values if value is not None]
    return round(function(defined), 6) if len(defined) == len(values) >= least else None
