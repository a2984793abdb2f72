"""Requests of ``train`` and ``weights``, as the user gives them; ``None`` is resolved to a default later."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from unetcli.core.errors import UnetcliError, pasted
from unetcli.core.files import strip_scheme
from unetcli.core.label_values import parse_value
from unetcli.core.names import with_choices
from unetcli.core.options import (
    IMAGE,
    Heading,
    Options,
    Sections,
    argument,
    axes_option,
    background_option,
    channel_option,
    classes_option,
    cluster_option,
    device_option,
    file_option,
    label_threshold_option,
    name_choices,
    network_option,
    option,
    overwrite_option,
    parse_sections,
    region_option,
    run_option,
    same_place_option,
    sections_option,
    strict_option,
    take_over_option,
)
from unetcli.executors.options import SlurmOptions

RECIPES = ("fast", "paper")
MEASURES = ("pixel_disagreement", "pixel_error", "rand_error", "iou", "seg")
"""Measures on the held-out sections by which the best model can be selected."""

Fold = int | Literal["all"]
"""Number of a fold, counted from 1, or all of them."""

_truth = partial(option, heading=Heading.TRUTH)
_augmentation = partial(option, heading=Heading.AUGMENTATION)
_optimisation = partial(option, heading=Heading.OPTIMISATION)


def parse_fold(text: str) -> Fold:
    """Parse ``--fold``: a number, or ``all``.

    >>> parse_fold("2"), parse_fold("all")
    (2, 'all')
    """
    if text == "all":
        return "all"
    if not text.isdecimal():
        raise UnetcliError(f"--fold {text}: expected a number, counted from 1, or all")
    return int(text)


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class TruthOptions(Options):
    """Options that set how labels become classes and loss weights."""

    truth: str = _truth(
        "Meaning of the labels: binary, instances or classes; auto: binary, if there are at most two values.",
        default="auto",
    )
    classes: tuple[int, ...] | None = classes_option(
        "Label value of each class, background first, such as 0,128,255 or '#000000,#ff0000'; implies --truth classes. "
        "none: values are class numbers. Default: all values, in ascending order.",
        Heading.TRUTH,
    )
    background: int | None = background_option("Label value of the background. Default: 0.", Heading.TRUTH)
    label_threshold: int | None = label_threshold_option(
        "Take labels of V and above as one side of a mask, and all others as the other; for masks as JPEG.",
        Heading.TRUTH,
    )
    ignore: int | None = _truth("Label value of pixels to leave out of the loss.", metavar="VALUE", parse=parse_value)
    partial: int | None = _truth("For partial annotation: use background only within M pixels of objects.", metavar="M")
    keep_empty: bool | None = _truth(
        "Use sections without labels, as background. Default: leave them out.", negative="--leave-empty"
    )
    w0: float | None = _truth(
        "Extra loss weight between close objects; 0 turns it off. Default: 10, but 0 for recipe fast if more than half "
        "of the background lies between close objects."
    )
    sigma: float | None = _truth("Distance over which the extra weight fades, in pixels. Default: 5.")
    weights_everywhere: bool | None = _truth(
        "Apply the extra weight to all pixels, or to background only (default).", negative="--weights-background"
    )
    balance: bool | None = _truth("Give all classes (default) or all pixels the same weight.", negative="--no-balance")
    sections: Sections = sections_option()

    def __post_init__(self) -> None:
        if self.classes is not None:
            if self.truth not in ("auto", "classes"):
                raise UnetcliError(f"--classes: not with --truth {self.truth}; expected --truth classes")
            object.__setattr__(self, "truth", "classes")
        if self.label_threshold is not None and self.truth == "auto":
            object.__setattr__(self, "truth", "binary")
        super().__post_init__()

    @property
    def class_values(self) -> tuple[int, ...] | None:
        """Value of ``--classes``, under the name of its setting."""
        return self.classes or None

    @property
    def everywhere(self) -> bool | None:
        """Value of ``--weights-everywhere``, under the name of its setting."""
        return self.weights_everywhere


@dataclass(frozen=True, kw_only=True)
class TrainRequest(TruthOptions, SlurmOptions):
    """Options of one call of ``train``; fields that share a setting's name are copied to it by name."""

    raw: str | None = field(default=None, kw_only=False, metadata=argument(f"Training images: {IMAGE}", "RAW"))
    labels: str | None = field(
        default=None,
        kw_only=False,
        metadata=argument("Labels (annotation) of the same voxels; also 01_GT or 01_ST of a challenge.", "LABELS"),
    )
    pair: tuple[tuple[str, str], ...] = file_option(
        "A further pair of images and labels. Repeatable.", default=(), metavar="RAW LABELS"
    )
    output: Path = file_option("Folder for the model, checkpoint, log and pictures.", default=Path("model"), short="-o")
    validation: Sections | None = region_option(
        "Sections held out for validation, not used for training.",
        metavar="A:B",
        parse=lambda text: parse_sections(text) if text else None,
    )
    validation_fraction: float | None = region_option(
        "Instead of --validation: hold out this fraction at the end of each pair. Default: 0.1."
    )
    folds: int | None = region_option(
        "Instead of --validation: divide the sections into K runs of neighbours, each of which is held out once.",
        metavar="K",
    )
    fold: Fold | None = region_option(
        "With --folds: hold out fold K, counted from 1; all (default): train one model for each, in OUTPUT/fold-1 "
        "and so on.",
        metavar="K",
        parse=parse_fold,
    )
    same_place: bool = same_place_option()
    channel: int | None = channel_option()
    axes: str | None = axes_option()
    depth: int | None = network_option("Number of pooling layers. Default: 4 (as in the paper) on a GPU, 3 on a CPU.")
    base_channels: int | None = network_option(
        "Feature channels at full resolution. Default: 64 (as in the paper) on a GPU, 16 on a CPU."
    )
    dropout: float | None = network_option("Dropout after the contracting path. Default: 0.5 (paper) or 0 (fast).")
    batch_norm: bool | None = network_option(
        "Batch normalisation, folded into the saved model. Default: only with fast.", negative="--no-batch-norm"
    )
    init: Path | None = network_option(
        "Fine-tune this model: start from its weights. Its depth and channels become the defaults.",
        metavar="MODEL",
    )
    normalise: str | None = network_option(
        "With --init, normalise grey values with the mean and standard deviation of the model (default) or of the "
        "volume: the training images.",
        metavar="model|volume",
    )
    nonfinite: float | None = network_option(
        "Replace NaN and infinity in the images by V, as predict does. Default: such pixels have no weight.",
        metavar="V",
    )
    tile: int | None = network_option(
        "Width of a training tile in pixels. Default: 572 (paper) or 380 (fast) on a GPU, 316 or 204 on a CPU."
    )
    device: str | None = device_option()
    precision: str | None = network_option("Number format: float32 or bfloat16. Default: bfloat16 if supported.")
    compile: bool = network_option("Compile the network first; takes a minute and needs a C++ compiler.", default=False)
    augment: bool = _augmentation(
        "Deform, rotate and vary tiles at random; the options below set how much.",
        default=True,
        negative="--no-augment",
    )
    elastic: float | None = _augmentation(
        "Standard deviation of displacements on a 3 x 3 grid, in pixels. Default: 10."
    )
    rotation: float | None = _augmentation("Largest angle in either direction, in degrees. Default: 180.")
    flip: bool | None = _augmentation("Mirror tiles at random, along x and along y.", negative="--no-flip")
    scale: float | None = _augmentation("Largest change of size. Default: 0.1, up to 10 %.")
    gamma: float | None = _augmentation("Largest change of the gamma curve. Default: 0.3, up to 30 %.")
    contrast: float | None = _augmentation("Largest change of contrast. Default: 0.25, up to 25 %.")
    brightness: float | None = _augmentation("Largest change of brightness, in standard deviations. Default: 0.25.")
    noise: float | None = _augmentation("Strongest noise added, in standard deviations. Default: 0.2.")
    blur: float | None = _augmentation("Strongest blur added, in pixels. Default: 1.")
    recipe: str | None = _optimisation(
        "Training defaults: paper (as published) or fast (needs fewer steps). Default: fast."
    )
    steps: int | None = _optimisation("Number of training steps. Default: 20000 on a GPU, 20 minutes' worth on a CPU.")
    minutes: float | None = _optimisation("Instead of --steps: train for about this many minutes.")
    batch_size: int | None = _optimisation("Tiles per step. Default: 1 (paper) or 4 (fast) for each process.")
    optimizer: str | None = _optimisation("Optimizer: sgd, adam or adamw. Default: sgd (paper) or adamw (fast).")
    lr: float | None = _optimisation("Learning rate. Default: 3e-4 (paper) or 3e-3 (fast).")
    momentum: float | None = _optimisation("Momentum, or first beta of adam. Default: 0.99 for sgd, else 0.9.")
    weight_decay: float | None = _optimisation("Weight decay. Default: 0 (paper) or 1e-4 (fast).")
    schedule: str | None = _optimisation(
        "Schedule of the learning rate: constant, cosine or poly. Default: constant (paper) or cosine (fast)."
    )
    warm_up: int | None = _optimisation("Steps of linear warm-up. Default: 0 (paper) or 50 (fast).", metavar="STEPS")
    clip: float | None = _optimisation("Clip the gradient to this norm. Default: no clipping.")
    ema: float | None = _optimisation("Decay of the moving average of the weights. Default: 0 (paper) or 0.99 (fast).")
    calibrate: bool | None = _optimisation(
        "Save a model whose probabilities are calibrated on the held-out sections (default), or the network as it is.",
        negative="--no-calibrate",
    )
    select: str | None = _optimisation(
        "Score that selects the model: pixel_disagreement (default), pixel_error, rand_error, iou or seg."
    )
    patience: int | None = _optimisation("Stop after N validations without improvement. Default: never.", metavar="N")
    validate_every: int | None = _optimisation("Steps between validations. Default: 200.", metavar="STEPS")
    seed: int = _optimisation("Seed of the random numbers.", default=0, metavar="N", min=0, max=2**32 - 1)
    checkpoint_minutes: float = run_option("Longest time between two checkpoints.", default=10.0, metavar="MINUTES")
    tensorboard: bool = run_option("Also write a TensorBoard log to OUTPUT/tensorboard.", default=False)
    overwrite: bool = overwrite_option()
    take_over: bool = take_over_option()
    strict: bool = strict_option()
    cluster: str = cluster_option("Where to train: local, or slurm (as one job).", default="local", env=True)
    nodes: int = cluster_option("With slurm: number of nodes.", default=1)
    gpus_per_node: int = cluster_option("With slurm: GPUs per node, one process for each.", default=0)
    tasks_per_node: int | None = cluster_option("With slurm and no GPUs: processes per node. Default: 1.")
    detach: bool = cluster_option("With slurm: submit, print the job id and return.", default=False)

    def __post_init__(self) -> None:
        for name in ("raw", "labels"):
            if (place := getattr(self, name)) is not None:
                object.__setattr__(self, name, strip_scheme(place))
        object.__setattr__(self, "pair", tuple((strip_scheme(raw), strip_scheme(labels)) for raw, labels in self.pair))
        self._name_choices()
        if self.raw is not None and self.labels is None:
            raise UnetcliError(f"{self.raw}: LABELS is missing; expected unetcli train RAW LABELS")
        if not self.pairs:
            raise UnetcliError("no images: give RAW and LABELS, or --pair RAW LABELS")
        if self.recipe is not None and self.recipe not in RECIPES:
            raise UnetcliError(f"--recipe {self.recipe}: expected {' or '.join(RECIPES)}")
        if self.select is not None and self.select not in MEASURES:
            raise UnetcliError(f"--select {self.select}: expected one of {', '.join(MEASURES)}")
        if self.normalise not in (None, "model", "volume"):
            raise UnetcliError(f"--normalise {self.normalise}: expected model or volume")
        if self.nonfinite is not None and not math.isfinite(self.nonfinite):
            raise UnetcliError(f"--nonfinite {self.nonfinite}: expected a number")
        self._require_positive()
        self._resolve_folds()
        super().__post_init__()

    def _name_choices(self) -> None:
        """Move ``--axes`` and the name of a channel into the names of the images, and not into those of the labels."""
        axes, channel = self.axes, self.channel if isinstance(self.channel, str) else None
        images = tuple((with_choices(raw, axes=axes, channel=channel), labels) for raw, labels in self.pair)
        object.__setattr__(self, "pair", images)
        name_choices(self, "raw")

    def _require_positive(self) -> None:
        for name in ("steps", "patience", "validate_every", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UnetcliError(f"--{name.replace('_', '-')} {value}: expected at least 1")
        for name in ("minutes", "checkpoint_minutes"):
            if (value := getattr(self, name)) is not None and not 0 < value < 1e6:
                raise UnetcliError(f"--{name.replace('_', '-')} {value}: expected a number above 0")

    def _resolve_folds(self) -> None:
        """Check ``--folds`` and ``--fold``; all folds are trained by default."""
        if self.folds is None:
            if self.fold is not None:
                raise UnetcliError(f"--fold {self.fold}: give the number of folds too, such as --folds 5")
            return
        if self.folds < 2:
            raise UnetcliError(f"--folds {self.folds}: expected at least 2")
        if self.validation is not None or self.validation_fraction is not None:
            raise UnetcliError("--folds: holds out one fold after the other; omit --validation")
        if self.fold is None:
            object.__setattr__(self, "fold", "all")
        elif self.fold != "all" and not 1 <= self.fold <= self.folds:
            raise UnetcliError(f"--fold {self.fold}: expected 1 to {self.folds}, or all; folds are counted from 1")
        if self.fold == "all" and self.cluster == "slurm":
            raise UnetcliError(
                "--cluster slurm: not with --fold all, which trains one fold after the other; submit a job for each: "
                f"{fold_words(self)}"
            )

    def of_fold(self, number: int) -> TrainRequest:
        """The request of one of ``--fold all``; its folder is a subfolder of the output."""
        return replace(self, fold=number, output=self.output / f"fold-{number}")

    @property
    def models(self) -> int:
        """Number of models to train: one for each fold of ``--fold all``, else one."""
        return (self.folds or 1) if self.fold == "all" else 1

    @property
    def first(self) -> TrainRequest:
        """The request of the first model to train."""
        return self.of_fold(1) if self.fold == "all" else self

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Paths of images and labels of each annotated volume."""
        first = ((self.raw, self.labels),) if self.raw is not None and self.labels is not None else ()
        return (*first, *self.pair)

    @property
    def learning_rate(self) -> float | None:
        """Value of ``--lr``, under the name of its setting."""
        return self.lr


def fold_words(request: TrainRequest) -> str:
    """Options that train the first fold alone, for messages; ``--fold all`` continues with such folders."""
    return f"--fold 1 --output {pasted(request.of_fold(1).output)}"


@dataclass(frozen=True, kw_only=True)
class WeightsRequest(TruthOptions):
    """Options of one call of ``weights``."""

    labels: str = field(
        kw_only=False, metadata=argument("Labels (annotation): integers in any file that train reads.", "LABELS")
    )
    output: str | None = file_option(
        "OME-Zarr to write, and a picture beside it. Default: NAME.weights.zarr in the current folder.", short="-o"
    )
    axes: str | None = axes_option()
    overwrite: bool = overwrite_option()

    def __post_init__(self) -> None:
        name_choices(self, "labels")
        super().__post_init__()
