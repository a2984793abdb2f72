"""From the options of train to a configuration and its data; what was left open is chosen here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Architecture
from unetcli.core.options import Sections, resolve_sections
from unetcli.model.network import has_bfloat16, resolve_device
from unetcli.planning.planner import largest_tile
from unetcli.train.dataset import (
    AnnotatedVolume,
    Dataset,
    DatasetStatistics,
    dataset_statistics,
    require_usable,
    resolve_truth,
)
from unetcli.train.distributed import World, require_divisible
from unetcli.train.folder import TrainingFolder
from unetcli.train.loop import RunOptions, Training, seconds_per_step
from unetcli.train.request import TrainRequest
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
from unetcli.train.targets import require_labels
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume, fingerprint, require_same_voxels

T = TypeVar("T")
PAPER = {"depth": 4, "base_channels": 64}
SMALL = {"depth": 3, "base_channels": 16}
TILES = {"paper": (572, 316), "fast": (380, 204)}
"""For the paper's network and for the small one."""
MINUTES = 20
"""Default duration of a training on a CPU."""
GPU_STEPS = 20_000
DEFAULT_RECIPE = "fast"
VALIDATE_EVERY = 200
"""Default number of steps between two validations."""
VALIDATION_FRACTION = 0.1
RESAMPLE = "one must be resampled to the other's"


def resolve_training(
    request: TrainRequest,
    folder: TrainingFolder,
    frozen: TrainingConfig | None,
    world: World = World(),  # noqa: B008
) -> Training:
    """Configuration and data of a request; what it leaves open is as in the frozen configuration, if there is one.

    A decaying learning rate needs the number of steps: it is 0 in the configuration until :func:`with_steps`.
    """
    volumes = require_pairs(request)
    prints = tuple(f"{fingerprint(raw)} {fingerprint(labels)}" for raw, labels in volumes)
    device = resolve_device(_chosen("device", request, frozen), world.local_rank)
    sections, validation = split(request, [raw for raw, _ in volumes])
    rules = resolve_rules(request, frozen, volumes, sections, validation)
    keep_empty = _chosen("keep_empty", request, frozen, False)
    pairs = [AnnotatedVolume.buffered(raw, labels, rules, request.channel, len(volumes)) for raw, labels in volumes]
    dataset = Dataset.of_sections(pairs, sections, validation, keep_empty=keep_empty)
    statistics = dataset_statistics(dataset)
    require_usable(dataset, statistics)
    recipe = _chosen("recipe", request, frozen, DEFAULT_RECIPE)
    architecture = resolve_architecture(request, frozen, recipe, device, dataset, statistics)
    optimisation = resolve_optimisation(request, frozen, recipe, world)
    require_divisible(optimisation.batch_size, world)
    config = TrainingConfig(
        recipe=recipe,
        architecture=architecture,
        tile=resolve_tile(request, frozen, recipe, architecture, device),
        rules=rules,
        keep_empty=keep_empty,
        balance=_chosen("balance", request, frozen, True),
        sections=sections,
        validation=validation,
        augmentation=resolve_augmentation(request, frozen),
        optimisation=optimisation,
        precision=resolve_precision(request, frozen, device),
        select=resolve_measure(request, frozen, architecture),
        validate_every=_chosen("validate_every", request, frozen, VALIDATE_EVERY),
        seed=request.seed,
        channel=request.channel,
        device=device.type,
        data=prints,
    )
    return Training(
        config=config,
        dataset=dataset,
        statistics=statistics,
        folder=folder,
        device=device,
        world=world,
        options=_settings(RunOptions, request, None, {}),
    )


def _chosen(name: str, request: TrainRequest, frozen: object, default: Any = None) -> Any:
    """A setting as asked for, else as frozen, else the default."""
    values = (getattr(request, name, None), getattr(frozen, name, None))
    return next((value for value in values if value is not None), default)


def _settings(kind: type[T], request: TrainRequest, frozen: T | None, defaults: Mapping[str, Any]) -> T:
    """Settings whose fields are, each, as asked for, else as frozen, else the default."""
    values = {field.name: _chosen(field.name, request, frozen) for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{**defaults, **{name: value for name, value in values.items() if value is not None}})


def require_pairs(request: TrainRequest) -> list[tuple[Volume, Volume]]:
    """Images and labels, opened; those that do not go together are refused."""
    labelled = [(open_volume(raw), open_volume(labels).channels_as_sections()) for raw, labels in request.pairs]
    volumes = [(raw.fitted_to(labels), labels) for raw, labels in labelled]
    for raw, labels in volumes:
        require_pair(raw, labels, request.channel)
    require_alike([raw for raw, _ in volumes])
    return volumes


