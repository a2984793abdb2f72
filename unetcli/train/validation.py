"""Validation of a network on held-out sections: metrics, pictures and TensorBoard logs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.errors import UnetcliError
from unetcli.core.files import remove_aside, replacing
from unetcli.core.geometry import Box
from unetcli.core.process import cpu_threads
from unetcli.metrics.cells import SCORES as CELL_SCORES
from unetcli.metrics.cells import seg_sums
from unetcli.metrics.contingency import Cells, Overlap, PairCounts, components
from unetcli.metrics.em_counts import LEVELS, PixelCounts, above, pixel_counts
from unetcli.metrics.em_counts import SCORES as EM_SCORES
from unetcli.metrics.pixels import SCORES as PIXEL_SCORES
from unetcli.metrics.pixels import Confusion
from unetcli.metrics.sums import Score
from unetcli.model.network import UNet
from unetcli.planning.plan import Plan, Settings, Sources
from unetcli.planning.planner import CPU_TILE, Input, largest_tile, make_plan
from unetcli.predict.predictor import Predictor, predict_blocks
from unetcli.train.dataset import AnnotatedVolume, Dataset, DatasetStatistics, Sampler
from unetcli.train.folder import TrainingFolder
from unetcli.train.optim import Learner
from unetcli.train.settings import IGNORED, TrainingConfig
from unetcli.viz.png import draw_samples, stretched
from unetcli.volumes.volume import Volume

PICTURED = 2
"""Number of sections in the picture of a validation: those of the first blocks."""
SCORES: dict[str, Score[Any]] = {**EM_SCORES, **PIXEL_SCORES, **CELL_SCORES}
HALF = 0.5
"""Probability above which a pixel is foreground for iou and seg, which choose no threshold."""


class Validator:
    """Validates a network on the held-out sections of a training."""

    def __init__(
        self, config: TrainingConfig, dataset: Dataset, statistics: DatasetStatistics, device: torch.device
    ) -> None:
        self.config, self.dataset, self.statistics, self.device = config, dataset, statistics, device
        classes = config.architecture.classes
        self.settings = Settings(
            dtype="float32",
            outputs=1 if classes == 2 else classes,
            channel=config.channel,
            normalise="model",
            mean=statistics.mean,
            std=statistics.std,
            nonfinite=None,
            device=device.type,
            precision=config.precision,
            threads=cpu_threads(),
        )

    def __call__(
        self, network: UNet, stopping: Callable[[], bool] = bool
    ) -> tuple[ValidationMetrics | None, list[ValidatedSection]]:
        """Predict the held-out sections and compare them with their labels.

        Parameters
        ----------
        network : UNet
        stopping : callable, optional
            Validation ends early, with metrics of a part of the sections, once this returns true.

        Returns
        -------
        metrics : ValidationMetrics or None
            None if there is no held-out pixel with ground truth.
        pictured : list of ValidatedSection
            The first sections, for a picture.
        """
        training = network.training
        predictor = Predictor(network, self.settings, self.device)
        sums = MetricSums(self.statistics.class_weights(balance=self.config.balance), self.config.select)
        pictured: list[ValidatedSection] = []
        for item in self._predicted(predictor, stopping):
            sums.add(item)
            if len(pictured) < PICTURED:
                pictured.append(item)
        network.train(training)
        return sums.result(), pictured

    def _predicted(self, predictor: Predictor, stopping: Callable[[], bool]) -> Iterator[ValidatedSection]:
        for part in self.dataset.held_out:
            pair = self.dataset.pairs[part.pair]
            plan = self._plan(pair.raw, part.region)
            for finished in predict_blocks(plan, predictor, pair.raw, range(plan.blocks), stopping):
                if finished.error is not None:
                    raise finished.error
                assert finished.values is not None
                for box in finished.block.box.planes():
                    if self.dataset.is_used(pair, box):
                        values = finished.values[(slice(None), *box.relative_to(finished.block.box).slices)]
                        yield ValidatedSection(
                            pair, box, values.reshape(-1, *values.shape[-2:]), pair.targets.classes(box)
                        )

    def _plan(self, raw: Volume, region: Box) -> Plan:
        """Plan the blocks of held-out sections."""
        architecture = self.config.architecture
        bytes_per_voxel = raw.dtype.itemsize * architecture.in_channels
        source = Input(axes=raw.axes, extent=raw.extent, chunks=raw.chunks, bytes_per_voxel=bytes_per_voxel)
        tile = largest_tile(architecture.footprint(), CPU_TILE)
        nothing = Sources(volume="", volume_fingerprint="", model="", model_fingerprint="")
        return make_plan(source, region, architecture, tile, self.settings, nothing)


def is_better(measure: str, new: float, old: float) -> bool:
    """Whether a value of a measure is better than another one."""
    return new > old if SCORES[measure].higher_is_better else new < old


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationMetrics:
    """Metrics on the held-out sections."""

    loss: float
    """Cross-entropy with the class weights of the training, without border weights."""
    pixel_disagreement: float
    """Fraction of wrong pixels; for two classes, at the best of 11 thresholds."""
    threshold: float | None
    """Threshold of ``pixel_disagreement``; None for more than two classes, where the likeliest class counts."""
    iou: float | None
    """Intersection over union: of the foreground at 0.5, or the mean over more than two classes."""
    measure: str
    """Measure that selects the model."""
    selected: float | None
    """Value of ``measure``; None if it is undefined on these sections."""

    def to_dict(self) -> dict[str, Any]:
        """Columns of the log; the value of ``measure`` has the name of the measure."""
        return {
            "validation_loss": self.loss,
            "pixel_disagreement": self.pixel_disagreement,
            "threshold": self.threshold,
            "iou": self.iou,
            self.measure: self.selected,
        }


@dataclass(frozen=True, slots=True, eq=False)
class ValidatedSection:
    """Prediction and ground truth of one section."""

    pair: AnnotatedVolume
    box: Box
    values: NDArray[np.float32]
    """(outputs, y, x): predicted probabilities, of the foreground alone for two classes."""
    classes: NDArray[np.uint8]
    """(y, x): ground truth; ``IGNORED`` where there is none."""

    @property
    def has_truth(self) -> NDArray[np.bool_]:
        """(y, x): pixels with ground truth, which are evaluated."""
        return np.asarray(self.classes != IGNORED)

    @property
    def per_class(self) -> NDArray[np.float32]:
        """(classes, y, x): probability of each class."""
        return np.concatenate([1 - self.values, self.values]) if len(self.values) == 1 else self.values


@dataclass(slots=True)
class MetricSums:
    """Sums over sections, from which the metrics are computed."""

    weights: NDArray[np.float32]
    """(classes,): w_c of each class."""
    measure: str
    """Measure that selects the model; seg and rand_error are computed only for it."""
    loss: float = 0.0
    weight: float = 0.0
    confusion: Confusion | None = None
    levels: list[PixelCounts] = field(default_factory=lambda: [PixelCounts(0, 0, 0, 0) for _ in LEVELS])
    rand: list[PairCounts] = field(default_factory=lambda: [PairCounts(0, 0, 0) for _ in LEVELS])
    seg: tuple[float, int] = (0.0, 0)

    def add(self, item: ValidatedSection) -> None:
        """Add a section."""
        has_truth = item.has_truth
        truth, per_class = item.classes[has_truth].astype(np.int64), item.per_class[:, has_truth]
        weight = self.weights[truth]
        likelihood = np.take_along_axis(per_class, truth[None], axis=0)[0]
        self.loss += float((-np.log(np.maximum(likelihood, 1e-12)) * weight).sum())
        self.weight += float(weight.sum())
        likeliest = per_class.argmax(0) if len(per_class) > 2 else (per_class[1] > HALF).astype(np.int64)
        confusion = Confusion.of(truth, likeliest, len(per_class))
        self.confusion = confusion if self.confusion is None else self.confusion + confusion
        if len(per_class) == 2:
            self._add_levels(item, has_truth)
        if self.measure == "seg":  # components above 0.5 against the objects, or the components of a binary truth
            found = ndimage.label((item.values[0] > HALF) & has_truth)[0]
            total, objects = seg_sums(item.pair.instances(item.box), found)
            self.seg = (self.seg[0] + total, self.seg[1] + objects)

    def _add_levels(self, item: ValidatedSection, has_truth: NDArray[np.bool_]) -> None:
        interior = (item.classes > 0) & has_truth
        cells = Cells.of(interior, has_truth) if self.measure == "rand_error" else None
        for place, level in enumerate(LEVELS):
            proposal = above(item.values[0], level)
            self.levels[place] += pixel_counts(proposal, interior, has_truth)
            if cells is not None:
                self.rand[place] += Overlap.of(cells, components(proposal)).pairs

    def result(self) -> ValidationMetrics | None:
        """Compute the metrics; None if no pixel had ground truth."""
        if self.confusion is None or not self.confusion.counts.sum():
            return None
        wrong = [counts.fp + counts.fn for counts in self.levels]
        place, binary = int(np.argmin(wrong)), len(self.confusion.counts) == 2
        pixels = int(self.confusion.counts.sum())
        mistaken = wrong[place] if binary else pixels - int(self.confusion.counts.trace())
        iou = self.confusion.scores()["iou"]
        values = {
            "pixel_disagreement": mistaken / pixels,
            "iou": iou,
            "seg": self.seg[0] / self.seg[1] if self.seg[1] else None,
            "pixel_error": _lowest([counts.f_score for counts in self.levels]),
            "rand_error": _lowest([counts.f_score for counts in self.rand]),
        }
        return ValidationMetrics(
            loss=round(self.loss / self.weight, 6) if self.weight else 0.0,
            pixel_disagreement=round(mistaken / pixels, 6),
            threshold=LEVELS[place] if binary else None,
            iou=_rounded(iou),
            measure=self.measure,
            selected=_rounded(values[self.measure]),
        )


def describe_row(row: dict[str, Any], metrics: ValidationMetrics | None) -> str:
    """Describe a validation in one line."""
    text = f"step {row['step']}: loss {row['loss']:.4f}"
    if metrics is None:
        return f"{text} (saved; no held-out sections to validate on)"
    text += f"; held out: loss {metrics.loss:.4f}, pixel disagreement {metrics.pixel_disagreement:.4f}"
    if metrics.measure != "pixel_disagreement" and metrics.selected is not None:
        text += f", {metrics.measure.replace('_', ' ')} {metrics.selected:.4f}"
    return text + (" (best so far, saved)" if row["best"] else "")


def _lowest(f_scores: list[float | None]) -> float | None:
    """Lowest error over the thresholds: 1 - the highest F-score."""
    defined = [1 - score for score in f_scores if score is not None]
    return min(defined, default=None)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)


SAMPLES = 4
"""Number of tiles in the picture of the first samples."""
SIDE = 512
"""Largest side of a section in a picture, in pixels; larger sections are subsampled."""
GAP = 4
"""White pixels between the images of a picture."""
WHITE = 255
QUALITY = 90
"""JPEG quality: a section takes about 100 kB."""


def draw_first_samples(folder: TrainingFolder, learner: Learner, sampler: Sampler) -> None:
    """Draw the first augmented tiles of a training with classes and weights, if they are not drawn yet."""
    if folder.samples.exists():
        return
    samples = [sampler.sample(number) for number in range(SAMPLES)]
    batch = learner.batch(samples, [np.ones(1, np.float32)] * SAMPLES)
    weights = learner.table[batch.classes] + batch.border_weight
    images, classes = batch.images.cpu().numpy(), batch.classes.cpu().numpy()
    draw_samples(images, classes, weights.cpu().numpy(), folder.samples)


def draw_validation(folder: TrainingFolder, step: int, pictured: Sequence[ValidatedSection]) -> None:
    """Draw held-out sections side by side: image, foreground probability (or likeliest class), and ground truth."""
    if not pictured:
        return
    from imagecodecs import jpeg8_encode

    folder.predictions.mkdir(exist_ok=True)
    frame = GAP // 2
    rows = [np.hstack([np.pad(plane, frame, constant_values=WHITE) for plane in _planes(item)]) for item in pictured]
    width = max(row.shape[1] for row in rows)
    page = np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1])), constant_values=WHITE) for row in rows])
    with replacing(folder.predictions / f"step-{step:07d}.jpg") as draft:
        draft.write_bytes(jpeg8_encode(page, level=QUALITY))


def _planes(item: ValidatedSection) -> list[NDArray[np.uint8]]:
    """Image, prediction and ground truth of a section as grey values; pixels without ground truth are mid-grey."""
    step = -(-max(item.classes.shape) // SIDE)
    image = item.pair.image(item.box)[0].astype(np.float32)
    top = max(1, len(item.values) - 1)
    likeliest = item.values[0] if len(item.values) == 1 else item.values.argmax(0) / top
    truth = np.where(item.has_truth, item.classes / top, 0.5)
    return [(WHITE * plane[::step, ::step]).astype(np.uint8) for plane in (stretched(image), likeliest, truth)]


def remove_pictures_after(folder: TrainingFolder, step: int) -> None:
    """Remove pictures and TensorBoard logs of validations after a step, which are about to be repeated."""
    if folder.predictions.is_dir():
        for file in folder.predictions.glob("step-*.jpg"):
            if int(file.stem.removeprefix("step-")) > step:
                file.unlink()
    if step == 0:
        remove_aside(folder.tensorboard)


def require_tensorboard() -> None:
    """Raise UnetcliError, before training, if the ``tensorboard`` package is not installed."""
    if find_spec("tensorboard") is None:
        raise UnetcliError("--tensorboard: tensorboard is not installed; pip install 'unetcli[tensorboard]'")


def write_tensorboard(folder: TrainingFolder, row: dict[str, Any]) -> None:
    """Write the numbers of a validation to the TensorBoard log."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder.tensorboard)) as writer:
        for name, value in row.items():
            if isinstance(value, float):
                writer.add_scalar(name, value, row["step"])
