"""``unetcli predict``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from unetcli.cli import options as o
from unetcli.cli import talk

if TYPE_CHECKING:
    from unetcli.config import PredictRequest


def predict(
    volume: o.VolumeArgument,
    output: o.OutputOption = None,
    model: o.ModelOption = None,
    tile: o.TileOption = "auto",
    sections: o.SectionsOption = None,
    dtype: o.DtypeOption = "uint8",
    device: o.DeviceOption = None,
    precision: o.PrecisionOption = "float32",
    channel: o.ChannelOption = None,
    normalise: o.NormaliseOption = "model",
    nonfinite: o.NonfiniteOption = None,
    overwrite: o.OverwriteOption = False,
    take_over: o.TakeOverOption = False,
    json: o.JsonOption = False,
) -> None:
    """Segment VOLUME, block by block.

    The same command again goes on where it stopped; the result is the same to the byte.
    """
    from unetcli.config import PredictRequest, parse_sections, parse_tile

    request = PredictRequest(
        volume=volume,
        output=output,
        model=model,
        tile=parse_tile(tile),
        sections=parse_sections(sections),
        dtype=dtype,
        device=device,
        precision=precision,
        channel=channel,
        normalise=normalise,
        nonfinite=nonfinite,
        overwrite=overwrite,
        take_over=take_over,
    )
    _run(request, json)


def _run(request: PredictRequest, json: bool) -> None:
    from unetcli.process import prepare

    prepare()  # before torch is imported
    from dataclasses import asdict

    from unetcli.prediction import predict_volume

    stopping = o.stop_on_sigterm()
    with talk.progress("voxels") as report:
        summary = predict_volume(request, report, stopping)
    talk.say(summary.sentence)
    o.print_json(asdict(summary)) if json else typer.echo(summary.output)
    if not summary.complete:
        raise typer.Exit(o.INCOMPLETE)