def require_pair(raw: Volume, labels: Volume, channel: int | None) -> None:
    """Refuse labels that do not cover the images' voxels, or are no labels."""
    require_same_voxels(raw, labels, RESAMPLE)  # before the extents, which another size of voxel explains
    if raw.extent != labels.extent:
        raise UnetcliError(
            f"{raw.path} is {'x'.join(map(str, raw.extent))}, "
            f"but {labels.path} is {'x'.join(map(str, labels.extent))}: labels must cover the same voxels"
        )
    require_labels(labels)
    if channel is not None and not 0 <= channel < raw.channels:
        raise UnetcliError(f"--channel {channel}: {raw.path} has channels 0 to {raw.channels - 1}")


def require_alike(pairs: Sequence[Volume]) -> None:
    """Refuse images of several pairs that one network cannot read alike."""
    first = pairs[0]
    for other in pairs[1:]:
        if (other.channels, other.dtype) != (first.channels, first.dtype):
            raise UnetcliError(
                f"{first.path} has {first.channels} channels of {first.dtype}, but {other.path} has {other.channels} "
                f"of {other.dtype}: pairs must be alike"
            )
        require_same_voxels(first, other, RESAMPLE)


def resolve_rules(
    request: TrainRequest,
    frozen: TrainingConfig | None,
    volumes: Sequence[tuple[Volume, Volume]],
    sections: Ranges,
    validation: Ranges,
) -> TruthRules:
    """How labels become classes and weights."""
    if request.truth == "auto" and frozen is not None:
        truth = frozen.rules.truth
    else:
        used = [
            (labels, ends) for both in (sections, validation) for (_, labels), ends in zip(volumes, both, strict=True)
        ]
        regions = [(labels, labels.sections(*ends)) for labels, ends in used if ends[0] < ends[1]]
        truth = resolve_truth(request.truth, regions, request.ignore)
    asked = replace(request, truth=truth)
    return _settings(TruthRules, asked, frozen.rules if frozen else None, {})


def resolve_architecture(
    request: TrainRequest,
    frozen: TrainingConfig | None,
    recipe: str,
    device: torch.device,
    dataset: Dataset,
    statistics: DatasetStatistics,
) -> Architecture:
    """The network asked for, else the frozen one's, else the paper's on a GPU and a small one on a CPU."""
    defaults = {name: RECIPES[recipe][name] for name in ("dropout", "batch_norm")}
    defaults |= SMALL if device.type == "cpu" else PAPER
    kept = frozen.architecture if frozen else None
    channels = dataset.pairs[0].raw.channels if request.channel is None else 1
    values = {name: _chosen(name, request, kept, default) for name, default in defaults.items()}
    return Architecture(**values, in_channels=channels, classes=len(statistics.class_counts))


def resolve_tile(
    request: TrainRequest, frozen: TrainingConfig | None, recipe: str, architecture: Architecture, device: torch.device
) -> int:
    """The tile asked for, else the frozen one, else the recipe's, on a CPU a smaller one."""
    footprint = architecture.footprint()
    if request.tile is not None:
        footprint.require_usable((request.tile,) * 2)
        return request.tile
    return frozen.tile if frozen else largest_tile(footprint, TILES[recipe][device.type == "cpu"])


def resolve_augmentation(request: TrainRequest, frozen: TrainingConfig | None) -> Augmentation:
    """The changes asked for; ``--no-augment`` switches off all that are not."""
    kept = frozen.augmentation if frozen else Augmentation()
    return _settings(Augmentation, request, kept if request.augment else Augmentation.none(), {})


def resolve_optimisation(
    request: TrainRequest, frozen: TrainingConfig | None, recipe: str, world: World
) -> Optimisation:
    """The recipe's choices with what was asked for over them; a batch grows with the processes."""
    ours, kept = RECIPES[recipe], frozen.optimisation if frozen else None
    defaults: dict[str, Any] = {field.name: ours.get(field.name) for field in fields(Optimisation)}
    defaults["batch_size"] *= world.size
    optimizer = _chosen("optimizer", request, kept, ours["optimizer"])
    require_one_of("optimizer", optimizer, tuple(RATES))
    if optimizer != ours["optimizer"]:
        defaults |= {"momentum": 0.99 if optimizer == "sgd" else 0.9, "learning_rate": RATES[optimizer]}
    if _chosen("schedule", request, kept, ours["schedule"]) == "constant":
        request = replace(request, steps=None)
    return _settings(Optimisation, request, kept, defaults)


