"""From what a user asks of train to a configuration and its data, every "choose" resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch

from unetcli.core.errors import UnetcliError
from unetcli.core.footprint import Architecture
from unetcli.model.device import has_bfloat16, resolve_device
from unetcli.planning.planner import largest_tile
from unetcli.train.augmentation import Augmentation
from unetcli.train.corpus import Annotated, Corpus, require_alike, require_pair
from unetcli.train.folder import TrainingFolder
from unetcli.train.learning import Manner, Training
from unetcli.train.pace import seconds_per_step
from unetcli.train.recipes import RATES, RECIPES, Optimisation
from unetcli.train.request import TrainRequest
from unetcli.train.settings import Ranges, TrainingConfig
from unetcli.train.split import split
from unetcli.train.survey import Survey, require_usable, resolve_truth, survey
from unetcli.train.targets import TruthRules
from unetcli.train.world import World, require_divisible
from unetcli.volumes.fingerprint import fingerprint
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

T = TypeVar("T")
PAPER = {"depth": 4, "base_channels": 64}
SMALL = {"depth": 3, "base_channels": 16}
TILES = {"paper": (572, 316), "fast": (380, 204)}
"""Of the paper's network and of the small one."""
MINUTES = 20
"""How long a training on a CPU takes where nothing is said."""
GPU_STEPS = 20_000
DEFAULT_RECIPE = "fast"
LOOKS = 200
"""Steps between two looks at the held-out sections."""


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
    device = resolve_device(request.device or (frozen.device if frozen else None), world.local_rank)
    sections, validation = split(request, [raw for raw, _ in volumes])
    rules = resolve_rules(request, frozen, volumes, sections, validation)
    keep_empty = chosen(request.keep_empty, frozen.keep_empty if frozen else None, False)
    pairs = [Annotated.lay(raw, labels, rules, request.channel, len(volumes)) for raw, labels in volumes]
    corpus = Corpus.lay(pairs, sections, validation, keep_empty=keep_empty)
    found = survey(corpus)
    require_usable(corpus, found)
    recipe = request.recipe or (frozen.recipe if frozen else DEFAULT_RECIPE)
    architecture = resolve_architecture(request, frozen, recipe, device, corpus, found)
    optimisation = resolve_optimisation(request, frozen, recipe, world)
    require_divisible(optimisation.batch_size, world)
    config = TrainingConfig(
        recipe=recipe,
        architecture=architecture,
        tile=resolve_tile(request, frozen, recipe, architecture, device),
        rules=rules,
        keep_empty=keep_empty,
        balance=chosen(request.balance, frozen.balance if frozen else None, True),
        sections=sections,
        validation=validation,
        augmentation=resolve_augmentation(request, frozen),
        optimisation=optimisation,
        precision=resolve_precision(request, frozen, device),
        select=resolve_measure(request, frozen, architecture),
        validate_every=chosen(request.validate_every, frozen.validate_every if frozen else None, LOOKS),
        seed=request.seed,
        channel=request.channel,
        device=device.type,
        data=prints,
    )
    return Training(
        config=config,
        corpus=corpus,
        found=found,
        folder=folder,
        device=device,
        world=world,
        manner=manner_of(request),
    )


def require_pairs(request: TrainRequest) -> list[tuple[Volume, Volume]]:
    """Images and labels, opened; those that do not go together are refused."""
    labelled = [(open_volume(raw), open_volume(labels).channels_as_sections()) for raw, labels in request.pairs]
    volumes = [(raw.fitted_to(labels), labels) for raw, labels in labelled]
    for raw, labels in volumes:
        require_pair(raw, labels, request.channel)
    require_alike([raw for raw, _ in volumes])
    return volumes


def manner_of(request: TrainRequest) -> Manner:
    """How it is run, which may be another way each time."""
    return Manner(
        checkpoint_minutes=request.checkpoint_minutes,
        patience=request.patience,
        compiled=request.compile,
        tensorboard=request.tensorboard,
    )


def chosen(asked: T | None, frozen: T | None, otherwise: T) -> T:
    """What was asked for, else what is frozen, else the default."""
    return asked if asked is not None else frozen if frozen is not None else otherwise


def settled(kind: type[T], request: TrainRequest, frozen: T | None, defaults: Mapping[str, Any]) -> T:
    """Settings whose fields are, each, what was asked for, else what is frozen, else the default."""
    values = dict(defaults)
    for field in fields(kind):  # type: ignore[arg-type]
        asked = getattr(request, field.name, None)
        kept = getattr(frozen, field.name) if frozen is not None else None
        if asked is not None or kept is not None:
            values[field.name] = asked if asked is not None else kept
    return kind(**values)


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
    return settled(TruthRules, asked, frozen.rules if frozen else None, {})


