"""How good a network is on sections held out from training, predicted as predict would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.device import cpu_threads
from unetcli.geometry import Box
from unetcli.inference import Predictor, predict_blocks
from unetcli.metrics import em
from unetcli.metrics.cells import seg_sums
from unetcli.metrics.pixels import Confusion
from unetcli.network import UNet
from unetcli.planning.plan import Choices, Plan, Sources
from unetcli.planning.planner import CPU_TILE, Input, largest_tile, make_plan
from unetcli.training.corpus import Annotated, Corpus
from unetcli.training.settings import TrainingConfig
from unetcli.training.survey import Survey
from unetcli.training.targets import IGNORED
from unetcli.volumes.volume import Volume

HIGHER_IS_BETTER = ("iou", "seg")
HALF = 0.5
"""Probability above which a pixel is foreground where no level is chosen: iou and seg."""


def better(measure: str, new: float, old: float) -> bool:
    """Whether one value of a measure beats another."""
    return new > old if measure in HIGHER_IS_BETTER else new < old


@dataclass(frozen=True, slots=True)
class Validation:
    """Figures on the held-out sections."""

    loss: float
    """Weighted cross-entropy, class weights as in training."""
    pixel_disagreement: float
    """Share of wrong pixels, at the best of the 11 levels for two classes."""
    threshold: float | None
    """That level; None beyond two classes, where the likeliest class is taken."""
    iou: float | None
    """Of the foreground at 0.5; beyond two classes their mean."""
    selected: float | None
    """The measure that the model is chosen by; None where it is undefined on these sections."""
    measure: str

    def to_dict(self) -> dict[str, Any]:
        """As in the log; the selected measure under its own name."""
        told = {name: getattr(self, name) for name in ("pixel_disagreement", "threshold", "iou")}
        return {"validation_loss": self.loss, **told, self.measure: self.selected}


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One section as the network sees it, beside its truth."""

    pair: Annotated
    box: Box
    values: NDArray[np.float32]
    """(outputs, y, x)"""
    classes: NDArray[np.uint8]
    """(y, x)"""

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Where there is truth."""
        counted: NDArray[np.bool_] = self.classes != IGNORED
        return counted


@dataclass(slots=True)
class _Sums:
    """What sections add up to."""

    weights: NDArray[np.float32]
    measure: str
    loss: float = 0.0
    weight: float = 0.0
    pixels: int = 0
    wrong: Any = 0
    """Wrong pixels per level, or in all beyond two classes."""
    confusion: Confusion | None = None
    em: list[list[em.LevelCounts]] = field(default_factory=list)
    seg: tuple[float, int] = (0.0, 0)

    def add(self, item: Judged) -> None:
        values = item.values
        per_class = np.concatenate([1 - values, values]) if len(values) == 1 else values
        counted, truth = item.counted, np.where(item.counted, item.classes, 0).astype(np.int64)
        likelihood = np.take_along_axis(per_class, truth[None], axis=0)[0]
        weight = self.weights[truth] * counted
        self.loss += float((-np.log(np.maximum(likelihood, 1e-12)) * weight).sum())
        self.weight += float(weight.sum())
        self.pixels += int(np.count_nonzero(counted))
        likeliest = (values[0] > HALF).astype(np.int64) if len(values) == 1 else per_class.argmax(0)
        if len(values) == 1:
            wrong = [np.count_nonzero((em.above(values[0], t) != (truth > 0)) & counted) for t in em.LEVELS]
            self.wrong = self.wrong + np.array(wrong)
        else:
            self.wrong = self.wrong + np.array([np.count_nonzero((likeliest != truth) & counted)])
        confusion = Confusion.of(truth[counted], likeliest[counted], len(per_class))
        self.confusion = confusion if self.confusion is None else self.confusion + confusion
        if self.measure in ("pixel_error", "rand_error"):
            self.em.append(em.section_counts(np.where(counted, values[0], 0).astype(np.float32), truth > 0))
        if self.measure == "seg":
            self._add_seg(item)

    def _add_seg(self, item: Judged) -> None:
        """Connected components above 0.5 against the instances; of a binary truth, its components."""
        found = ndimage.label((item.values[0] > HALF) & item.counted)[0]
        total, objects = seg_sums(item.pair.instances(item.box), found)
        self.seg = (self.seg[0] + total, self.seg[1] + objects)

    def result(self) -> Validation:
        place = int(np.argmin(self.wrong))
        disagreement = round(float(self.wrong[place]) / self.pixels, 6)
        assert self.confusion is not None
        iou = self.confusion.scores()["iou"]
        binary = len(self.confusion.counts) == 2
        return Validation(
            loss=round(self.loss / self.weight, 6),
            pixel_disagreement=disagreement,
            threshold=em.LEVELS[place] if binary else None,
            iou=None if iou is None else round(float(iou), 6),
            selected=self._selected(disagreement, iou),
            measure=self.measure,
        )

    def _selected(self, disagreement: float, iou: float | None) -> float | None:
        match self.measure:
            case "pixel_disagreement":
                return disagreement
            case "iou":
                return iou
            case "seg":
                return self.seg[0] / self.seg[1] if self.seg[1] else None
        value: float | None = em.scores(self.em)[self.measure]
        return value


class Validator:
    """Judges networks on the held-out sections of a training."""

    def __init__(self, config: TrainingConfig, corpus: Corpus, found: Survey, device: torch.device) -> None:
        self.config, self.corpus, self.found, self.device = config, corpus, found, device
        self.choices = choices_for(config, found, device)

    def __call__(self, network: UNet) -> tuple[Validation | None, list[Judged]]:
        """Figures, and a few sections for a picture; nothing where no section is held out."""
        training = network.training
        predictor = Predictor(network, self.choices, self.device)
        sums = _Sums(self.found.class_weights(balance=self.config.balance), self.config.select)
        shown: list[Judged] = []
        for item in self._judged(predictor):
            sums.add(item)
            if len(shown) < SHOWN:
                shown.append(item)
        network.train(training)
        return (sums.result() if sums.pixels else None), shown

    def _judged(self, predictor: Predictor) -> Iterator[Judged]:
        for part in self.corpus.held_out:
            pair = self.corpus.pairs[part.pair]
            plan = validation_plan(self.config, pair.raw, part.region, self.choices)
            for finished in predict_blocks(plan, predictor, pair.raw, range(plan.blocks)):
                if finished.error is not None:
                    raise finished.error
                assert finished.values is not None
                for box in finished.block.box.planes():
                    if self.corpus.is_used(pair, box):
                        values = finished.values[(slice(None), *box.relative_to(finished.block.box).slices)]
                        yield Judged(pair, box, values.reshape(-1, *values.shape[-2:]), pair.classes(box))


SHOWN = 2
"""Sections in the picture of a look; those of the first blocks."""


def choices_for(config: TrainingConfig, found: Survey, device: torch.device) -> Choices:
    """As predict would choose, probabilities in float32."""
    classes = config.architecture.classes
    return Choices(
        dtype="float32",
        outputs=1 if classes == 2 else classes,
        channel=config.channel,
        normalise="model",
        mean=found.mean,
        std=found.std,
        nonfinite=None,
        device=device.type,
        precision=config.precision,
        threads=cpu_threads(),
    )


def validation_plan(config: TrainingConfig, raw: Volume, region: Box, choices: Choices) -> Plan:
    """Blocks of held-out sections."""
    bytes_per_voxel = raw.dtype.itemsize * config.architecture.in_channels
    source = Input(axes=raw.axes, extent=raw.extent, chunks=raw.chunks, bytes_per_voxel=bytes_per_voxel)
    tile = largest_tile(config.architecture.footprint(), CPU_TILE)
    nothing = Sources(volume="", volume_fingerprint="", model="", model_fingerprint="")
    return make_plan(source, region, config.architecture, tile, choices, nothing)
