"""The commands as functions: ``train``, ``predict``, ``label``, ``evaluate`` and ``plan``.

Each function takes the options of the command of the same name, with the same defaults, and returns as an object what
the command prints with ``--json``. Paths may be ``str`` or ``pathlib.Path``, although a type checker accepts only the
type in the signature. Values are Python objects instead of text: ``tile=572`` (None: auto), ``sections=(20, 25)``,
``roi=((0, 5), (512, None), (None, 1024))``, ``metrics=("pixels", "em")``, ``share=(0, 8)``, ``model=("a", "b")``,
``setup=("module load cuda",)``. Like the commands, a call continues where an earlier one stopped.

    from unetcli import api

    api.train("raw.zarr", "labels.zarr", minutes=20)
    api.predict("big.zarr", output="big.pred.zarr", tile=572)
    api.label("big.pred.zarr", method="watershed")
    print(api.evaluate("big.pred.zarr", "truth.zarr").scores["em"]["rand_error"])

Functions log to the logger ``unetcli``. An error that the user can correct raises :class:`UnetcliError`; its message
says what is wrong, where, and what would work. If work is left to do, its subclass :class:`Incomplete` is raised, or
the summary says so. Reasons to doubt a result are in ``warnings`` of what a function returns; with ``strict=True`` they
raise :class:`UnetcliError`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, get_args

from unetcli.core.errors import Incomplete, UnetcliError, collected_warnings, refuse_warnings
from unetcli.core.options import DeclaredOption, Options, options_of
from unetcli.core.process import Signals, prepare
from unetcli.core.streams import ProgressCallback, silent
from unetcli.evaluate.request import EvaluateRequest
from unetcli.label.request import LabelRequest
from unetcli.predict.request import PlanRequest, PredictRequest
from unetcli.train.request import TrainRequest

if TYPE_CHECKING:
    from unetcli.evaluate.result import Evaluation
    from unetcli.label.run import LabelSummary
    from unetcli.predict.preview import PlanReport
    from unetcli.predict.run import PredictSummary
    from unetcli.train.folds import FoldsSummary
    from unetcli.train.train import TrainPreview, TrainSummary

__all__ = ["Incomplete", "UnetcliError", "evaluate", "label", "plan", "predict", "train"]

P = ParamSpec("P")
Request = TypeVar("Request", bound=Options)
Result = TypeVar("Result")


def _by_keyword(request: Callable[P, Request]) -> Callable[[Callable[[Request], Result]], Callable[P, Result]]:
    """Decorate a function of a request so that it takes the request's options, and list them in its documentation."""
    assert isinstance(request, type)
    declared, signature = options_of(request), inspect.signature(request)

    def decorate(run: Callable[[Request], Result]) -> Callable[P, Result]:
        @functools.wraps(run)
        def called(*args: P.args, **options: P.kwargs) -> Result:
            given = signature.bind(*args, **options).arguments
            return run(request(**{name: _as_declared(value, declared.get(name)) for name, value in given.items()}))

        shown = [each for each in signature.parameters.values() if each.name in declared]
        returned = inspect.signature(run).return_annotation
        called.__signature__ = inspect.Signature(shown, return_annotation=returned)  # type: ignore[attr-defined]
        texts = [f"{each.name} : {each.annotation}\n    {declared[each.name].option.help}" for each in shown]
        called.__doc__ = "\n".join([inspect.cleandoc(run.__doc__ or ""), "", "Parameters", "----------", *texts])
        return called

    return decorate


def _warned(run: Callable[P, Result]) -> Callable[P, Result]:
    """Decorate a function of a request so that its summary has the warnings that were given meanwhile."""

    @functools.wraps(run)
    def called(*args: P.args, **options: P.kwargs) -> Result:
        request: Any = args[0]
        with collected_warnings(strict=request.strict) as warnings:
            found: Any = run(*args, **options)
        summary: Result = replace(found, warnings=tuple(warnings)) if hasattr(found, "warnings") else found
        return summary  # the id of a job has no warnings

    return called


def _accepted(found: Result, request: Any) -> Result:
    """A summary; with ``strict``, an error if it has warnings."""
    refuse_warnings(getattr(found, "warnings", ()), strict=request.strict)
    return found


