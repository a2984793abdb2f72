"""``unetcli plan``, which is ``predict --dry-run`` too."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from unetcli.cli.plantable import NOT_OF_PLAN, show_plan
from unetcli.cli.predict import predict

ProbeOption = Annotated[bool, typer.Option("--probe", help="Measure this device for a minute at most; remembered.")]
WorkersOption = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Workers (GPUs) at once: adds time, bandwidth, weakest link.")
]
TileSecondsOption = Annotated[
    float | None, typer.Option(metavar="S", min=1e-6, help="Seconds of one forward pass, where you know it.")
]


def plan(
    probe: ProbeOption = False,
    tile_seconds: TileSecondsOption = None,
    workers: WorkersOption = None,
    **options: Any,
) -> None:
    """Say what predicting VOLUME would take; nothing is written.

    Takes the options of predict. What 1 PB takes on 1,000 GPUs that need 0.2 s for a tile:

    \b
      unetcli plan big.zarr --tile 2236 --device cuda \\
        --tile-seconds 0.2 --workers 1000
    """
    show_plan(options, probe=probe, tile_seconds=tile_seconds, workers=workers)


def _signature() -> inspect.Signature:
    """The options of predict that shape a plan, then those of plan alone."""
    own = [p for p in inspect.signature(plan, eval_str=True).parameters.values() if p.name != "options"]
    shared = [p for p in inspect.signature(predict, eval_str=True).parameters.values() if p.name not in NOT_OF_PLAN]
    return inspect.Signature([*shared, *own], return_annotation=None)


plan.__signature__ = _signature()  # type: ignore[attr-defined]  # typer reads it
