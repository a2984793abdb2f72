"""``unetcli predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unetcli.cli import talk
from unetcli.cli.options import (
    INCOMPLETE,
    ChannelOption,
    DeviceOption,
    JsonOption,
    OverwriteOption,
    SectionsOption,
    print_json,
    stop_on_sigterm,
)


def predict(
    volume: Annotated[
        str, typer.Argument(metavar="VOLUME", help="Zarr array, OME-Zarr image, store.zarr/path/inside or TIFF stack.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="OME-Zarr to write; NAME.pred.zarr here by itself.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model file or folder; $UNETCLI_MODEL, else ./model.")
    ] = None,
    tile: Annotated[
        str,
        typer.Option(
            envvar="UNETCLI_TILE", help="Input side of a forward pass, or auto: 700 on a CPU, what fits on a GPU."
        ),
    ] = "auto",
    sections: SectionsOption = None,
    dtype: Annotated[str, typer.Option(help="Of the probabilities: uint8 (value/255), float16 or float32.")] = "uint8",
    device: DeviceOption = None,
    precision: Annotated[str, typer.Option(help="Of the network: float32 or bfloat16.")] = "float32",
    channel: ChannelOption = None,
    normalise: Annotated[
        str, typer.Option(help="Grey values by the model's statistics, or by those of this volume: model or volume.")
    ] = "model",
    nonfinite: Annotated[
        float | None,
        typer.Option(metavar="V", help="Put V for NaN and infinity; else their blocks are set aside."),
    ] = None,
    overwrite: OverwriteOption = False,
    take_over: Annotated[bool, typer.Option("--take-over", help="Ignore the lock of a launcher that is dead.")] = False,
    json: JsonOption = False,
) -> None:
    """Segment VOLUME, block by block.

    The same command again goes on where it stopped; the result is the same to the byte.
    """
    from unetcli.allocator import keep_freed_memory

    keep_freed_memory()  # before torch starts its threads
    from dataclasses import asdict

    from unetcli.config import PredictRequest, parse_sections, parse_tile
    from unetcli.prediction import predict_volume

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
    stopping = stop_on_sigterm()
    with talk.progress("voxels") as report:
        summary = predict_volume(request, report, stopping)
    talk.say(summary.sentence)
    print_json(asdict(summary)) if json else typer.echo(summary.output)
    if not summary.complete:
        raise typer.Exit(INCOMPLETE)
