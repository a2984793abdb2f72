"""``unetcli weights``, ``show`` and ``worker``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from unetcli.cli import console
from unetcli.cli.requests import JsonOption
from unetcli.executors.options import WorkerRequest
from unetcli.train.request import WeightsRequest
from unetcli.viz.request import ShowRequest

if TYPE_CHECKING:
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