def _as_declared(value: Any, declared: DeclaredOption | None) -> Any:
    """The value, converted between ``str`` and ``Path`` if the option has the other type."""
    kinds = set() if declared is None else {declared.kind, *get_args(declared.kind)}
    if isinstance(value, str) and Path in kinds and str not in kinds:
        return Path(value)
    if isinstance(value, list | tuple) and tuple[Path, ...] in kinds:
        return tuple(map(Path, value))
    return str(value) if isinstance(value, Path) and str in kinds and Path not in kinds else value


@_by_keyword(TrainRequest)
def train(request: TrainRequest) -> TrainSummary | FoldsSummary | str:
    """Train a network on images and their labels, and save the best one as ``output/model.safetensors``.

    Images and labels have the same axes and extent: (y, x) or (z, y, x), optionally with t or c. Labels are integers.

    Returns
    -------
    TrainSummary, FoldsSummary or str
        Number of steps, path of the model, and its scores on the held-out sections (fractions from 0 to 1). With
        ``fold="all"``, the same of each fold, and mean and standard deviation of the scores; with ``detach``, the id of
        the SLURM job.

    Raises
    ------
    UnetcliError
        Images, labels or options do not fit; nothing has been written then.
    Incomplete
        The SLURM job ended early; the same call submits another one, which continues.
    """
    found = run_train(request)
    if found is None:
        raise Incomplete(f"{request.output}: the job ended before any step was trained; the same call continues")
    return _accepted(found, request)


@_by_keyword(PredictRequest)
def predict(request: PredictRequest) -> PredictSummary:
    """Write the foreground probability of every voxel of a volume to an OME-Zarr image.

    The output has the axes and voxel size of the volume, and a channel axis if there are more than two classes. A
    probability stored as uint8 is value / 255.

    Returns
    -------
    PredictSummary
        Number of blocks computed, blocks without a result and failed jobs, and the duration in seconds. ``finished`` is
        False if anything is left to do.

    Raises
    ------
    UnetcliError
        Volume, model or options do not fit together; nothing has been written.
    """
    return _accepted(run_predict(request), request)


@_by_keyword(LabelRequest)
def label(request: LabelRequest) -> LabelSummary:
    """Label the objects of a prediction in its ``labels/<name>``, and write a table of objects beside the store.

    Labels have the prediction's axes without channels; 0 is background.

    Returns
    -------
    LabelSummary
        Number of objects, their sizes in voxels, and the duration in seconds. ``complete`` is False if anything is left
        to do.

    Raises
    ------
    UnetcliError
        Prediction or options do not fit; nothing has been written then.
    """
    return _accepted(run_label(request), request)


@_by_keyword(EvaluateRequest)
def evaluate(request: EvaluateRequest) -> Evaluation:
    """Score a prediction against its truth, which has the same axes and covers the prediction.

    Returns
    -------
    Evaluation
        Scores by metric and name, over all sections and for each one. Errors and overlaps are fractions from 0 to 1,
        information is in bits, counts are in voxels or objects.

    Raises
    ------
    unetcli.evaluate.evaluate.Unfinished
        Blocks of a large evaluation are not counted yet; the same call continues.
    UnetcliError
        Volumes or options do not fit.
    """
    require_writable(request)
    found = run_evaluate(request)
    write_files(request, found)
    return _accepted(found, request)


@_by_keyword(PlanRequest)
def plan(request: PlanRequest) -> PlanReport:
    """Estimate the cost of predicting a volume; no output is written.

    Returns
    -------
    PlanReport
        Shapes of tiles and blocks in voxels, memory and output in bytes, and the hours of one worker if its speed is
        known.

    Raises
    ------
    UnetcliError
        Volume, model or options do not fit.
    """
    return _accepted(run_plan(request), request)


# The same functions for the commands: they take a request, report progress, and stop in an orderly way.


@_warned
def run_train(
    request: TrainRequest, progress: ProgressCallback = silent, signals: Signals | None = None
) -> TrainSummary | FoldsSummary | str | None:
    """Train in this process or as one SLURM job, or all folds one after another.

    Returns
    -------
    TrainSummary, FoldsSummary, str or None
        The id of the SLURM job with ``detach``; None if the launcher stopped before any step.
    """
    if request.cluster not in ("local", "slurm"):
        raise UnetcliError(f"--cluster {request.cluster}: expected local or slurm")
    prepare()  # before torch is imported
    signals = signals or Signals()
    if request.fold != "all":
        return _train_one(request, progress, signals)
    from unetcli.train.folds import train_folds

    return train_folds(request, lambda fold: _train_one(fold, progress, signals))


