"""``unetcli evaluate``."""

from __future__ import annotations

import typer

from unetcli.cli import console
from unetcli.cli.requests import JsonOption
from unetcli.evaluate.request import EvaluateRequest


def evaluate(request: EvaluateRequest, json: JsonOption = False) -> None:
    """Score PREDICTION against TRUTH.

    Small volumes are scored at once. Of large ones the counts of finished blocks are kept until all are there: the same
    command goes on.
    """
    from unetcli.api import require_writable, run_evaluate, write_files
    from unetcli.cli.score_view import lines
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
    console.print_json(found.to_json()) if json else typer.echo("\n".join(lines(found)))
    with console.progress("sections") as report:
        write_files(request, found, report)
