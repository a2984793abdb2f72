"""How good a network is on sections held out from training, predicted as predict would."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unetcli.config import TrainingConfig
from unetcli.device import cpu_threads
from unetcli.geometry import Box
from unetcli.inference import Predictor, predict_blocks
from unetcli.metrics.em import LEVELS, above
from unetcli.network import UNet
from unetcli.planning.plan import Choices, Plan, Sources
from unetcli.planning.planner import CPU_TILE, Input, largest_tile, make_plan
from unetcli.training.sampling import Annotated
from unetcli.training.survey import Survey
from unetcli.training.targets import class_weights


@dataclass(frozen=True, slots=True)
class Validation:
    """Figures on the held-out sections."""

    loss: float
    """Weighted cross-entropy, weights as in training."""
    error: float
    """Pixel disagreement: share of wrong pixels, at the best of the 11 levels for two classes."""
    threshold: float | None
    """That level; None beyond two classes, where the likeliest class is taken."""

    def to_dict(self) -> dict[str, Any]:
        return {f"validation_{name}" if name == "loss" else name: value for name, value in asdict(self).items()}


@dataclass(slots=True)
class _Sums:
    loss: float = 0.0
    weight: float = 0.0
    pixels: int = 0
    wrong: Any = 0
    """Wrong pixels per level, or in all beyond two classes."""


def validate(
    network: UNet, config: TrainingConfig, data: Annotated, region: Box | None, found: Survey, device: torch.device
) -> Validation | None:
    """Predict the region and compare; None where nothing is held out."""
    if region is None:
        return None
    plan, sums = validation_plan(config, data, region, found, device), _Sums()
    predictor, weights = Predictor(network, plan.choices, device), class_weights(found.class_counts)
    for finished in predict_blocks(plan, predictor, data.raw, range(plan.blocks)):
        if finished.error is not None:
            raise finished.error
        assert finished.values is not None
        for box in finished.block.box.planes():
            values = finished.values[(slice(None), *box.relative_to(finished.block.box).slices)]
            _add(sums, values.reshape(-1, *values.shape[-2:]), data.target(box), weights)
    place = int(np.argmin(sums.wrong))
    error = float(np.atleast_1d(sums.wrong)[place]) / sums.pixels
    return Validation(
        round(sums.loss / sums.weight, 6), round(error, 6), LEVELS[place] if config.architecture.classes == 2 else None
    )


def validation_plan(config: TrainingConfig, data: Annotated, region: Box, found: Survey, device: torch.device) -> Plan:
    """Blocks of the held-out sections, float32 out."""
    classes, raw = config.architecture.classes, data.raw
    choices = Choices(
        dtype="float32",
        outputs=1 if classes == 2 else classes,
        channel=config.channel,
        normalise="model",
        mean=found.mean,
        std=found.std,
        nonfinite=None,
        device=device.type,
        precision="float32",
        threads=cpu_threads(),
    )
    bytes_per_voxel = raw.dtype.itemsize * config.architecture.in_channels
    source = Input(axes=raw.axes, extent=raw.extent, chunks=raw.chunks, bytes_per_voxel=bytes_per_voxel)
    tile = largest_tile(config.architecture.footprint(), CPU_TILE)
    nothing = Sources(volume="", volume_fingerprint="", model="", model_fingerprint="")
    return make_plan(source, region, config.architecture, tile, choices, nothing)


def _add(sums: _Sums, values: NDArray[np.float32], truth: NDArray[np.int64], weights: NDArray[np.float32]) -> None:
    """One section: probabilities (outputs, y, x) against classes (y, x)."""
    per_class = np.concatenate([1 - values, values]) if len(values) == 1 else values
    likelihood = np.take_along_axis(per_class, truth[None], axis=0)[0]
    weight = weights[truth]
    sums.loss += float((-np.log(np.maximum(likelihood, 1e-12)) * weight).sum())
    sums.weight += float(weight.sum())
    sums.pixels += truth.size
    if len(values) == 1:
        sums.wrong = sums.wrong + np.array([np.count_nonzero(above(values[0], t) != (truth > 0)) for t in LEVELS])
    else:
        sums.wrong = sums.wrong + np.count_nonzero(per_class.argmax(0) != truth)
