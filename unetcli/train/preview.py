"""What a training would be, before it begins: sections, classes, memory, speed and time, and all options in force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from unetcli.core.footprint import Architecture
from unetcli.model.device import cpu_threads
from unetcli.train.learning import Training
from unetcli.train.pace import seconds_per_step
from unetcli.train.request import TrainRequest
from unetcli.train.resolve import GPU_STEPS, MINUTES, two_digits
from unetcli.train.train import parameters, resolve, settle
from unetcli.train.world import World

PROBE_SECONDS = 10.0
LIBRARY_BYTES = 600e6
"""Of torch, of looks at held-out sections and of all else in the process; with it four real runs took 0.88 to 0.98 of
what was expected (depth 3 and 4, both precisions, 585 to 906 MB)."""
RENAMED = {"learning_rate": "lr", "everywhere": "weights_everywhere"}
"""Settings that the command line calls otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPreview:
    """What ``train --dry-run`` says."""

    sections: int
    """With truth, to train on."""
    left_out: int
    held_out: int
    classes: dict[str, float]
    """Share of the pixels by class, from 0 to 1."""
    class_weights: list[float]
    cells: int
    """Objects drawn in the training sections, the border between touching ones drawn."""
    device: str
    precision: str
    recipe: str
    depth: int
    base_channels: int
    parameters: int
    tile: int
    output: int
    batch_size: int
    memory_gb: float
    """Expected peak of the process on a CPU, of the device on a GPU."""
    steps: int
    steps_per_second: float
    minutes: float
    """For all steps, from a probe of ten seconds; looks at held-out sections come on top."""


def preview_training(request: TrainRequest) -> TrainPreview:
    """Resolve a request and try a few steps of it; nothing is written."""
    torch.set_num_threads(cpu_threads())
    training, frozen = settle(request, World())
    config, found, corpus = training.config, training.found, training.corpus
    seconds = seconds_per_step(training, PROBE_SECONDS)
    steps = request.steps or frozen or steps_for(request, training, seconds)
    counts, a = found.class_counts, config.architecture
    return TrainPreview(
        sections=found.sections,
        left_out=found.left_out,
        held_out=sum(1 for _ in corpus.planes(corpus.held_out)),
        classes={str(k): round(float(n / counts.sum()), 4) for k, n in enumerate(counts)},
        class_weights=[round(float(w), 3) for w in found.class_weights(balance=config.balance)],
        cells=sum(pair.lessons.census(box).cells for pair, box in corpus.planes(corpus.train)),
        device=str(training.device),
        precision=config.precision,
        recipe=config.recipe,
        depth=a.depth,
        base_channels=a.base_channels,
        parameters=parameters(config),
        tile=config.tile,
        output=config.tile - 2 * a.footprint().context[-1],
        batch_size=config.optimisation.batch_size,
        memory_gb=round(memory_bytes(training) / 1e9, 2),
        steps=steps,
        steps_per_second=round(1 / seconds, 3),
        minutes=round(steps * seconds / 60, 1),
    )


def steps_for(request: TrainRequest, training: Training, seconds: float) -> int:
    """As train would choose."""
    if training.device.type != "cpu" and request.minutes is None:
        return GPU_STEPS
    return two_digits(60 * (request.minutes or MINUTES) / seconds)


def memory_bytes(training: Training) -> float:
    """Expected peak: activations kept for the way back, weights with what the optimiser keeps, data in memory."""
    config = training.config
    share = config.optimisation.batch_size // training.world.size
    activations = share * activation_values(config.architecture, config.tile)
    width = 2 if config.precision == "bfloat16" else 4
    copies = {"sgd": 3, "adam": 4, "adamw": 4}[config.optimisation.optimizer] + bool(config.optimisation.ema)
    device = width * activations + 4 * copies * parameters(config)
    if training.device.type != "cpu":
        return device
    volumes = [volume for pair in training.corpus.pairs for volume in (pair.raw, pair.labels)]
    return LIBRARY_BYTES + sum(getattr(volume.array, "nbytes", 0) for volume in volumes) + device


def activation_values(architecture: Architecture, tile: int) -> float:
    """Values that a training step keeps: both convolutions' results of each level, what joins them, and gradients.

    The largest moment of the way back needs about two of the widest results more.
    """
    a, side, total, widest = architecture, float(tile), 0.0, 0.0
    per_convolution = 3 if a.batch_norm else 1
    for level in range(a.depth + 1):
        for _ in range(2):
            side -= 2
            total += per_convolution * a.channels(level) * side**2
            widest = max(widest, a.channels(level) * side**2)
        side = side / 2 if level < a.depth else side
    for level in reversed(range(a.depth)):
        side *= 2
        total += 3 * a.channels(level) * side**2  # up-convolution, and what it is joined with
        for _ in range(2):
            side -= 2
            total += per_convolution * a.channels(level) * side**2
    return total + 3 * widest


def options_in_force(request: TrainRequest) -> Mapping[str, Any]:
    """Every choice resolved, by the names of the command line's options; what ``--print-config`` prints."""
    torch.set_num_threads(cpu_threads())
    training, goal = resolve(request, World())
    config = training.config
    parts = (config.architecture, config.rules, config.augmentation, config.optimisation)
    values = config.to_dict()
    for part in parts:
        values |= part.to_dict()
    return {RENAMED.get(name, name): value for name, value in values.items()} | {"steps": goal}
