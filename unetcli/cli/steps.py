"""``unetcli predict``, ``plan`` (which is ``predict --dry-run`` too), ``label`` and ``evaluate``."""

from __future__ import annotations

import typer

from unetcli.cli import console
from unetcli.cli.requests import DryRunOption, JsonOption
from unetcli.evaluate.request import EvaluateRequest
from unetcli.label.request import LabelRequest
from unetcli.predict.request import PlanRequest, PredictRequest


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
    from unetcli.cli.plan_view import plan_lines

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
    from unetcli.cli.score_view import score_lines
    from unetcli.evaluate.run import Unfinished

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
