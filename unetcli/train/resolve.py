"""Resolution of a request of ``train`` to a configuration and its data; options left open get their defaults here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Architecture
from unetcli.model.network import has_bfloat16, resolve_device
from unetcli.planning.planner import largest_tile
from unetcli.train.border_default import with_default_border_weight
from unetcli.train.data_checks import (
    require_pairs,
    warn_about_held_out,
    warn_about_images,
    warn_about_labels,
    warn_about_pairs,
)
from unetcli.train.dataset import (
    AnnotatedVolume,
    Dataset,
    DatasetStatistics,
    dataset_statistics,
    require_labelled,
    require_usable,
)
from unetcli.train.distributed import ProcessGroup, require_divisible
from unetcli.train.folder import TrainingFolder
from unetcli.train.initial import InitialModel, find_initial, require_fits, resolve_intensity, warn_about_grey
from unetcli.train.loop import RunOptions, Training, seconds_per_step
from unetcli.train.request import TrainRequest
from unetcli.train.sections import fold_ranges, split_sections
from unetcli.train.settings import (
    RATES,
    RECIPES,
    Augmentation,
    Optimisation,
    Ranges,
    TrainingConfig,
    TruthRules,
    require_one_of,
)
from unetcli.train.truth import resolve_class_values, resolve_truth
from unetcli.volumes.samples import fingerprint
from unetcli.volumes.volume import Volume

T = TypeVar("T")
PAPER = {"depth": 4, "base_channels": 64}
SMALL = {"depth": 3, "base_channels": 16}
TILES = {"paper": (572, 316), "fast": (380, 204)}
"""Default side of a tile, in pixels, on a GPU and on a CPU."""
MINUTES = 20
"""Default duration of a training on a CPU, in minutes."""
GPU_STEPS = 20_000
DEFAULT_RECIPE = "fast"
VALIDATE_EVERY = 200
"""Default number of steps between two validations."""


def resolve_training(
    request: TrainRequest,
    folder: TrainingFolder,
    frozen: TrainingConfig | None,
    group: ProcessGroup = ProcessGroup(),  # noqa: B008
) -> Training:
    """Resolve a request to a training: open its data, measure them, and choose what the request leaves open.

    Parameters
    ----------
    request : TrainRequest
    folder : TrainingFolder
        Folder of the training; nothing is written.
    frozen : TrainingConfig, optional
        Configuration of an earlier call, which takes precedence over defaults.
    group : ProcessGroup
        Its size sets the default batch size, its local rank the GPU.

    Raises
    ------
    UnetcliError
        The options or the data cannot be used.
    """
    volumes = require_pairs(request)
    if group.is_first:
        warn_about_pairs(volumes)
    device = resolve_device(_chosen("device", request, frozen), group.local_rank)
    data = tuple(f"{fingerprint(raw)} {fingerprint(labels)}" for raw, labels in volumes)
    ranges = split_sections(request, [raw for raw, _ in volumes])
    initial = find_initial(request, frozen)
    dataset = resolve_dataset(request, frozen, volumes, *ranges)
    statistics = dataset_statistics(dataset)
    require_usable(dataset, statistics)
    if group.is_first:
        warn_about_images(dataset, statistics)
        warn_about_labels(dataset)
        warn_about_held_out(dataset, ranges[1])
    config = resolve_config(request, frozen, group, device, dataset, statistics, ranges, data, initial)
    if initial is not None and config.intensity is not None and group.is_first:
        warn_about_grey(initial, dataset, statistics)
    return Training(
        config=config,
        dataset=dataset,
        statistics=statistics.normalised_by(config.intensity),
        folder=folder,
        device=device,
        group=group,
        options=_settings(RunOptions, request, None, {}),
    )


def resolve_dataset(
    request: TrainRequest,
    frozen: TrainingConfig | None,
    volumes: Sequence[tuple[Volume, Volume]],
    sections: Ranges,
    validation: Ranges,
) -> Dataset:
    """Pairs of images and labels, their classes, and their sections to train on and to hold out."""
    rules = resolve_rules(request, frozen, volumes, sections, validation)
    nonfinite = _chosen("nonfinite", request, frozen)
    pairs = [
        AnnotatedVolume.buffered(raw, labels, rules, request.channel, len(volumes), nonfinite)
        for raw, labels in volumes
    ]
    keep_empty = _chosen("keep_empty", request, frozen, False)
    dataset = Dataset.of_sections(pairs, sections, validation, keep_empty=keep_empty)
    require_labelled(dataset, fold_ranges(request, [raw for raw, _ in volumes]))
    recipe = _chosen("recipe", request, frozen, DEFAULT_RECIPE)
    by_default = recipe == "fast" and request.w0 is None and frozen is None
    return with_default_border_weight(dataset) if by_default else dataset


def resolve_config(
    request: TrainRequest,
    frozen: TrainingConfig | None,
    group: ProcessGroup,
    device: torch.device,
    dataset: Dataset,
    statistics: DatasetStatistics,
    ranges: tuple[Ranges, Ranges],
    data: tuple[str, ...],
    initial: InitialModel | None,
) -> TrainingConfig:
    """Configuration of a training on a dataset; ``ranges`` are its sections, ``data`` the fingerprints of its files."""
    recipe = _chosen("recipe", request, frozen, DEFAULT_RECIPE)
    architecture = resolve_architecture(request, frozen, recipe, device, dataset, statistics, initial)
    intensity = resolve_intensity(request, frozen, initial)
    if initial is not None:
        require_fits(initial, architecture, dataset, normalise=intensity is not None)
    optimisation = resolve_optimisation(request, frozen, recipe, group)
    require_divisible(optimisation.batch_size, group)
    return TrainingConfig(
        recipe=recipe,
        architecture=architecture,
        tile=resolve_tile(request, frozen, recipe, architecture, device),
        rules=dataset.pairs[0].rules,
        keep_empty=dataset.keep_empty,
        balance=_chosen("balance", request, frozen, True),
        calibrate=_chosen("calibrate", request, frozen, True),
        sections=ranges[0],
        validation=ranges[1],
        augmentation=resolve_augmentation(request, frozen),
        optimisation=optimisation,
        precision=resolve_precision(request, frozen, device),
        select=resolve_measure(request, frozen, architecture),
        validate_every=_chosen("validate_every", request, frozen, VALIDATE_EVERY),
        seed=request.seed,
        channel=request.channel,
        nonfinite=dataset.pairs[0].nonfinite,
        device=device.type,
        data=data,
        init=initial.digest if initial else frozen.init if frozen else None,
        intensity=intensity,
    )


def _chosen(name: str, request: TrainRequest, frozen: object, default: Any = None) -> Any:
    """Value of a setting: that of the request, else that of the frozen configuration, else the default."""
    values = (getattr(request, name, None), getattr(frozen, name, None))
    return next((value for value in values if value is not None), default)


def _settings(kind: type[T], request: TrainRequest, frozen: T | None, defaults: Mapping[str, Any]) -> T:
    """Create settings whose fields are each taken from the request, else from frozen settings, else from defaults."""
    values = {field.name: _chosen(field.name, request, frozen) for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{**defaults, **{name: value for name, value in values.items() if value is not None}})


def resolve_rules(
    request: TrainRequest,
    frozen: TrainingConfig | None,
    volumes: Sequence[tuple[Volume, Volume]],
    sections: Ranges,
    validation: Ranges,
) -> TruthRules:
    """Resolve how labels become classes and weights; only labels of used sections are read."""
    used = [(labels, ends) for both in (sections, validation) for (_, labels), ends in zip(volumes, both, strict=True)]
    regions = [(labels, labels.sections(*ends)) for labels, ends in used if ends[0] < ends[1]]
    if request.truth == "auto" and frozen is not None:
        truth = frozen.rules.truth
    else:
        truth = resolve_truth(request.truth, regions, request.ignore, request.background)
    rules = _settings(TruthRules, replace(request, truth=truth), frozen.rules if frozen else None, {})
    if truth != "classes" or (frozen is not None and frozen.rules.truth == truth):
        return rules
    values = resolve_class_values(request.classes, regions, request.ignore, request.background)
    return replace(rules, class_values=values)


def resolve_architecture(
    request: TrainRequest,
    frozen: TrainingConfig | None,
    recipe: str,
    device: torch.device,
    dataset: Dataset,
    statistics: DatasetStatistics,
    initial: InitialModel | None,
) -> Architecture:
    """Resolve the network; by default, that of the initial model, or of the paper on a GPU and a small one on a CPU."""
    defaults = {name: RECIPES[recipe][name] for name in ("dropout", "batch_norm")}
    defaults |= SMALL if device.type == "cpu" else PAPER
    if initial is not None:
        defaults |= {name: getattr(initial.header.architecture, name) for name in SMALL}
    kept = frozen.architecture if frozen else None
    channels = dataset.pairs[0].raw.channels if request.channel is None else 1
    values = {name: _chosen(name, request, kept, default) for name, default in defaults.items()}
    return Architecture(**values, in_channels=channels, classes=len(statistics.class_counts))


def resolve_tile(
    request: TrainRequest, frozen: TrainingConfig | None, recipe: str, architecture: Architecture, device: torch.device
) -> int:
    """Resolve the side of a tile, in pixels; by default, that of the recipe for the device."""
    footprint = architecture.footprint()
    if request.tile is not None:
        footprint.require_usable((request.tile,) * 2)
        return request.tile
    return frozen.tile if frozen else largest_tile(footprint, TILES[recipe][device.type == "cpu"])


def resolve_augmentation(request: TrainRequest, frozen: TrainingConfig | None) -> Augmentation:
    """Resolve the augmentation; with ``--no-augment``, only changes that the request names are applied."""
    kept = frozen.augmentation if frozen else Augmentation()
    return _settings(Augmentation, request, kept if request.augment else Augmentation.none(), {})


def resolve_optimisation(
    request: TrainRequest, frozen: TrainingConfig | None, recipe: str, group: ProcessGroup
) -> Optimisation:
    """Resolve the optimisation; defaults are those of the recipe, with its batch size for each process."""
    values, kept = RECIPES[recipe], frozen.optimisation if frozen else None
    defaults: dict[str, Any] = {field.name: values.get(field.name) for field in fields(Optimisation)}
    defaults["batch_size"] *= group.size
    optimizer = _chosen("optimizer", request, kept, values["optimizer"])
    require_one_of("optimizer", optimizer, tuple(RATES))
    if optimizer != values["optimizer"]:
        defaults |= {"momentum": 0.99 if optimizer == "sgd" else 0.9, "learning_rate": RATES[optimizer]}
    if _chosen("schedule", request, kept, values["schedule"]) == "constant":
        request = replace(request, steps=None)
    return _settings(Optimisation, request, kept, defaults)


def resolve_precision(request: TrainRequest, frozen: TrainingConfig | None, device: torch.device) -> str:
    """Resolve the precision; by default, bfloat16 if the device supports it, otherwise float32."""
    precision: str = _chosen("precision", request, frozen, "auto")
    require_one_of("precision", precision, ("auto", "float32", "bfloat16"))
    fastest = "bfloat16" if has_bfloat16(device) else "float32"
    return fastest if precision == "auto" else precision


def resolve_measure(request: TrainRequest, frozen: TrainingConfig | None, architecture: Architecture) -> str:
    """Resolve the measure that selects the model; raise UnetcliError if it is not defined for the classes."""
    measure: str = _chosen("select", request, frozen, "pixel_disagreement")
    if architecture.classes > 2 and measure not in ("pixel_disagreement", "iou"):
        raise UnetcliError(
            f"--select {measure}: only for two classes; for {architecture.classes}, use pixel_disagreement or iou"
        )
    return measure


def resolve_steps(request: TrainRequest, training: Training, frozen: int | None, seconds: float | None = None) -> int:
    """Resolve the number of steps; by default, ``GPU_STEPS``, or as many as take ``MINUTES`` on a CPU.

    With a constant learning rate the number is not part of the configuration: a later call with more steps continues,
    and gets the same weights as a single call. Each call validates after its last step too, so the saved model is the
    best of one more validation.

    Parameters
    ----------
    request : TrainRequest
    training : Training
    frozen : int, optional
        Number of steps of an earlier call.
    seconds : float, optional
        Duration of a step, in seconds; measured if it is needed and not given.
    """
    if request.steps is not None:
        return max(request.steps, frozen or 0) if not training.config.optimisation.decays else request.steps
    if frozen is not None:
        return frozen
    if training.device.type != "cpu" and request.minutes is None:
        return GPU_STEPS
    steps = 60 * (request.minutes or MINUTES) / (seconds or seconds_per_step(training))
    return max(1, int(float(f"{steps:.1e}")))  # two significant digits
