"""Requests of ``train`` and ``weights``, as the user gives them; ``None`` is resolved to a default later."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import plain
from unetcli.core.options import (
    Heading,
    Options,
    Sections,
    argument,
    channel_option,
    device_option,
    option,
    overwrite_option,
    parse_sections,
    sections_option,
    take_over_option,
)
from unetcli.executors.options import SlurmOptions

RECIPES = ("fast", "paper")
MEASURES = ("pixel_disagreement", "pixel_error", "rand_error", "iou", "seg")
"""Measures on the held-out sections by which the best model can be selected."""

_truth = partial(option, heading=Heading.TRUTH)
_augmentation = partial(option, heading=Heading.AUGMENTATION)
_optimisation = partial(option, heading=Heading.OPTIMISATION)


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class TruthOptions(Options):
    """Options that set how labels become classes and loss weights."""

    truth: str = _truth(
        "Meaning of the labels: binary, instances or classes; auto: binary if they have two values.", default="auto"
    )
    ignore: int | None = _truth("Label value of pixels to ignore; their loss weight is 0.", metavar="VALUE")
    partial: int | None = _truth("Annotation is incomplete: use background only within M px of an object.", metavar="M")
    keep_empty: bool | None = _truth("Use sections without labels as background.", negative="--leave-empty")
    w0: float | None = _truth("Extra weight between close objects; 0: off. Default: 10.")
    sigma: float | None = _truth("Distance over which the extra weight fades, in pixels. Default: 5.")
    weights_everywhere: bool | None = _truth(
        "Apply the extra weight to objects too, not only to background.", negative="--weights-background"
    )
    balance: bool | None = _truth("Give each class the same total weight, not each pixel.", negative="--no-balance")
    sections: Sections = sections_option()

    @property
    def everywhere(self) -> bool | None:
        """Value of ``--weights-everywhere``, under the name of its setting."""
        return self.weights_everywhere


@dataclass(frozen=True, kw_only=True)
class TrainRequest(TruthOptions, SlurmOptions):
    """Options of one call of ``train``; fields that share a setting's name are copied to it by name."""

    raw: str | None = field(
        default=None, kw_only=False, metadata=argument("Images: Zarr, OME-Zarr or TIFF stack.", "RAW")
    )
    labels: str | None = field(default=None, kw_only=False, metadata=argument("Labels of the same voxels.", "LABELS"))
    pair: tuple[tuple[str, str], ...] = option(
        "Another pair of images and labels. Repeatable.", Heading.FILES, default=(), metavar="RAW LABELS"
    )
    output: Path = option(
        "Folder for the model, checkpoint, log and pictures.", Heading.FILES, default=Path("model"), short="-o"
    )
    validation: Sections | None = option(
        "Sections held out for validation; they are not trained on.",
        Heading.REGION,
        metavar="A:B",
        parse=lambda text: parse_sections(text) if text else None,
    )
    validation_fraction: float | None = option(
        "Without --validation: fraction of each pair's sections, its last ones. Default: 0.1.", Heading.REGION
    )
    channel: int | None = channel_option()
    depth: int | None = option("Pooling layers. Default: 4 (the paper) on a GPU, 3 on a CPU.", Heading.NETWORK)
    base_channels: int | None = option(
        "Channels at full resolution. Default: 64 (the paper) on a GPU, 16 on a CPU.", Heading.NETWORK
    )
    dropout: float | None = option("Dropout after the contracting path. Default: 0; paper: 0.5.", Heading.NETWORK)
    batch_norm: bool | None = option(
        "Batch normalisation, folded into the model. Default: on; paper: off.",
        Heading.NETWORK,
        negative="--no-batch-norm",
    )
    tile: int | None = option(
        "Side of a training tile. Default: 380 (paper: 572) on a GPU, 204 (316) on a CPU.", Heading.NETWORK
    )
    device: str | None = device_option()
    precision: str | None = option("float32 or bfloat16. Default: bfloat16 if the device supports it.", Heading.NETWORK)
    compile: bool = option(
        "Compile the network first; takes a minute and needs a C++ compiler.", Heading.NETWORK, default=False
    )
    augment: bool = _augmentation(
        "Augment tiles at random; the options below set the strength.", default=True, negative="--no-augment"
    )
    elastic: float | None = _augmentation("Standard deviation of the elastic displacements, in px. Default: 10.")
    rotation: float | None = _augmentation("Largest rotation in either direction, in degrees. Default: 180.")
    flip: bool | None = _augmentation("Mirror tiles along y and x, each in half of the samples.", negative="--no-flip")
    scale: float | None = _augmentation("Largest change of size; 0.1: up to 10 % larger or smaller. Default: 0.1.")
    gamma: float | None = _augmentation("Range of the gamma exponent: up to 1 + gamma or its inverse. Default: 0.3.")
    contrast: float | None = _augmentation("Range of the contrast: up to 1 + contrast or its inverse. Default: 0.25.")
    brightness: float | None = _augmentation("Largest brightness shift, in standard deviations. Default: 0.25.")
    noise: float | None = _augmentation("Strongest noise, in standard deviations of the images. Default: 0.2.")
    blur: float | None = _augmentation("Strongest Gaussian blur (its standard deviation), in px. Default: 1.")
    recipe: str | None = _optimisation("Set of defaults: fast, or paper (as published). Default: fast.")
    steps: int | None = _optimisation("Training steps. Default: as many as fit in 20 minutes on a CPU, 20000 on a GPU.")
    minutes: float | None = _optimisation("Without --steps: train for about this long.")
    batch_size: int | None = _optimisation("Tiles per step, over all processes. Default: 4 per process; paper: 1.")
    optimizer: str | None = _optimisation("sgd, adam or adamw. Default: adamw; paper: sgd.")
    lr: float | None = _optimisation("Learning rate. Default: 3e-3; paper: 3e-4.")
    momentum: float | None = _optimisation("Momentum of sgd, beta1 of adam and adamw. Default: 0.9; sgd: 0.99.")
    weight_decay: float | None = _optimisation("Weight decay. Default: 1e-4; paper: 0.")
    schedule: str | None = _optimisation(
        "Schedule of --lr: constant, cosine or poly. Default: cosine; paper: constant."
    )
    warm_up: int | None = _optimisation("Steps of a rising learning rate. Default: 50; paper: 0.", metavar="STEPS")
    clip: float | None = _optimisation("Clip gradients to this norm. Default: no clipping.")
    ema: float | None = _optimisation("Decay of the moving average of the weights; 0: none. Default: 0.99; paper: 0.")
    select: str | None = _optimisation(
        "Measure that selects the model: pixel_disagreement (default), pixel_error, rand_error, iou or seg."
    )
    patience: int | None = _optimisation("Stop after this many validations without a better model.", metavar="N")
    validate_every: int | None = _optimisation("Steps between validations. Default: 200.", metavar="STEPS")
    seed: int = _optimisation("Seed of all random choices.", default=0, min=0, max=2**32 - 1)
    checkpoint_minutes: float = option(
        "Longest time between checkpoints.", Heading.RUN, default=10.0, metavar="MINUTES"
    )
    tensorboard: bool = option("Also write a TensorBoard log to OUTPUT/tensorboard.", Heading.RUN, default=False)
    overwrite: bool = overwrite_option()
    take_over: bool = take_over_option()
    cluster: str = option("local, or slurm: one job with all processes.", Heading.CLUSTER, default="local", env=True)
    nodes: int = option("With slurm: number of nodes.", Heading.CLUSTER, default=1)
    gpus_per_node: int = option("With slurm: GPUs per node, one process per GPU.", Heading.CLUSTER, default=0)
    tasks_per_node: int | None = option("With slurm on CPUs: processes per node. Default: 1.", Heading.CLUSTER)
    detach: bool = option("With slurm: submit the job, print its id and return.", Heading.CLUSTER, default=False)

    def __post_init__(self) -> None:
        for name in ("raw", "labels"):
            if (place := getattr(self, name)) is not None:
                object.__setattr__(self, name, plain(place))
        object.__setattr__(self, "pair", tuple((plain(raw), plain(labels)) for raw, labels in self.pair))
        if self.raw is not None and self.labels is None:
            raise UnetcliError(f"{self.raw}: LABELS is missing; expected unetcli train RAW LABELS")
        if not self.pairs:
            raise UnetcliError("no images: give RAW and LABELS, or --pair RAW LABELS")
        if self.recipe is not None and self.recipe not in RECIPES:
            raise UnetcliError(f"--recipe {self.recipe}: expected {' or '.join(RECIPES)}")
        if self.select is not None and self.select not in MEASURES:
            raise UnetcliError(f"--select {self.select}: expected one of {', '.join(MEASURES)}")
        self._require_positive()
        super().__post_init__()

    def _require_positive(self) -> None:
        for name in ("steps", "patience", "validate_every", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UnetcliError(f"--{name.replace('_', '-')} {value}: expected at least 1")
        for name in ("minutes", "checkpoint_minutes"):
            if (value := getattr(self, name)) is not None and not 0 < value < 1e6:
                raise UnetcliError(f"--{name.replace('_', '-')} {value}: expected a number above 0")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Paths of images and labels of each annotated volume."""
        first = ((self.raw, self.labels),) if self.raw is not None and self.labels is not None else ()
        return (*first, *self.pair)

    @property
    def learning_rate(self) -> float | None:
        """Value of ``--lr``, under the name of its setting."""
        return self.lr


@dataclass(frozen=True, kw_only=True)
class WeightsRequest(TruthOptions):
    """Options of one call of ``weights``."""

    labels: str = field(kw_only=False, metadata=argument("Labels: Zarr, OME-Zarr or TIFF stack of integers.", "LABELS"))
    output: str | None = option(
        "OME-Zarr to write, with a .png next to it. Default: NAME.weights.zarr.", Heading.FILES, short="-o"
    )
    overwrite: bool = overwrite_option()
