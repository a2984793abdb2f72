"""``unetcli train``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from unetcli.cli import options as o
from unetcli.cli import options_train as t
from unetcli.cli import talk
from unetcli.cli.signals import INTERRUPTED
from unetcli.core.errors import UnetcliError

if TYPE_CHECKING:
    from unetcli.train.request import TrainRequest
    from unetcli.train.train import TrainSummary


class TrainCommand(TyperCommand):
    """A command whose ``--pair`` takes two words."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for parameter in self.params:
            if parameter.name == "pair":
                parameter.nargs = 2


def train(
    raw: t.RawArgument = None,
    labels: t.LabelsArgument = None,
    pair: t.PairOption = None,
    output: t.TrainingOption = Path("model"),
    recipe: t.RecipeOption = None,
    steps: t.StepsOption = None,
    minutes: t.MinutesOption = None,
    depth: t.DepthOption = None,
    base_channels: t.BaseChannelsOption = None,
    dropout: t.DropoutOption = None,
    batch_norm: t.BatchNormOption = None,
    tile: t.TrainingTileOption = None,
    truth: t.TruthOption = "auto",
    ignore: t.IgnoreOption = None,
    partial: t.PartialOption = None,
    keep_empty: t.KeepEmptyOption = None,
    w0: t.W0Option = None,
    sigma: t.SigmaOption = None,
    weights_everywhere: t.EverywhereOption = None,
    balance: t.BalanceOption = None,
    sections: o.SectionsOption = None,
    validation: t.ValidationSectionsOption = None,
    validation_fraction: t.ValidationOption = None,
    augment: t.AugmentOption = True,
    elastic: t.ElasticOption = None,
    rotation: t.RotationOption = None,
    flip: t.FlipOption = None,
    scale: t.ScaleOption = None,
    gamma: t.GammaOption = None,
    contrast: t.ContrastOption = None,
    brightness: t.BrightnessOption = None,
    noise: t.NoiseOption = None,
    blur: t.BlurOption = None,
    batch_size: t.BatchSizeOption = None,
    optimizer: t.OptimizerOption = None,
    lr: t.LearningRateOption = None,
    momentum: t.MomentumOption = None,
    weight_decay: t.WeightDecayOption = None,
    schedule: t.ScheduleOption = None,
    warm_up: t.WarmUpOption = None,
    clip: t.ClipOption = None,
    ema: t.EmaOption = None,
    precision: t.TrainingPrecisionOption = None,
    compile: t.CompileOption = False,
    select: t.SelectOption = None,
    patience: t.PatienceOption = None,
    validate_every: t.ValidateEveryOption = None,
    checkpoint_minutes: t.CheckpointOption = 10.0,
    tensorboard: t.TensorboardOption = False,
    seed: t.SeedOption = 0,
    device: o.DeviceOption = None,
    channel: o.ChannelOption = None,
    overwrite: o.OverwriteOption = False,
    take_over: o.TakeOverOption = False,
    dry_run: t.TrainingDryRunOption = False,
    cluster: t.TrainingClusterOption = "local",
    nodes: t.NodesOption = 1,
    gpus_per_node: t.GpusPerNodeOption = 0,
    tasks_per_node: t.TasksPerNodeOption = None,
    profile: o.ProfileOption = None,
    detach: o.DetachOption = False,
    partition: o.PartitionOption = None,
    account: o.AccountOption = None,
    qos: o.QosOption = None,
    time: o.TimeOption = None,
    gres: o.GresOption = None,
    mem: o.MemOption = None,
    cpus_per_task: o.CpusOption = None,
    constraint: o.ConstraintOption = None,
    exclude: o.ExcludeOption = None,
    setup: o.SetupOption = None,
    slurm: o.SlurmOption = None,
    json: o.JsonOption = False,
) -> None:
    """Train a network on RAW images and LABELS.

    The same command again goes on where it stopped, or says that it is finished.
    """
    options = locals()
    try:
        request = request_of(options)
    except UnetcliError:
        from unetcli.train.distributed import World

        if not World.from_environment().is_first:
            raise typer.Exit(1) from None  # all were started with the same words: the first process tells
        raise
    if dry_run:
        _preview(request, json)
    elif cluster == "local":
        _run(request, json)
    else:
        _launch(request, options)


