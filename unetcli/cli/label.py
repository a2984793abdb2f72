"""``unetcli label``."""

from __future__ import annotations

import typer

from unetcli.cli import console
from unetcli.cli.requests import JsonOption
from unetcli.label.request import LabelRequest


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
