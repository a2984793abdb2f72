"""``unetcli predict`` and ``unetcli plan``, which is ``predict --dry-run`` too."""

from __future__ import annotations

import typer

from unetcli.cli import console
from unetcli.cli.plan_view import lines
from unetcli.cli.requests import DryRunOption, JsonOption
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

    report = run_plan(request)
    if json:
        console.print_json(report.to_dict())
    else:
        typer.echo("\n".join(lines(report)))
