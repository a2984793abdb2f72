"""The commands: options in, one call, a summary out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from unetcli.cli import console
from unetcli.cli.requests import DryRunOption, JsonOption
from unetcli.core.errors import UnetcliError
from unetcli.core.options import Options
from unetcli.core.streams import silent
from unetcli.evaluate.request import EvaluateRequest
from unetcli.executors.options import WorkerRequest
from unetcli.label.request import LabelRequest
from unetcli.predict.request import PlanRequest, PredictRequest
from unetcli.train.request import TrainRequest, WeightsRequest
from unetcli.viz.request import ShowRequest

if TYPE_CHECKING:
    from unetcli.train.train import TrainSummary
    from unetcli.train.weight_map import WeightsSummary


def weights(request: WeightsRequest, json: JsonOption = False) -> None:
    """Write the loss weights of LABELS, and a picture of them."""
    from unetcli.train.weight_map import write_weights

    with console.progress("looks at sections") as report:
        summary = write_weights(request, report)
    console.say(summary.sentence)
    console.print_json(asdict(summary)) if json else typer.echo("\n".join(table(summary)))


def table(summary: WeightsSummary) -> list[str]:
    """Classes, pixels without truth and cells as aligned lines."""
    total = sum(row.pixels for row in summary.classes) + summary.ignored
    lines = [f"{'class':<12} {'pixels':>13} {'share':>8} {'weight':>9}"]
    rows = [(row.name, row.pixels, row.weight) for row in summary.classes]
    if summary.ignored:
        rows.append(("no truth", summary.ignored, 0.0))
    lines += [f"{name:<12} {pixels:>13,} {pixels / total:>8.2%} {weight:>9.4f}" for name, pixels, weight in rows]
    return [*lines, f"{'cells':<12} {summary.cells:>13,}", f"{'largest weight':<36} {summary.highest:>9.4f}"]


def show(request: ShowRequest) -> None:
    """Draw one section of VOLUME, with another one over it.

    Labels as outlines, a probability as a colour.
    """
    from unetcli.viz.show import show

    typer.echo(show(request))


def worker(request: WorkerRequest) -> None:
    """Work for a Dask scheduler, until it ends or SIGTERM comes.

    For sites that start workers in their own way, one per GPU (CUDA_VISIBLE_DEVICES says which) or per node without;
    `unetcli predict .. --scheduler ADDRESS` then uses them. A worker that dies is restarted; on SIGTERM the current
    block is finished first.
    """
    from unetcli.core.process import prepare

    prepare()
    from unetcli.executors.dask.worker import serve

    tls = str(request.tls) if request.tls else None
    serve(request.scheduler, tls, request.memory, name=request.name, death_timeout=request.death_timeout)


def predict(request: PredictRequest, dry_run: DryRunOption = False, json: JsonOption = False) -> None:
    """Segment VOLUME, block by block.

    The same command again goes on where it stopped; the result is the same to the byte.
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


def plan(request: PlanRequest, json: JsonOption = False) -> None:
    """Say what predicting VOLUME would take; nothing is written.

    Takes the options of predict. What 1 PB takes on 1,000 GPUs that need 0.2 s for a tile:

    \b
      unetcli plan big.zarr --tile 2236 --device cuda \\
        --tile-seconds 0.2 --workers 1000
    """
    from unetcli.api import run_plan
    from unetcli.cli.views import plan_lines

    report = run_plan(request)
    if json:
        console.print_json(report.to_dict())
    else:
        typer.echo("\n".join(plan_lines(report)))


def label(request: LabelRequest, json: JsonOption = False) -> None:
    """Make instances of PREDICTION: a number for each object.

    They go into its labels/NAME, with a table beside the store. The same command again goes on where it stopped;
    the result is the same to the byte, and for any size of block.
    """
    from unetcli.api import run_label

    stopping = console.stop_on_sigterm()
    with console.progress("voxels") as report:
        summary = run_label(request, report, stopping)
    console.print_summary(summary, as_json=json)
    if not summary.complete and not summary.jobs:
        raise typer.Exit(console.INCOMPLETE)


