"""What a user asks of train and of weights, before anything is resolved; ``None`` stands for "choose"."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import strip_scheme
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
"""What the model to keep can be chosen by, on the held-out sections."""

_truth = partial(option, heading=Heading.TRUTH)
_augmentation = partial(option, heading=Heading.AUGMENTATION)
_optimisation = partial(option, heading=Heading.OPTIMISATION)


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class TruthOptions(Options):
    """How annotation becomes classes and loss weights."""

    truth: str = _truth(
        "What labels mean: binary, instances or classes; auto takes two values as binary.", default="auto"
    )
    ignore: int | None = _truth("Label value without meaning: its weight is 0.", metavar="VALUE")
    partial: int | None = _truth("Not all is annotated: background counts within M px of what is drawn.", metavar="M")
    keep_empty: bool | None = _truth("Sections with nothing drawn count as background.", negative="--leave-empty")
    w0: float | None = _truth("Extra weight between close objects: 10; 0 is off.")
    sigma: float | None = _truth("Reach of the extra weight in pixels: 5.")
    weights_everywhere: bool | None = _truth(
        "Extra weight on objects too, not only around.", negative="--weights-background"
    )
    balance: bool | None = _truth("All classes weigh the same in total; else all pixels do.", negative="--no-balance")
    sections: Sections = sections_option()

    @property
    def everywhere(self) -> bool | None:
        """``--weights-everywhere``, by the name of the setting it becomes."""
        return self.weights_everywhere


@dataclass(frozen=True, kw_only=True)
class TrainRequest(TruthOptions, SlurmOptions):
    """One call of train. Fields named as the settings that they become are taken over by name."""

    raw: str | None = field(
        default=None, kw_only=False, metadata=argument("Images: Zarr, OME-Zarr or TIFF stack.", "RAW")
    )
    labels: str | None = field(
        default=None, kw_only=False, metadata=argument("Annotation of the same voxels.", "LABELS")
    )
    pair: tuple[tuple[str, str], ...] = option(
        "One more pair of both. Repeatable.", Heading.FILES, default=(), metavar="RAW LABELS"
    )
    output: Path = option(
        "Folder of model, checkpoint, log and pictures.", Heading.FILES, default=Path("model"), short="-o"
    )
    validation: Sections | None = option(
        "Sections held out for validation, outside --sections.",
        Heading.REGION,
        metavar="A:B",
        parse=lambda text: parse_sections(text) if text else None,
    )
    validation_fraction: float | None = option(
        "Instead: fraction of the sections, the last ones of each pair: 0.1.", Heading.REGION
    )
    channel: int | None = channel_option()
    depth: int | None = option("Pooling layers: 4 (the paper) on a GPU, 3 on a CPU.", Heading.NETWORK)
    base_channels: int | None = option(
        "Channels at full resolution: 64 (the paper) on a GPU, 16 on a CPU.", Heading.NETWORK
    )
    dropout: float | None = option("Probability at the end of the contracting path: 0.5 (paper) or 0.", Heading.NETWORK)
    batch_norm: bool | None = option(
        "Normalise within the batch (fast); folded into the model.", Heading.NETWORK, negative="--no-batch-norm"
    )
    tile: int | None = option(
        "Input side of a training tile: 572 or, fast, 380 on a GPU; 316 or 204 on a CPU.", Heading.NETWORK
    )
    device: str | None = device_option()
    precision: str | None = option("float32 or bfloat16. Default: bfloat16 where the device has it.", Heading.NETWORK)
    compile: bool = option(
        "Compile the network first: takes a minute and a C++ compiler.", Heading.NETWORK, default=False
    )
    augment: bool = _augmentation(
        "Deform, turn and change tiles; the options below say how much.", default=True, negative="--no-augment"
    )
    elastic: float | None = _augmentation("Displacements on a 3 x 3 grid, in px: 10.")
    rotation: float | None = _augmentation("Largest angle either way, in degrees: 180.")
    flip: bool | None = _augmentation("Mirror half of the tiles.", negative="--no-flip")
    scale: float | None = _augmentation("Largest change of size: 0.1 is up to 10 % either way.")
    gamma: float | None = _augmentation("Spread of the grey values' exponent: 0.3.")
    contrast: float | None = _augmentation("Spread of the contrast: 0.25.")
    brightness: float | None = _augmentation("Spread of the brightness, in standard deviations: 0.25.")
    noise: float | None = _augmentation("Most noise added, in standard deviations: 0.2.")
    blur: float | None = _augmentation("Most blur added, in px: 1.")
    recipe: str | None = _optimisation("paper: SGD with momentum 0.99, as published; fast: sooner at a good result.")
    steps: int | None = _optimisation("Training steps. Default: as many as 20 minutes allow on a CPU, 20000 on a GPU.")
    minutes: float | None = _optimisation("As many steps as a probe expects to take so long.")
    batch_size: int | None = _optimisation("Tiles a step, over all processes together: 1 (paper) or 4 for each.")
    optimizer: str | None = _optimisation("sgd, adam or adamw.")
    lr: float | None = _optimisation("Learning rate: 3e-4 (paper) or 3e-3.")
    momentum: float | None = _optimisation("0.99 for sgd, else 0.9.")
    weight_decay: float | None = _optimisation("Pull of the weights towards 0: 0 (paper) or 1e-4.")
    schedule: str | None = _optimisation("Course of the learning rate: constant (paper), cosine or poly.")
    warm_up: int | None = _optimisation("Steps over which the learning rate rises: 0 (paper) or 50.", metavar="STEPS")
    clip: float | None = _optimisation("Largest norm of the gradient. Default: no limit.")
    ema: float | None = _optimisation("Decay of the average of the weights that is kept: 0, none (paper), or 0.99.")
    select: str | None = _optimisation(
        "Keep the model best by pixel_disagreement, pixel_error, rand_error, iou or seg."
    )
    patience: int | None = _optimisation("End after so many validations without a better model.", metavar="LOOKS")
    validate_every: int | None = _optimisation("Steps between two validations: 200.", metavar="STEPS")
    seed: int = _optimisation("Seed of everything random.", default=0, min=0, max=2**32 - 1)
    checkpoint_minutes: float = option(
        "Time between checkpoints, at most.", Heading.RUN, default=10.0, metavar="MINUTES"
    )
    tensorboard: bool = option("Also log for TensorBoard, in OUTPUT/tensorboard.", Heading.RUN, default=False)
    overwrite: bool = overwrite_option()
    take_over: bool = take_over_option()
    cluster: str = option("local, or slurm: one job of all processes.", Heading.CLUSTER, default="local", env=True)
    nodes: int = option("With slurm: nodes that train together.", Heading.CLUSTER, default=1)
    gpus_per_node: int = option("With slurm: GPUs of each node, a process for each GPU.", Heading.CLUSTER, default=0)
    tasks_per_node: int | None = option("With slurm, without GPUs: processes on each node, 1.", Heading.CLUSTER)
    detach: bool = option("With slurm: submit, print the job's id and return.", Heading.CLUSTER, default=False)

    def __post_init__(self) -> None:
        for name in ("raw", "labels"):
            if (place := getattr(self, name)) is not None:
                object.__setattr__(self, name, strip_scheme(place))
        object.__setattr__(self, "pair", tuple((strip_scheme(raw), strip_scheme(labels)) for raw, labels in self.pair))
        if self.raw is not None and self.labels is None:
            raise UnetcliError(f"{self.raw}: LABELS are missing; unetcli train RAW LABELS")
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
                raise UnetcliError(f"--{name.replace('_', '-')} {value}: at least 1")
        for name in ("minutes", "checkpoint_minutes"):
            if (value := getattr(self, name)) is not None and not 0 < value < 1e6:
                raise UnetcliError(f"--{name.replace('_', '-')} {value}: a number above 0 is needed")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Images and labels of each annotated volume."""
        first = ((self.raw, self.labels),) if self.raw is not None and self.labels is not None else ()
        return (*first, *self.pair)

    @property
    def learning_rate(self) -> float | None:
        """``--lr``, by the name of the setting it becomes."""
        return self.lr


@dataclass(frozen=True, kw_only=True)
class WeightsRequest(TruthOptions):
    """One call of weights."""

    labels: str = field(
        kw_only=False, metadata=argument("Annotation: Zarr, OME-Zarr or TIFF stack of integers.", "LABELS")
    )
    output: str | None = option(
        "OME-Zarr to write. Default: NAME.weights.zarr here; a .png beside it.", Heading.FILES, short="-o"
    )
    overwrite: bool = overwrite_option()
