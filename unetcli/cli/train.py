"""``unetcli train``."""

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


def train(
    raw: Annotated[str, typer.Argument(metavar="RAW", help="Images: Zarr, OME-Zarr or TIFF stack.")],
    labels: Annotated[str, typer.Argument(metavar="LABELS", help="Annotation of the same voxels.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of model, checkpoint, log and curves.")] = Path(
        "model"
    ),
    steps: Annotated[
        int | None, typer.Option(help="Training steps; as many as take 20 minutes on a CPU, 20000 on a GPU.")
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Pooling layers: 4 (the paper) on a GPU, 3 on a CPU.")] = None,
    base_channels: Annotated[
        int | None, typer.Option(help="Channels at full resolution: 64 (the paper) on a GPU, 16 on a CPU.")
    ] = None,
    tile: Annotated[int | None, typer.Option(help="Input side of a training tile: 572 on a GPU, 316 on a CPU.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    truth: Annotated[
        str, typer.Option(help="What labels mean: binary, instances or classes; auto takes two values as binary.")
    ] = "auto",
    sections: SectionsOption = None,
    validation_fraction: Annotated[
        float, typer.Option(help="Share of the sections, the last ones, held out to judge by.")
    ] = 0.1,
    optimizer: Annotated[str, typer.Option(help="sgd (momentum 0.99) or adam.")] = "sgd",
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    device: DeviceOption = None,
    channel: ChannelOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Train a network on RAW images and LABELS.

    The same command again goes on where it stopped, or says that it is finished.
    """
    from unetcli.allocator import keep_freed_memory

    keep_freed_memory()  # before torch starts its threads
    from dataclasses import asdict

    from unetcli.config import TrainRequest, parse_sections
    from unetcli.training import train_model

    request = TrainRequest(
        raw=raw,
        labels=labels,
        output=output,
        steps=steps,
        depth=depth,
        base_channels=base_channels,
        tile=tile,
        seed=seed,
        truth=truth,
        sections=parse_sections(sections),
        validation_fraction=validation_fraction,
        optimizer=optimizer,
        learning_rate=lr,
        device=device,
        channel=channel,
        overwrite=overwrite,
    )
    stopping = stop_on_sigterm()
    with talk.progress("steps") as report:
        summary = train_model(request, report, stopping)
    talk.say(summary.sentence)
    print_json(asdict(summary)) if json else typer.echo(summary.model)
    if not summary.finished:
        raise typer.Exit(INCOMPLETE)