def evaluate(request: EvaluateRequest, json: JsonOption = False) -> None:
    """Score PREDICTION against TRUTH.

    Small volumes are scored at once. Of large ones the counts of finished blocks are kept until all are there: the same
    command goes on.
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
    # first of all: whatever becomes of the files, the scores are there
    console.print_json(found.to_json()) if json else typer.echo("\n".join(score_lines(found)))
    with console.progress("sections") as report:
        write_files(request, found, report)


def train(request: TrainRequest, dry_run: DryRunOption = False, json: JsonOption = False) -> None:
    """Train a network on RAW images and LABELS.

    The same command again goes on where it stopped, or says that it is finished.
    """
    from unetcli.core.process import Signals, prepare

    if dry_run:
        preview(request, json)
        return
    signals = Signals().listen()
    prepare()  # before torch is imported
    from unetcli.api import run_train
    from unetcli.train.distributed import OtherRankFailed, PeerLost, ProcessGroup

    here = request.cluster == "local"
    first = not here or ProcessGroup.from_environment().is_first
    try:
        with console.progress("tiles") if first else nullcontext(silent) as report:
            summary = run_train(request, report, signals)
    except OtherRankFailed:
        raise typer.Exit(console.USER) from None
    except PeerLost:
        if first:
            raise
        raise typer.Exit(console.INCOMPLETE) from None
    if isinstance(summary, str):  # a job's id
        typer.echo(summary)
        return
    if summary is not None and first:
        answer(summary, json, advise=here)
    if summary is None or not summary.finished:
        console.leave(signals, requeue=here and first)


def answer(summary: TrainSummary, json: bool, *, advise: bool) -> None:
    """What was trained; on stdout everything, or the kept model's path, once there is one."""
    console.say(summary.sentence)
    if summary.finished and advise:
        console.say(summary.advice)
    if json:
        console.print_json(asdict(summary))
    elif summary.best_step is not None:
        typer.echo(summary.model)


def preview(request: TrainRequest, json: bool) -> None:
    """What would be trained, on stdout."""
    from unetcli.core.process import prepare

    prepare()  # before torch is imported
    from unetcli.train.train import preview_training

    found = asdict(preview_training(request))
    console.print_json(found) if json else typer.echo("\n".join(preview_lines(found)))


def preview_lines(found: dict[str, Any]) -> list[str]:
    """A preview for people."""
    shares = ", ".join(f"{name}: {100 * share:.1f} %" for name, share in found["classes"].items())
    weights = ", ".join(f"{weight:.2f}" for weight in found["class_weights"])
    left_out = f", {found['left_out']} left out (nothing is drawn there)" if found["left_out"] else ""
    size = f"depth {found['depth']}, {found['base_channels']} channels, {found['parameters']:,} parameters"
    return [
        f"sections  {found['sections']} to train on{left_out}, {found['held_out']} held out",
        f"classes   {shares} (weights {weights}); {found['cells']} cells",
        f"network   {size}",
        f"tile      {found['tile']} in, {found['output']} out, {found['batch_size']} a step",
        f"memory    {found['memory_gb']} GB ({found['device']}, {found['precision']})",
        f"speed     {found['steps_per_second']} steps/s, by a probe of ten seconds",
        f"time      {console.duration(60 * found['minutes'])} for {found['steps']} steps (recipe {found['recipe']})",
    ]


def read_alike(kind: type[Options], given: Mapping[str, Any]) -> Options:
    """The request; of processes that were all started with the same words, only the first reports what is wrong."""
    try:
        return kind.read(given)
    except UnetcliError:
        from unetcli.train.distributed import ProcessGroup

        if not ProcessGroup.from_environment().is_first:
            raise typer.Exit(console.USER) from None
        raise


def in_force(options: Mapping[str, Any]) -> dict[str, Any]:
    """For ``--print-config``: the options with every "choose" resolved, as train would."""
    from unetcli.core.process import prepare

    prepare()  # before torch is imported
    from unetcli.train.train import options_in_force

    chosen = options_in_force(TrainRequest.read(options))
    passed = ("sections", "validation", "augment", "minutes", "pair", "raw", "labels")
    return {name: chosen.get(name, value) if name not in passed else value for name, value in options.items()}