def _train_one(request: TrainRequest, progress: ProgressCallback, signals: Signals) -> TrainSummary | str | None:
    """Train one model."""
    from unetcli.executors.options import slurm_request
    from unetcli.train.slurm import Processes, launch
    from unetcli.train.train import train_model

    if request.cluster == "local":
        return train_model(request, progress, signals)
    processes = Processes(
        nodes=request.nodes, gpus_per_node=request.gpus_per_node, tasks_per_node=request.tasks_per_node
    )
    return launch(request, slurm_request(request), processes, progress, signals, detach=request.detach)


@_warned
def run_predict(
    request: PredictRequest, progress: ProgressCallback = silent, stopping: Callable[[], bool] = bool
) -> PredictSummary:
    """Predict a volume or one share of it, or complete the output of shares; progress is in voxels."""
    prepare()  # before torch is imported
    from unetcli.predict.run import close_run, predict_share, predict_volume

    if request.close:
        return close_run(request, progress, stopping)
    if request.share is not None:
        return predict_share(request, None if request.share == "auto" else request.share, progress, stopping)
    return predict_volume(request, progress, stopping, request)


@_warned
def run_label(
    request: LabelRequest, progress: ProgressCallback = silent, stopping: Callable[[], bool] = bool
) -> LabelSummary:
    """Label a prediction; progress is in voxels."""
    from unetcli.label.run import label_volume

    return label_volume(request, progress, stopping, request)


@_warned
def run_evaluate(
    request: EvaluateRequest, progress: ProgressCallback = silent, stopping: Callable[[], bool] = bool
) -> Evaluation:
    """Evaluate a prediction without writing files; progress is in voxels."""
    prepare()
    from unetcli.evaluate.evaluate import evaluate_volume

    return evaluate_volume(request, progress, stopping, request)


@_warned
def run_preview(request: TrainRequest) -> TrainPreview:
    """Measure what a training would take; nothing is written."""
    prepare()  # before torch is imported
    from unetcli.train.train import preview_training

    return preview_training(request)


def require_writable(request: EvaluateRequest) -> None:
    """Check before scoring that the requested files can be written and the image can be opened.

    Raises
    ------
    UnetcliError
        A file to be replaced was not written by unetcli, or the image cannot be opened.
    """
    from unetcli.core.files import require_replaceable
    from unetcli.evaluate.result import is_score_table
    from unetcli.report.page import is_report
    from unetcli.volumes.opening import open_volume

    if request.report is not None:
        require_replaceable(request.report, "--report", "report.html", is_report)
    if request.csv is not None:
        require_replaceable(request.csv, "--csv", "scores.csv", is_score_table)
    if request.image is not None:
        open_volume(request.image, request.level)


def write_files(request: EvaluateRequest, found: Evaluation, progress: ProgressCallback = silent) -> None:
    """Write the requested CSV table and HTML report; progress is in sections."""
    if request.csv:
        from unetcli.evaluate.result import write_score_table

        write_score_table(found, request.csv)
    if request.report:
        from unetcli.report.page import write_report
        from unetcli.report.viewer import source_image

        write_report(found, request.report, source_image(found, request.image), progress)


@_warned
def run_plan(request: PlanRequest) -> PlanReport:
    """Plan a prediction; with SLURM, a probe runs in a job, and SLURM checks the options of the jobs."""
    prepare()  # before torch is imported, if it is
    from unetcli.predict.preview import PlanOptions, plan_volume
    from unetcli.predict.probe import check_by_slurm, probe_in_job

    prediction, on_slurm = request.prediction, request.cluster == "slurm"
    return plan_volume(
        prediction,
        prediction,
        PlanOptions(workers=request.workers, tile_seconds=request.tile_seconds, probe=request.probe),
        submit=probe_in_job(prediction) if on_slurm else None,
        check_job=check_by_slurm if on_slurm else None,
    )
