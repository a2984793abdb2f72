"""The commands. Each one takes a request, makes one call of the library and prints a summary."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from unetcli.cli import console
from unetcli.cli.requests import DryRunOption, JsonOption
from unetcli.core.errors import UnetcliError, listed, refuse_warnings, warn
from unetcli.core.options import Options
from unetcli.core.streams import silent
from unetcli.evaluate.request import EvaluateRequest
from unetcli.executors.options import WorkerRequest, unencrypted
from unetcli.label.request import LabelRequest
from unetcli.predict.request import PlanRequest, PredictRequest
from unetcli.train.request import TrainRequest, WeightsRequest
from unetcli.viz.request import ShowRequest

if TYPE_CHECKING:
    from unetcli.train.folds import FoldsSummary
    from unetcli.train.train import TrainSummary
    from unetcli.train.weight_map import WeightsSummary


def weights(request: WeightsRequest, json: JsonOption = False) -> None:
    """Compute the loss weights for LABELS, and draw a picture of them."""
    from unetcli.train.weight_map import write_weights

    with console.progress("section passes") as report:
        summary = write_weights(request, report)
    console.say(summary.sentence)
    console.print_json(asdict(summary)) if json else typer.echo("\n".join(table(summary)))


def table(summary: WeightsSummary) -> list[str]:
    """Pixels and weight of each class, and the number of objects, as aligned lines."""
    total = sum(row.pixels for row in summary.classes) + summary.ignored
    lines = [f"{'class':<12} {'pixels':>13} {'share':>8} {'weight':>9}"]
    rows = [(row.name, row.pixels, row.weight) for row in summary.classes]
    if summary.ignored:
        rows.append(("unannotated", summary.ignored, 0.0))
    lines += [f"{name:<12} {pixels:>13,} {pixels / total:>8.2%} {weight:>9.4f}" for name, pixels, weight in rows]
    return [*lines, f"{'objects':<12} {summary.cells:>13,}", f"{'largest weight':<36} {summary.highest:>9.4f}"]


def show(request: ShowRequest) -> None:
    """Draw one section of VOLUME, with labels or a probability on top."""
    from unetcli.viz.show import show

    console.print_path(show(request))


def worker(request: WorkerRequest) -> None:
    """Run a Dask worker until its scheduler ends or SIGTERM arrives.

    For sites that start workers themselves: one per GPU (set CUDA_VISIBLE_DEVICES), or one per node without GPUs.
    `unetcli predict VOLUME --cluster dask --scheduler ADDRESS` then uses them. A worker that crashes is restarted. On
    SIGTERM it finishes its current block first.
    """
    from unetcli.core.process import prepare

    prepare()
    from unetcli.executors.dask.worker import serve

    tls = str(request.tls) if request.tls else None
    if (text := unencrypted(request.scheduler)) is not None:
        warn(text)
    serve(request.scheduler, tls, request.memory, name=request.name, death_timeout=request.death_timeout)


def predict(request: PredictRequest, dry_run: DryRunOption = False, json: JsonOption = False) -> None:
    """Segment VOLUME, block by block.

    If the run is interrupted, the same command continues it. The result is then identical to that of an uninterrupted
    run, byte for byte.
    """
    from unetcli.api import run_predict

    if dry_run:
        plan(PlanRequest.of(request), json)
        return
    stopping = console.stop_on_sigterm()
    with console.progress("voxels") as report:
        summary = run_predict(request, report, stopping)
    console.print_summary(summary, as_json=json)
    if not summary.finished and not summary.jobs:
        raise typer.Exit(console.INCOMPLETE)
    refuse_warnings(summary.warnings, strict=request.strict)


def plan(request: PlanRequest, json: JsonOption = False) -> None:
    """Estimate the time, memory and files needed to predict VOLUME.

    Nothing is written. The options are those of predict. For example, to plan for 1,000 GPUs that need 0.2 s per tile:

    \b
      unetcli plan big.zarr --tile 2236 --device cuda \\
        --tile-seconds 0.2 --workers 1000
    """
    from unetcli.api import run_plan
    from unetcli.cli.views import plan_lines

    report = run_plan(request)
    console.print_json(report.to_dict()) if json else typer.echo("\n".join(plan_lines(report)))
    refuse_warnings(report.warnings, strict=request.strict)


def label(request: LabelRequest, json: JsonOption = False) -> None:
    """Find the objects in PREDICTION and number them.

    The labels are stored in PREDICTION/labels/NAME, or where --into or --output say, with a table of the objects beside
    the store. If the run is interrupted, the same command continues it. The result is identical, byte for byte, for any
    block size.
    """
    from unetcli.api import run_label

    stopping = console.stop_on_sigterm()
    with console.progress("voxels") as report:
        summary = run_label(request, report, stopping)
    console.print_summary(summary, as_json=json)
    if not summary.complete and not summary.jobs:
        raise typer.Exit(console.INCOMPLETE)
    refuse_warnings(summary.warnings, strict=request.strict)


def evaluate(request: EvaluateRequest, json: JsonOption = False) -> None:
    """Score PREDICTION against TRUTH.

    Small volumes are scored at once, large ones block by block. If a large evaluation is interrupted, the same command
    continues it.
    """
    from unetcli.api import require_writable, run_evaluate, write_files
    from unetcli.cli.views import score_lines
    from unetcli.evaluate.evaluate import Unfinished

    require_writable(request)
    stopping = console.stop_on_sigterm()
    try:
        with console.progress("voxels") as report:
            found = run_evaluate(request, report, stopping)
    except Unfinished as unfinished:
        console.say(f"{request.prediction}: {unfinished}")
        if unfinished.jobs:
            console.print_jobs(unfinished.jobs)
        raise typer.Exit(0 if unfinished.jobs else console.INCOMPLETE) from None
    # scores come first: they are printed even if a file cannot be written
    console.print_json(found.to_json()) if json else typer.echo("\n".join(score_lines(found)))
    with console.progress("sections") as report:
        write_files(request, found, report)
    refuse_warnings(found.warnings, strict=request.strict)


def train(request: TrainRequest, dry_run: DryRunOption = False, json: JsonOption = False) -> None:
    """Train a network on RAW images and their LABELS.

    If the training is interrupted, the same command continues it.
    """
    from unetcli.core.process import Signals, prepare

    if dry_run:
        preview(request, json)
        return
    signals = Signals().listen()
    prepare()  # before torch is imported
    from unetcli.api import run_train
    from unetcli.train.distributed import OtherRankFailed, PeerLost, ProcessGroup

    local = request.cluster == "local"
    first = not local or ProcessGroup.from_environment().is_first
    try:
        with console.progress("tiles") if first else nullcontext(silent) as report:
            summary = run_train(request, report, signals)
    except OtherRankFailed:
        raise typer.Exit(console.USER) from None
    except PeerLost:
        if first:
            raise
        raise typer.Exit(console.INCOMPLETE) from None
    if isinstance(summary, str):  # the id of a SLURM job
        typer.echo(summary)
        return
    if summary is not None and first:
        print_training(summary, json, advise=local)
    if summary is None or not summary.finished:
        console.leave(signals, requeue=local and first)
    refuse_warnings(summary.warnings, strict=request.strict)


def print_training(summary: TrainSummary | FoldsSummary, json: bool, *, advise: bool) -> None:
    """Print the summary of a training: as JSON, or the path of the model if there is one yet, or a table of folds."""
    from unetcli.train.folds import FoldsSummary

    console.say(summary.sentence)
    if summary.finished and advise:
        console.say(summary.advice)
    if json:
        console.print_json(asdict(summary))
    elif isinstance(summary, FoldsSummary):
        typer.echo("\n".join(fold_lines(summary)))
    elif summary.best_step is not None:
        console.print_path(summary.model)


def fold_lines(summary: FoldsSummary) -> list[str]:
    """Scores of each fold, and their mean and spread, as aligned lines."""
    names = list(summary.mean)
    rows = [("fold", "held out", "step", *(name.replace("_", " ") for name in names))]
    for each in summary.folds:
        held_out = " and ".join(f"{a}:{b}" for a, b in each.held_out if a < b)
        title = f"{each.fold}" if each.training.finished else f"{each.fold} (stopped)"
        rows.append(
            (title, held_out, str(each.training.best_step or "-"), *(_score(each.scores.get(name)) for name in names))
        )
    for title, values in (("mean", summary.mean), ("spread", summary.spread)):
        rows.append((title, "", "", *(_score(values[name]) for name in names)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def preview(request: TrainRequest, json: bool) -> None:
    """Print what would be trained."""
    from unetcli.api import run_preview

    found = asdict(run_preview(request))
    console.print_json(found) if json else typer.echo("\n".join(preview_lines(found)))
    refuse_warnings(found["warnings"], strict=request.strict)


def preview_lines(found: dict[str, Any]) -> list[str]:
    """Aligned lines for the terminal."""
    shares = listed([f"{name}: {100 * share:.1f} %" for name, share in found["classes"].items()], "classes", 8)
    weights = listed([f"{weight:.2f}" for weight in found["class_weights"]], "classes", 8)
    left_out = f", {found['left_out']} left out (no labels)" if found["left_out"] else ""
    size = f"depth {found['depth']}, {found['base_channels']} channels, {found['parameters']:,} parameters"
    time = console.duration(60 * found["minutes"])
    each = f", for each of {found['models']} folds" if found["models"] > 1 else ""
    return [
        f"sections  {found['sections']} to train on{left_out}, {found['held_out']} held out",
        f"classes   {shares} (weights {weights}); {found['cells']} objects",
        f"network   {size}",
        f"tile      {found['tile']} in, {found['output']} out, {found['batch_size']} per step",
        f"memory    {found['memory_gb']} GB ({found['device']}, {found['precision']})",
        f"speed     {found['steps_per_second']} steps/s, measured on this machine",
        f"time      {time} for {found['steps']} steps (recipe {found['recipe']}){each}",
    ]


def read_request(kind: type[Options], given: Mapping[str, Any]) -> Options:
    """Request from options. If several processes train together, only the first one reports an error."""
    try:
        return kind.read(given)
    except UnetcliError:
        from unetcli.train.distributed import ProcessGroup

        if not ProcessGroup.from_environment().is_first:
            raise typer.Exit(console.USER) from None
        raise


def resolved(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of train with the defaults that it would choose, for ``--print-config``."""
    from unetcli.core.process import prepare

    prepare()  # before torch is imported
    from unetcli.train.train import options_in_force

    chosen = options_in_force(TrainRequest.read(options))
    unchanged = ("sections", "validation", "init", "augment", "minutes", "pair", "raw", "labels")
    return {name: value if name in unchanged else chosen.get(name, value) for name, value in options.items()}
