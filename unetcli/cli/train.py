"""``unetcli train``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from unetcli.cli import console
from unetcli.cli.requests import DryRunOption, JsonOption
from unetcli.core.errors import UnetcliError
from unetcli.core.options import Options
from unetcli.core.progress import silent
from unetcli.train.request import TrainRequest

if TYPE_CHECKING:
    from unetcli.train.train import TrainSummary


def train(request: TrainRequest, dry_run: DryRunOption = False, json: JsonOption = False) -> None:
    """Train a network on RAW images and LABELS.

    The same command again goes on where it stopped, or says that it is finished.
    """
    from unetcli.core.process import prepare
    from unetcli.core.signals import Signals

    if dry_run:
        preview(request, json)
        return
    signals = Signals().listen()
    prepare()  # before torch is imported
    from unetcli.api import run_train
    from unetcli.train.distributed import OtherRankFailed, PeerLost, World

    here = request.cluster == "local"
    first = not here or World.from_environment().is_first
    try:
        with console.progress("tiles") if first else nullcontext(silent) as report:
            summary = run_train(request, report, signals)
    except OtherRankFailed:
        raise typer.Exit(console.USER) from None
    except PeerLost:
        if first:
            raise
        raise typer.Exit(console.INCOMPLETE) from None
    if isinstance(summary, str):  # a job's id
        typer.echo(summary)
        return
    if summary is not None and first:
        answer(summary, json, advise=here)
    if summary is None or not summary.finished:
        console.leave(signals, requeue=here and first)


def answer(summary: TrainSummary, json: bool, *, advise: bool) -> None:
    """What was trained; on stdout everything, or the kept model's path, once there is one."""
    console.say(summary.sentence)
    if summary.finished and advise:
        console.say(summary.advice)
    if json:
        console.print_json(asdict(summary))
    elif summary.best_step is not None:
        typer.echo(summary.model)


def preview(request: TrainRequest, json: bool) -> None:
    """What would be trained, on stdout."""
    from unetcli.core.process import prepare

    prepare()  # before torch is imported
    from unetcli.train.train import preview_training

    found = asdict(preview_training(request))
    console.print_json(found) if json else typer.echo("\n".join(preview_lines(found)))


def preview_lines(found: dict[str, Any]) -> list[str]:
    """A preview for people."""
    shares = ", ".join(f"{name}: {100 * share:.1f} %" for name, share in found["classes"].items())
    weights = ", ".join(f"{weight:.2f}" for weight in found["class_weights"])
    left_out = f", {found['left_out']} left out (nothing is drawn there)" if found["left_out"] else ""
    size = f"depth {found['depth']}, {found['base_channels']} channels, {found['parameters']:,} parameters"
    return [
        f"sections  {found['sections']} to train on{left_out}, {found['held_out']} held out",
        f"classes   {shares} (weights {weights}); {found['cells']} cells",
        f"network   {size}",
        f"tile      {found['tile']} in, {found['output']} out, {found['batch_size']} a step",
        f"memory    {found['memory_gb']} GB ({found['device']}, {found['precision']})",
        f"speed     {found['steps_per_second']} steps/s, by a probe of ten seconds",
        f"time      {console.duration(60 * found['minutes'])} for {found['steps']} steps (recipe {found['recipe']})",
    ]


def read_alike(kind: type[Options], given: Mapping[str, Any]) -> Options:
    """The request; of processes that were all started with the same words, only the first reports what is wrong."""
    try:
        return kind.read(given)
    except UnetcliError:
        from unetcli.train.distributed import World

        if not World.from_environment().is_first:
            raise typer.Exit(console.USER) from None
        raise


def in_force(options: Mapping[str, Any]) -> dict[str, Any]:
    """For ``--print-config``: the options with every "choose" resolved, as train would."""
    from unetcli.core.process import prepare

    prepare()  # before torch is imported
    from unetcli.train.train import options_in_force

    chosen = options_in_force(TrainRequest.read(options))
    passed = ("sections", "validation", "augment", "minutes", "pair", "raw", "labels")
    return {name: chosen.get(name, value) if name not in passed else value for name, value in options.items()}