def request_of(given: dict[str, Any]) -> TrainRequest:
    """What the options mean; those named as in the request are taken over by name."""
    from dataclasses import fields

    from unetcli.config import parse_sections
    from unetcli.train.request import TrainRequest

    same = {field.name: given[field.name] for field in fields(TrainRequest) if field.name in given}
    translated = {
        "pairs": pairs_of(given["raw"], given["labels"], given["pair"] or []),
        "learning_rate": given["lr"],
        "everywhere": given["weights_everywhere"],
        "sections": parse_sections(given["sections"]),
        "validation": parse_sections(given["validation"]) if given["validation"] else None,
    }
    return TrainRequest(**{**same, **translated})


def pairs_of(raw: str | None, labels: str | None, more: list[Any]) -> tuple[tuple[str, str], ...]:
    """RAW and LABELS, and those of ``--pair``."""
    if raw is not None and labels is None:
        raise UnetcliError(f"{raw}: LABELS are missing; unetcli train RAW LABELS")
    first = [(raw, labels)] if raw is not None and labels is not None else []
    return (*first, *((str(one), str(two)) for one, two in more))


def _run(request: TrainRequest, json: bool) -> None:
    from unetcli.cli.signals import leave
    from unetcli.core.process import prepare
    from unetcli.core.signals import Signals

    signals = Signals().listen()
    prepare()  # before torch is imported
    from unetcli.train.distributed import OtherRankFailed, PeerLost, World
    from unetcli.train.train import silent, train_model

    first = World.from_environment().is_first
    try:
        with talk.progress("tiles") if first else nullcontext(silent) as report:
            summary = train_model(request, report, signals)
    except OtherRankFailed:
        raise typer.Exit(1) from None
    except PeerLost:
        if first:
            raise
        raise typer.Exit(o.INCOMPLETE) from None
    if not first:
        raise typer.Exit(0 if summary.finished else INTERRUPTED if signals.stop() == SIGINT else o.INCOMPLETE)
    talk.say(summary.sentence)
    if summary.finished:
        talk.say(summary.advice)
    _answer(summary, json)
    if not summary.finished:
        leave(signals)


def _answer(summary: TrainSummary, json: bool) -> None:
    """On stdout: everything, or the kept model's path, once there is one."""
    from dataclasses import asdict

    if json:
        o.print_json(asdict(summary))
    elif summary.best_step is not None:
        typer.echo(summary.model)


def _launch(request: TrainRequest, options: dict[str, Any]) -> None:
    """As one SLURM job."""
    from unetcli.cli.asking import asked_where
    from unetcli.core.process import prepare
    from unetcli.core.signals import Signals

    if options["cluster"] != "slurm":
        raise UnetcliError(f"--cluster {options['cluster']}: expected local or slurm")
    signals = Signals().listen()
    prepare()  # before torch is imported
    from unetcli.engine.clusters import slurm_request
    from unetcli.train.slurm import Processes, launch

    names = ("nodes", "gpus_per_node", "tasks_per_node")
    processes = Processes(**{name: options[name] for name in names})
    with talk.progress("tiles") as report:
        found = launch(
            request, slurm_request(asked_where(options)), processes, report, signals, detach=options["detach"]
        )
    if isinstance(found, str):
        typer.echo(found)
        return
    if found is not None:
        talk.say(found.sentence)
        _answer(found, options["json"])
    if found is None or not found.finished:
        raise typer.Exit(INTERRUPTED if signals.stop() == SIGINT else o.INCOMPLETE)


def _preview(request: TrainRequest, json: bool) -> None:
    from unetcli.core.process import prepare

    prepare()  # before torch is imported
    from dataclasses import asdict

    from unetcli.train.train import preview_training

    found = asdict(preview_training(request))
    if json:
        o.print_json(found)
        return
    for line in preview_lines(found):
        typer.echo(line)


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
        f"time      {talk.duration(60 * found['minutes'])} for {found['steps']} steps (recipe {found['recipe']})",
    ]


def in_force(options: Mapping[str, Any]) -> dict[str, Any]:
    """For ``--print-config``: the options with every "choose" resolved, as train would."""
    from unetcli.core.process import prepare

    prepare()  # before torch is imported
    from unetcli.train.train import options_in_force

    chosen = options_in_force(request_of(dict(options)))
    passed = ("sections", "validation", "augment", "minutes", "pair", "raw", "labels")
    return {name: chosen.get(name, value) if name not in passed else value for name, value in options.items()}
