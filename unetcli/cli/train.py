"""``unetcli train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from unetcli.cli import options as o
from unetcli.cli import talk

if TYPE_CHECKING:
    from unetcli.config import TrainRequest


def train(
    raw: o.RawArgument,
    labels: o.LabelsArgument,
    output: o.TrainingOption = Path("model"),
    steps: o.StepsOption = None,
    depth: o.DepthOption = None,
    base_channels: o.BaseChannelsOption = None,
    tile: o.TrainingTileOption = None,
    seed: o.SeedOption = 0,
    truth: o.TruthOption = "auto",
    sections: o.SectionsOption = None,
    validation_fraction: o.ValidationOption = 0.1,
    optimizer: o.OptimizerOption = "sgd",
    lr: o.LearningRateOption = None,
    device: o.DeviceOption = None,
    channel: o.ChannelOption = None,
    overwrite: o.OverwriteOption = False,
    take_over: o.TakeOverOption = False,
    json: o.JsonOption = False,
) -> None:
    """Train a network on RAW images and LABELS.

    The same command again goes on where it stopped, or says that it is finished.
    """
    from unetcli.config import TrainRequest, parse_sections

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
        take_over=take_over,
    )
    _run(request, json)


def _run(request: TrainRequest, json: bool) -> None:
    from unetcli.process import prepare

    prepare()  # before torch is imported
    from dataclasses import asdict

    from unetcli.training.train import train_model

    stopping = o.stop_on_sigterm()
    with talk.progress("steps") as report:
        summary = train_model(request, report, stopping)
    talk.say(summary.sentence)
    o.print_json(asdict(summary)) if json else typer.echo(summary.model)
    if not summary.finished:
        raise typer.Exit(o.INCOMPLETE)
