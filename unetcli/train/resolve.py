"""Resolution of a request of ``train`` to a configuration and its data; options left open get their defaults here."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Architecture
from unetcli.core.options import Sections, resolve_sections
from unetcli.model.network import has_bfloat16, resolve_device
from unetcli.planning.planner import largest_tile
from unetcli.train.data_checks import warn_about_images, warn_about_pairs
from unetcli.train.dataset import (
    AnnotatedVolume,
    Dataset,
    DatasetStatistics,
    dataset_statistics,
    require_usable,
    resolve_truth,
)
from unetcli.train.distributed import ProcessGroup, require_divisible
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
from unetcli.volumes.places import require_same_place, require_same_voxels
from unetcli.volumes.samples import fingerprint
from unetcli.volumes.truth_frames import with_truth_frames
from unetcli.volumes.volume import Volume, aligned

log = logging.getLogger(__name__)

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
VALIDATION_FRACTION = 0.1
SHIFTED = "not the same region; crop them to one region, or --same-place pairs their voxels as they are"
RESAMPLE = "one must be resampled to the other's"  # ends the message about different voxel sizes


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
    fingerprints = tuple(f"{fingerprint(raw)} {fingerprint(labels)}" for raw, labels in volumes)
    device = resolve_device(_chosen("device", request, frozen), group.local_rank)
    sections, validation = split_sections(request, [raw for raw, _ in volumes])
    rules = resolve_rules(request, frozen, volumes, sections, validation)
    keep_empty = _chosen("keep_empty", request, frozen, False)
    pairs = [AnnotatedVolume.buffered(raw, labels, rules, request.channel, len(volumes)) for raw, labels in volumes]
    dataset = Dataset.of_sections(pairs, sections, validation, keep_empty=keep_empty)
    statistics = dataset_statistics(dataset)
    require_usable(dataset, statistics)
    if group.is_first:
        warn_about_images(dataset, statistics)
    recipe = _chosen("recipe", request, frozen, DEFAULT_RECIPE)
    architecture = resolve_architecture(request, frozen, recipe, device, dataset, statistics)
    optimisation = resolve_optimisation(request, frozen, recipe, group)
    require_divisible(optimisation.batch_size, group)
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
        data=fingerprints,
    )
    return Training(
        config=config,
        dataset=dataset,
        statistics=statistics,
        folder=folder,
        device=device,
        group=group,
        options=_settings(RunOptions, request, None, {}),
    )


def _chosen(name: str, request: TrainRequest, frozen: object, default: Any = None) -> Any:
    """Value of a setting: that of the request, else that of the frozen configuration, else the default."""
    values = (getattr(request, name, None), getattr(frozen, name, None))
    return next((value for value in values if value is not None), default)


def _settings(kind: type[T], request: TrainRequest, frozen: T | None, defaults: Mapping[str, Any]) -> T:
    """Create settings whose fields are each taken from the request, else from frozen settings, else from defaults."""
    values = {field.name: _chosen(field.name, request, frozen) for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{**defaults, **{name: value for name, value in values.items() if value is not None}})


def require_pairs(request: TrainRequest) -> list[tuple[Volume, Volume]]:
    """Open images and labels of all pairs; raise UnetcliError if they do not fit together."""
    volumes = [open_pair(raw, labels) for raw, labels in request.pairs]
    for raw, labels in volumes:
        require_pair(raw, labels, request.channel)
        if not request.same_place:
            require_same_place(raw, labels, SHIFTED)
        if raw.with_sections_of(labels).axes != raw.axes:
            both = f"{raw.path} along {raw.axes[0]} were paired with those of {labels.path} along {labels.axes[0]}"
            log.info("sections of %s; each is trained on its own, so objects do not extend over sections", both)
    require_compatible([raw for raw, _ in volumes])
    return volumes


def open_pair(raw: str, labels: str) -> tuple[Volume, Volume]:
    """Open images and labels, without axes of extent 1 that only one of them has, and only frames that have labels."""
    truth = open_volume(labels).channels_as_sections()
    images = with_truth_frames(open_volume(raw), labels).fitted_to(truth)
    return aligned(images, truth)


def require_pair(raw: Volume, labels: Volume, channel: int | None) -> None:
    """Raise UnetcliError if labels do not cover the voxels of the images, or cannot be labels."""
    require_same_voxels(raw, labels, RESAMPLE)  # checked first, because it explains different extents
    if raw.extent != labels.extent:
        raise UnetcliError(
            f"{raw.path} is {'x'.join(map(str, raw.extent))}, "
            f"but {labels.path} is {'x'.join(map(str, labels.extent))}: labels must cover the same voxels"
        )
    require_labels(labels)
    if channel is not None and not 0 <= channel < raw.channels:
        raise UnetcliError(f"--channel {channel}: {raw.path} has channels 0 to {raw.channels - 1}")


def require_compatible(images: Sequence[Volume]) -> None:
    """Raise UnetcliError if the images of several pairs differ in channels, data type or voxel size."""
    first = images[0]
    for other in images[1:]:
        if (other.channels, other.dtype) != (first.channels, first.dtype):
            raise UnetcliError(
                f"{first.path} has {first.channels} channels of {first.dtype}, but {other.path} has {other.channels} "
                f"of {other.dtype}: all pairs must have the same"
            )
        require_same_voxels(first, other, RESAMPLE)


def resolve_rules(
    request: TrainRequest,
    frozen: TrainingConfig | None,
    volumes: Sequence[tuple[Volume, Volume]],
    sections: Ranges,
    validation: Ranges,
) -> TruthRules:
    """Resolve how labels become classes and weights; only labels of used sections are read."""
    if request.truth == "auto" and frozen is not None:
        truth = frozen.rules.truth
    else:
        used = [
            (labels, ends) for both in (sections, validation) for (_, labels), ends in zip(volumes, both, strict=True)
        ]
        regions = [(labels, labels.sections(*ends)) for labels, ends in used if ends[0] < ends[1]]
        truth = resolve_truth(request.truth, regions, request.ignore)
    return _settings(TruthRules, replace(request, truth=truth), frozen.rules if frozen else None, {})


def resolve_architecture(
    request: TrainRequest,
    frozen: TrainingConfig | None,
    recipe: str,
    device: torch.device,
    dataset: Dataset,
    statistics: DatasetStatistics,
) -> Architecture:
    """Resolve the network; by default, that of the paper on a GPU and a small one on a CPU."""
    defaults = {name: RECIPES[recipe][name] for name in ("dropout", "batch_norm")}
    defaults |= SMALL if device.type == "cpu" else PAPER
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


def split_sections(request: TrainRequest, images: Sequence[Volume]) -> tuple[Ranges, Ranges]:
    """Split the sections into training sections and held-out sections.

    By default the last sections of each pair are held out; random ones would resemble their neighbours in training.
    The sections that options name are counted through all pairs in order.

    Returns
    -------
    training, held_out : tuple of (first, stop)
        One range per pair, counted within the pair.
    """
    counts = [1 if raw.section_axis is None else raw.extent[raw.section_axis] for raw in images]
    name = images[0].path if len(images) == 1 else f"all {len(images)} pairs together"
    used = resolve_sections(request.sections, sum(counts), name)
    if request.validation is not None:
        held_out = _resolve_validation(request.validation, sum(counts), name)
        if request.sections == (None, None):
            used = (0, held_out[0]) if held_out[0] > 0 else (held_out[1], sum(counts))
        if held_out[0] < used[1] and used[0] < held_out[1]:
            if held_out[1] != used[1]:
                raise UnetcliError(
                    f"--validation {held_out[0]}:{held_out[1]}: overlaps the training sections {used[0]}:{used[1]}; "
                    "give --sections without them"
                )
            used = (used[0], held_out[0])
        if used[0] >= used[1]:
            raise UnetcliError(
                f"--validation {held_out[0]}:{held_out[1]}: leaves no section to train on; hold out fewer"
            )
        return by_pair(used, counts), by_pair(held_out, counts)
    fraction = VALIDATION_FRACTION if request.validation_fraction is None else request.validation_fraction
    if not 0 <= fraction < 1:
        raise UnetcliError(f"--validation-fraction {fraction}: expected 0 <= fraction < 1")
    ranges = by_pair(used, counts)
    held = tuple(held_out_count(b - a, fraction) for a, b in ranges)
    training = tuple((a, b - n) for (a, b), n in zip(ranges, held, strict=True))
    return training, tuple((b - n, b) for (_, b), n in zip(ranges, held, strict=True))


def held_out_count(count: int, fraction: float) -> int:
    """Number of held-out sections: at least one of two or more sections, unless the fraction is 0.

    >>> [held_out_count(n, 0.1) for n in (0, 1, 2, 25)]
    [0, 0, 1, 2]
    """
    return 0 if fraction == 0 else max(0, min(max(1, round(count * fraction)), count - 1))


def _resolve_validation(sections: Sections, count: int, name: str) -> tuple[int, int]:
    """Resolve ``--validation``; errors name this option."""
    try:
        return resolve_sections(sections, count, name)
    except UnetcliError as error:
        raise UnetcliError(str(error).replace("--sections", "--validation")) from None


def by_pair(used: tuple[int, int], counts: Sequence[int]) -> Ranges:
    """Convert a range that is counted through all pairs to one range per pair.

    >>> by_pair((2, 7), [4, 5])
    ((2, 4), (0, 3))
    """
    ranges, before = [], 0
    for count in counts:
        first, stop = (min(max(end - before, 0), count) for end in used)
        ranges.append((first, stop))
        before += count
    return tuple(ranges)
