"""From what a user asks of train to a configuration and its data, every "choose" resolved."""

from __future__ import annotations

import math
from typing import Any

import torch

from unetcli.architecture import Architecture
from unetcli.config import TrainingConfig, TrainRequest, resolve_sections
from unetcli.device import resolve_device
from unetcli.errors import UnetcliError
from unetcli.planning.planner import largest_tile
from unetcli.training.folder import TrainingFolder
from unetcli.training.learning import Training, seconds_per_step
from unetcli.training.sampling import Annotated, require_pair
from unetcli.training.survey import Survey, require_usable, resolve_truth, survey
from unetcli.volumes.fingerprint import fingerprint
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

PAPER = {"depth": 4, "base_channels": 64}
SMALL = {"depth": 3, "base_channels": 16}
PAPER_TILE, SMALL_TILE = 572, 316
MINUTES = 20
"""How long a training on a CPU takes where no number of steps is given."""
GPU_STEPS = 20_000
LEARNING_RATES = {"sgd": 3e-4, "adam": 1e-3}
"""The paper states none. Tried on ISBI sections, small network, 1200 steps: 1e-4, 3e-4, 1e-3 and 3e-3 with SGD."""


def resolve_training(request: TrainRequest, folder: TrainingFolder, frozen: TrainingConfig | None) -> Training:
    """Configuration and data of a request; what it leaves open is as in the frozen configuration, if there is one."""
    raw, labels = open_volume(request.raw), open_volume(request.labels)
    data_print = f"{fingerprint(raw)} {fingerprint(labels)}"
    require_pair(raw, labels, request.channel)
    device = resolve_device(request.device or (frozen.device if frozen else None))
    train, validation = split(request, raw)
    region = raw.sections(*train)
    truth = resolve_truth(request.truth, labels, raw.sections(train[0], validation[1]))
    data = Annotated.lay(raw, labels, truth, request.channel)
    found = survey(data, region)
    architecture = resolve_architecture(request, frozen, device, data, found)
    config = TrainingConfig(
        architecture=architecture,
        tile=resolve_tile(request, frozen, architecture, device),
        seed=request.seed,
        truth=truth,
        sections=train,
        validation=validation,
        optimizer=request.optimizer,
        learning_rate=resolve_learning_rate(request, frozen),
        channel=request.channel,
        device=device.type,
        data=data_print,
    )
    held_out = raw.sections(*validation) if validation[0] < validation[1] else None
    if held_out is not None:
        require_usable(data, held_out, found)
    return Training(
        config=config, data=data, region=region, held_out=held_out, found=found, folder=folder, device=device
    )


def split(request: TrainRequest, raw: Volume) -> tuple[tuple[int, int], tuple[int, int]]:
    """Training sections and, after them, those held out: never random neighbours, which look alike."""
    if not 0 <= request.validation_fraction < 1:
        raise UnetcliError(f"--validation-fraction {request.validation_fraction}: expected 0 up to, not with, 1")
    count = 1 if raw.section_axis is None else raw.extent[raw.section_axis]
    first, stop = resolve_sections(request.sections, count, raw.path)
    held_out = min(max(1, round((stop - first) * request.validation_fraction)), stop - first - 1)
    if request.validation_fraction == 0:
        held_out = 0
    return (first, stop - held_out), (stop - held_out, stop)


def resolve_architecture(
    request: TrainRequest, frozen: TrainingConfig | None, device: torch.device, data: Annotated, found: Survey
) -> Architecture:
    """The network asked for, else the frozen one's, else the paper's on a GPU and a small one on a CPU."""
    chosen: dict[str, Any] = SMALL if device.type == "cpu" else PAPER
    if frozen:
        chosen = {name: getattr(frozen.architecture, name) for name in PAPER}
    asked = {name: value for name in PAPER if (value := getattr(request, name)) is not None}
    channels = data.raw.channels if request.channel is None else 1
    return Architecture(**{**chosen, **asked}, in_channels=channels, classes=len(found.class_counts))


def resolve_tile(
    request: TrainRequest, frozen: TrainingConfig | None, architecture: Architecture, device: torch.device
) -> int:
    """The tile asked for, else the frozen one, else the paper's, on a CPU a smaller one."""
    footprint = architecture.footprint()
    if request.tile is None and frozen is not None:
        return frozen.tile
    if request.tile is None:
        return largest_tile(footprint, SMALL_TILE if device.type == "cpu" else PAPER_TILE)
    footprint.require_usable((request.tile,) * 2)
    return request.tile


def resolve_learning_rate(request: TrainRequest, frozen: TrainingConfig | None) -> float:
    """The rate asked for, else the frozen one, else the optimiser's default."""
    if request.optimizer not in LEARNING_RATES:
        raise UnetcliError(f"--optimizer {request.optimizer}: expected {' or '.join(LEARNING_RATES)}")
    if request.learning_rate is not None:
        if not 0 < request.learning_rate < math.inf:
            raise UnetcliError(f"--lr {request.learning_rate}: a number above 0 is needed")
        return request.learning_rate
    return frozen.learning_rate if frozen else LEARNING_RATES[request.optimizer]


def resolve_steps(request: TrainRequest, training: Training, frozen: int | None) -> int:
    """The number of steps asked for, else the frozen one, else what takes about ``MINUTES`` here.

    The number is a goal, not part of the configuration: asking for more goes on, through the same weights as asking
    for them at once. The last step of each goal is looked at too, so the model kept is the best of one look more.
    """
    if request.steps is not None:
        if request.steps < 1:
            raise UnetcliError(f"--steps {request.steps}: at least 1")
        return max(request.steps, frozen or 0)
    if frozen is not None:
        return frozen
    if training.device.type != "cpu":
        return GPU_STEPS
    seconds = seconds_per_step(training.config, training.data, training.region, training.found, training.device)
    return two_digits(60 * MINUTES / seconds)


def two_digits(value: float) -> int:
    """Rounded to two significant digits, at least 1.

    >>> two_digits(17_234.5)
    17000
    """
    return max(1, int(float(f"{value:.1e}")))