def resolve_precision(request: TrainRequest, frozen: TrainingConfig | None, device: torch.device) -> str:
    """bfloat16 where the device computes in it, else float32."""
    precision: str = _chosen("precision", request, frozen, "auto")
    require_one_of("precision", precision, ("auto", "float32", "bfloat16"))
    fastest = "bfloat16" if has_bfloat16(device) else "float32"
    return fastest if precision == "auto" else precision


def resolve_measure(request: TrainRequest, frozen: TrainingConfig | None, architecture: Architecture) -> str:
    """The measure that selects the model; one of two classes is refused for more."""
    measure: str = _chosen("select", request, frozen, "pixel_disagreement")
    if architecture.classes > 2 and measure not in ("pixel_disagreement", "iou"):
        raise UnetcliError(
            f"--select {measure}: of two classes only; with {architecture.classes}, pixel_disagreement or iou"
        )
    return measure


def resolve_steps(request: TrainRequest, training: Training, frozen: int | None, seconds: float | None = None) -> int:
    """The number of steps asked for, else the frozen one, else what takes about ``MINUTES`` here.

    With a constant learning rate the number is a goal, not part of the configuration: asking for more goes on, through
    the same weights as asking for them at once. The last step of each goal is validated too, so the model kept is the
    best of one validation more. ``seconds`` is the duration of a step, measured here where it is not given.
    """
    if request.steps is not None:
        return max(request.steps, frozen or 0) if not training.config.optimisation.decays else request.steps
    if frozen is not None:
        return frozen
    if training.device.type != "cpu" and request.minutes is None:
        return GPU_STEPS
    steps = 60 * (request.minutes or MINUTES) / (seconds or seconds_per_step(training))
    return max(1, int(float(f"{steps:.1e}")))  # two significant digits


def split(request: TrainRequest, images: Sequence[Volume]) -> tuple[Ranges, Ranges]:
    """Training sections of each pair and those held out: the last of each, never random neighbours, which look alike.

    Sections are counted through all pairs in their order.
    """
    counts = [1 if raw.section_axis is None else raw.extent[raw.section_axis] for raw in images]
    named = images[0].path if len(images) == 1 else f"all {len(images)} pairs together"
    used = resolve_sections(request.sections, sum(counts), named)
    if request.validation is not None:
        held_out = _resolve_validation(request.validation, sum(counts), named)
        if request.sections == (None, None):
            used = (0, held_out[0]) if held_out[0] > 0 else (held_out[1], sum(counts))
        if held_out[0] < used[1] and used[0] < held_out[1]:
            if held_out[1] != used[1]:
                raise UnetcliError(
                    f"--validation {held_out[0]}:{held_out[1]}: inside the training sections {used[0]}:{used[1]}; "
                    "give --sections that do not overlap it"
                )
            used = (used[0], held_out[0])
        if used[0] >= used[1]:
            raise UnetcliError(f"--validation {held_out[0]}:{held_out[1]}: leaves no section to train on")
        return by_pair(used, counts), by_pair(held_out, counts)
    fraction = VALIDATION_FRACTION if request.validation_fraction is None else request.validation_fraction
    if not 0 <= fraction < 1:
        raise UnetcliError(f"--validation-fraction {fraction}: expected 0 <= fraction < 1")
    ranges = by_pair(used, counts)
    held = tuple(held_out_of(b - a, fraction) for a, b in ranges)
    training = tuple((a, b - n) for (a, b), n in zip(ranges, held, strict=True))
    return training, tuple((b - n, b) for (_, b), n in zip(ranges, held, strict=True))


def held_out_of(count: int, fraction: float) -> int:
    """How many of ``count`` sections are held out: one at least, where there are two and any are wanted.

    >>> [held_out_of(n, 0.1) for n in (0, 1, 2, 25)]
    [0, 0, 1, 2]
    """
    return 0 if fraction == 0 else max(0, min(max(1, round(count * fraction)), count - 1))


def _resolve_validation(asked: Sections, count: int, named: str) -> tuple[int, int]:
    """The sections held out; errors name the option."""
    try:
        return resolve_sections(asked, count, named)
    except UnetcliError as error:
        raise UnetcliError(str(error).replace("--sections", "--validation")) from None


def by_pair(used: tuple[int, int], counts: Sequence[int]) -> Ranges:
    """A range of sections counted through all pairs, as one range of each.

    >>> by_pair((2, 7), [4, 5])
    ((2, 4), (0, 3))
    """
    ranges, before = [], 0
    for count in counts:
        first, stop = (min(max(end - before, 0), count) for end in used)
        ranges.append((first, stop))
        before += count
    return tuple(ranges)