def resolve_architecture(
    request: TrainRequest,
    frozen: TrainingConfig | None,
    recipe: str,
    device: torch.device,
    corpus: Corpus,
    found: Survey,
) -> Architecture:
    """The network asked for, else the frozen one's, else the paper's on a GPU and a small one on a CPU."""
    size = SMALL if device.type == "cpu" else PAPER
    ours = {name: RECIPES[recipe][name] for name in ("dropout", "batch_norm")}
    kept = {} if frozen is None else {name: getattr(frozen.architecture, name) for name in (*PAPER, *ours)}
    asked = {name: value for name in (*PAPER, *ours) if (value := getattr(request, name)) is not None}
    values: dict[str, Any] = {**size, **ours, **kept, **asked}
    return Architecture(**values, in_channels=corpus.channels, classes=len(found.class_counts))


def resolve_tile(
    request: TrainRequest, frozen: TrainingConfig | None, recipe: str, architecture: Architecture, device: torch.device
) -> int:
    """The tile asked for, else the frozen one, else the recipe's, on a CPU a smaller one."""
    footprint = architecture.footprint()
    if request.tile is None and frozen is not None:
        return frozen.tile
    if request.tile is None:
        return largest_tile(footprint, TILES[recipe][device.type == "cpu"])
    footprint.require_usable((request.tile,) * 2)
    return request.tile


def resolve_augmentation(request: TrainRequest, frozen: TrainingConfig | None) -> Augmentation:
    """The changes asked for; ``--no-augment`` switches off all that are not."""
    base = Augmentation() if request.augment else Augmentation.none()
    if request.augment and frozen is not None:
        base = frozen.augmentation
    return settled(Augmentation, request, base, {})


def resolve_optimisation(
    request: TrainRequest, frozen: TrainingConfig | None, recipe: str, world: World
) -> Optimisation:
    """The recipe's choices with what was asked for over them; a batch grows with the processes."""
    ours = RECIPES[recipe]
    names = [field.name for field in fields(Optimisation)]
    defaults = {name: ours[name] for name in names if name in ours}
    defaults["batch_size"] *= world.size
    optimizer = chosen(request.optimizer, frozen.optimisation.optimizer if frozen else None, ours["optimizer"])
    if optimizer not in RATES:
        raise UnetcliError(f"--optimizer {optimizer}: expected {', '.join(list(RATES)[:-1])} or {list(RATES)[-1]}")
    if optimizer != ours["optimizer"]:
        defaults |= {"momentum": 0.99 if optimizer == "sgd" else 0.9, "learning_rate": RATES[optimizer]}
    defaults["steps"] = None
    schedule = chosen(request.schedule, frozen.optimisation.schedule if frozen else None, ours["schedule"])
    kept = frozen.optimisation if frozen else None
    asked = replace(request, steps=None) if schedule == "constant" else request
    return settled(Optimisation, asked, kept, defaults)


def resolve_precision(request: TrainRequest, frozen: TrainingConfig | None, device: torch.device) -> str:
    """bfloat16 where the device computes in it, else float32."""
    asked = chosen(request.precision, frozen.precision if frozen else None, "auto")
    if asked not in ("auto", "float32", "bfloat16"):
        raise UnetcliError(f"--precision {asked}: expected auto, float32 or bfloat16")
    if asked != "auto":
        return asked
    return "bfloat16" if has_bfloat16(device) else "float32"


def resolve_measure(request: TrainRequest, frozen: TrainingConfig | None, architecture: Architecture) -> str:
    """What the model is chosen by; a measure of two classes is refused for more."""
    measure = chosen(request.select, frozen.select if frozen else None, "pixel_disagreement")
    if architecture.classes > 2 and measure not in ("pixel_disagreement", "iou"):
        raise UnetcliError(
            f"--select {measure}: of two classes only; with {architecture.classes}, pixel_disagreement or iou"
        )
    return measure


def resolve_steps(request: TrainRequest, training: Training, frozen: int | None) -> int:
    """The number of steps asked for, else the frozen one, else what takes about ``MINUTES`` here.

    With a constant learning rate the number is a goal, not part of the configuration: asking for more goes on, through
    the same weights as asking for them at once. The last step of each goal is looked at too, so the model kept is the
    best of one look more.
    """
    if request.steps is not None:
        return max(request.steps, frozen or 0) if not training.config.optimisation.decays else request.steps
    if frozen is not None:
        return frozen
    if training.device.type != "cpu" and request.minutes is None:
        return GPU_STEPS
    return two_digits(60 * (request.minutes or MINUTES) / seconds_per_step(training))


def two_digits(value: float) -> int:
    """Rounded to two significant digits, at least 1.

    >>> two_digits(17_234.5)
    17000
    """
    return max(1, int(float(f"{value:.1e}")))
