"""Settings of a training: recipes, optimisation, augmentation, label rules and the frozen configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unetcli.core import label_values
from unetcli.core.arrays import PerChannel
from unetcli.core.errors import UnetcliError, listed
from unetcli.core.geometry import Architecture
from unetcli.core.label_values import LabelValues, option_text

SCHEDULES = ("constant", "cosine", "poly")
POLY_POWER = 0.9
"""Exponent of the polynomial schedule, the usual value for segmentation networks."""
RATES = {"sgd": 3e-4, "adam": 1e-3, "adamw": 1e-3}
"""Default learning rate of each optimizer if it is not the one of the recipe."""
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "optimizer": "sgd",
        "learning_rate": 3e-4,
        "momentum": 0.99,
        "schedule": "constant",
        "warm_up": 0,
        "weight_decay": 0.0,
        "clip": None,
        "ema": 0.0,
        "batch_size": 1,
        "batch_norm": False,
        "dropout": 0.5,
    },
    "fast": {
        "optimizer": "adamw",
        "learning_rate": 3e-3,
        "momentum": 0.9,
        "schedule": "cosine",
        "warm_up": 50,
        "weight_decay": 1e-4,
        "clip": None,
        "ema": 0.99,
        "batch_size": 4,
        "batch_norm": True,
        "dropout": 0.0,
    },
}
MAX_ROTATION = 180.0
MAX_DISPLACEMENT = 1 / 24
"""Largest standard deviation of the displacements, as a fraction of the tile's side."""
LIMITS = {
    "elastic": (100.0, "pixels"),
    "rotation": (MAX_ROTATION, "degrees in either direction"),
    "scale": (1.0, "a factor of up to 1 + scale"),
    "gamma": (4.0, "an exponent of up to 1 + gamma"),
    "contrast": (4.0, "a factor of up to 1 + contrast"),
    "brightness": (5.0, "standard deviations of the image"),
    "noise": (5.0, "standard deviations of the image"),
    "blur": (5.0, "pixels"),
}
"""Largest value of each augmentation setting, and what the value means."""
TRUTHS = ("binary", "instances", "classes")
IGNORED = label_values.IGNORED
"""Class of pixels without ground truth; their weight is 0. Classes are 0 (background) to 254."""
LINE_WIDTH = 1
"""Pixels that the dividing line takes from each of two touching objects."""
NEGLIGIBLE = 1e-6
"""The border weight is 0 where the exponential of eq. 2 is below this value."""
MAX_SIGMA = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimisation:
    """Optimiser, learning rate schedule and batch size.

    Raises
    ------
    UnetcliError
        A value is out of its range.
    """

    optimizer: str
    learning_rate: float
    momentum: float
    """Momentum of SGD; beta1 of Adam and AdamW."""
    weight_decay: float
    schedule: str
    warm_up: int
    """Steps over which the learning rate rises linearly."""
    clip: float | None
    """Largest norm of the gradient; None: no clipping."""
    ema: float
    """Decay per step of the moving average of the weights that is saved as the model; 0: no averaging."""
    batch_size: int
    """Tiles per step, summed over all processes."""
    steps: int | None
    """Length of a decaying schedule; None for a constant one, which has no end."""

    def __post_init__(self) -> None:
        require_one_of("optimizer", self.optimizer, tuple(RATES))
        require_one_of("schedule", self.schedule, SCHEDULES)
        _require("lr", self.learning_rate, 0 < self.learning_rate < math.inf, "a number above 0")
        _require("momentum", self.momentum, 0 <= self.momentum < 1, "0 <= momentum < 1")
        _require("weight-decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "a number of at least 0")
        _require("warm-up", self.warm_up, self.warm_up >= 0, "at least 0 steps")
        _require("ema", self.ema, 0 <= self.ema < 1, "0 <= ema < 1")
        _require("batch-size", self.batch_size, self.batch_size >= 1, "at least 1")
        if self.clip is not None:
            _require("clip", self.clip, 0 < self.clip < math.inf, "a number above 0")

    @property
    def decays(self) -> bool:
        """Whether the learning rate depends on the number of steps."""
        return self.schedule != "constant"

    def rate(self, step: int) -> float:
        """Learning rate of a step.

        Constant, cosine (Loshchilov and Hutter 2017, eq. 5, one period) or (1 - step / steps)^0.9; rising linearly
        over the first ``warm_up`` steps.

        Parameters
        ----------
        step : int
            Number of the step, counted from 0.

        Returns
        -------
        float
            At most ``learning_rate``; 0 from step ``steps`` on if the schedule decays.
        """
        warm_up_factor = min(1.0, (step + 1) / (self.warm_up + 1))
        if not self.decays or self.steps is None:
            return self.learning_rate * warm_up_factor
        left = max(0.0, 1 - step / self.steps)
        decay = left**POLY_POWER if self.schedule == "poly" else (1 - math.cos(math.pi * left)) / 2
        return self.learning_rate * warm_up_factor * decay


def require_one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise UnetcliError if an option's value is not one of the allowed words."""
    if value not in allowed:
        raise UnetcliError(f"--{option} {value}: expected {', '.join(allowed[:-1])} or {allowed[-1]}")


def _require(option: str, value: float, fits: bool, expected: str) -> None:
    if not fits:
        raise UnetcliError(f"--{option} {value}: expected {expected}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Ranges from which the augmentation of each sample is drawn; 0 (or False) switches one kind of change off.

    The paper (section 3.1) specifies the displacements: N(0, 10 px) on a 3 x 3 grid. It asks for invariance to
    rotation, shift and grey values without giving strengths; shifts come from the random centre of each sample.
    Grey values are in standard deviations of the normalised image.

    Raises
    ------
    UnetcliError
        A value is below 0 or above its limit.
    """

    elastic: float = 10.0
    """Standard deviation of the displacements, pixels; at most 1/24 of the tile's side (see ``displacement``)."""
    rotation: float = MAX_ROTATION
    """Largest angle, degrees; uniform in both directions."""
    flip: bool = True
    """Whether to mirror along y and along x, each in half of the samples."""
    scale: float = 0.1
    """Magnification, log-uniform from 1 / (1 + scale) to 1 + scale."""
    gamma: float = 0.3
    """Exponent of the tone curve, log-uniform from 1 / (1 + gamma) to 1 + gamma."""
    contrast: float = 0.25
    """Factor, log-uniform from 1 / (1 + contrast) to 1 + contrast."""
    brightness: float = 0.25
    """Offset, uniform from -brightness to brightness."""
    noise: float = 0.2
    """Largest standard deviation of Gaussian noise, uniform from 0; in one of four samples."""
    blur: float = 1.0
    """Largest standard deviation of a Gaussian blur, pixels, uniform from 0; in one of four samples."""

    def __post_init__(self) -> None:
        for name, (limit, meaning) in LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= limit:
                raise UnetcliError(f"{name} = {value!r}: expected 0 (off) <= {name} <= {limit:g} ({meaning})")
            object.__setattr__(self, name, float(value))
        if not isinstance(self.flip, bool):
            raise UnetcliError(f"flip = {self.flip!r}: expected true or false")

    @classmethod
    def none(cls) -> Augmentation:
        """Settings with every change off: samples are plain crops.

        >>> Augmentation.none().flip, Augmentation.none().elastic
        (False, 0.0)
        """
        return cls(flip=False, **dict.fromkeys(LIMITS, 0.0))

    def displacement(self, tile: int) -> float:
        """Standard deviation of the displacements for one tile size; the paper's 10 pixels for sides of at least 240.

        The grid spans the tile, so the same displacement deforms a smaller tile more. A deformation that folds over
        itself shows one place twice. Of all deformations 13 % fold at 1/10 of the side, 0.2 % at 1/16 and 2 in a
        million at 1/24, the limit used here.

        Parameters
        ----------
        tile : pixels
            Side of the tile.

        Returns
        -------
        float, pixels

        >>> [round(Augmentation().displacement(tile), 2) for tile in (572, 316, 188)]
        [10.0, 10.0, 7.83]
        """
        return min(self.elastic, tile * MAX_DISPLACEMENT)


def log_uniform(strength: float, uniform: float) -> float:
    """Map a number from -1..1 to a factor from 1 / (1 + strength) to 1 + strength, on a logarithmic scale.

    A uniformly distributed number gives a log-uniformly distributed factor.

    >>> [round(log_uniform(0.25, u), 3) for u in (-1, 0, 1)]
    [0.8, 1.0, 1.25]
    """
    return math.exp(uniform * math.log1p(strength))


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthRules:
    """How labels become classes and loss weights; set by the options of the same names.

    Raises
    ------
    UnetcliError
        A value is out of its range.
    """

    truth: str
    """``binary``: 0 is background, every other label is foreground. ``instances``: the same with one label per object;
    a line of background divides touching objects. ``classes``: labels are classes, 0 is background."""
    w0: float = 10.0
    """Height of the border weight between cells that nearly touch (U-Net 2015, eq. 2); 0 switches it off."""
    sigma: float = 5.0
    """Distance over which the border weight fades, pixels (eq. 2)."""
    everywhere: bool = False
    """Whether the border weight applies to all pixels, not only to background."""
    ignore: int | None = None
    """Label of pixels without ground truth."""
    partial: int | None = None
    """Distance, pixels: background farther than this from every annotated cell has no ground truth."""
    class_values: tuple[int, ...] | None = None
    """Label value of each class, background first; None: labels are the numbers of the classes."""
    background: int = 0
    """Label value of the background."""
    label_threshold: int | None = None
    """Label value that divides a mask; None: every value but that of background is foreground."""

    def __post_init__(self) -> None:
        require_one_of("truth", self.truth, TRUTHS)
        if self.label_threshold is not None and self.truth != "binary":
            raise UnetcliError(f"--label-threshold: not with --truth {self.truth}; expected --truth binary")
        if self.ignore == self.background != 0:
            raise UnetcliError(f"--ignore {option_text(self.ignore)}: also the --background; expected another value")
        if self.ignore is not None and self.ignore in (self.values.classes or ()):
            raise UnetcliError(f"--ignore {option_text(self.ignore)}: also one of --classes; expected another value")
        if not 0 <= self.w0 < math.inf:
            raise UnetcliError(f"--w0 {self.w0:g}: expected 0 (no extra weight) or more; the paper uses 10")
        if not 0 < self.sigma <= MAX_SIGMA:
            raise UnetcliError(f"--sigma {self.sigma:g}: expected 0 < sigma <= {MAX_SIGMA:g} pixels; the paper uses 5")
        if self.partial is not None and self.partial < 1:
            raise UnetcliError(f"--partial {self.partial}: expected at least 1 pixel")

    @property
    def values(self) -> LabelValues:
        """Meaning of the values of the labels."""
        return LabelValues(classes=self.class_values, background=self.background, threshold=self.label_threshold)

    @property
    def max_distance(self) -> float:
        """Largest d1 + d2 with a border weight above 0, in pixels: the exponential is ``NEGLIGIBLE`` there.

        >>> round(TruthRules(truth="binary").max_distance, 2)
        26.28
        """
        return self.sigma * math.sqrt(-2 * math.log(NEGLIGIBLE)) if self.w0 else 0.0

    @property
    def reach(self) -> int:
        """Margin around a window that its classes and border weights depend on, in pixels, for objects no larger.

        Larger objects need more: they matter as a whole, for which parts belong together and whether the dividing
        line would erase one.

        >>> TruthRules(truth="instances").reach, TruthRules(truth="instances", partial=40).reach
        (28, 41)
        """
        return max(math.ceil(self.max_distance), self.partial or 0) + LINE_WIDTH


Ranges = tuple[tuple[int, int], ...]
"""First and stop section of each pair, half-open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Frozen configuration of a training.

    The number of steps belongs to it only if the learning rate decays, as ``optimisation.steps``.
    """

    recipe: str
    architecture: Architecture
    tile: int
    rules: TruthRules
    keep_empty: bool
    """Whether sections without any label are used, as pure background."""
    balance: bool
    """Whether all classes have the same total weight (w_c); otherwise all pixels weigh the same."""
    calibrate: bool = True
    """Whether the saved model is calibrated."""
    sections: Ranges
    """Sections to train on, except those held out."""
    validation: Ranges
    """Sections held out; a range is empty if its pair has too few. With folds, they may lie amid ``sections``."""
    augmentation: Augmentation
    optimisation: Optimisation
    precision: str
    select: str
    """Measure that selects the model."""
    validate_every: int
    """Steps between validations."""
    seed: int
    channel: int | None
    device: str
    data: tuple[str, ...]
    """Fingerprints of images and labels of each pair."""
    init: str | None = None
    """Checksum of the weights of the model that the training starts from; None: random weights."""
    nonfinite: float | None = None
    """Value that replaces NaN and infinity in the images; None: such pixels have no weight."""
    intensity: tuple[PerChannel, PerChannel] | None = None
    """Mean and standard deviation of the grey values of that model; None: those of the training images."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __post_init__(self) -> None:
        require_one_of("recipe", self.recipe, tuple(RECIPES))
        for name in ("tile", "validate_every"):
            if (value := getattr(self, name)) < 1:
                raise UnetcliError(f"{name} is {value}; expected 1 or more")

    def differences(self, new: TrainingConfig) -> list[str]:
        """Describe each setting in which another configuration differs, one phrase per setting."""
        before, after = dict(_flat(self.to_dict())), dict(_flat(new.to_dict()))
        return [_difference(name, value, after[name]) for name, value in before.items() if value != after[name]]


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield names and values, with nested settings flattened."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name, value


MEANINGS = {"steps": ", the length of the learning rate's decay", "init": ", the checksum of the initial model"}
"""Meaning of settings whose names or values do not explain themselves."""


def _difference(name: str, before: Any, after: Any) -> str:
    if name == "data":
        return "images or labels have changed"
    if name == "intensity":
        return "intensity is normalised with other statistics (--normalise)"
    return f"{name} {_short(after)} (was {_short(before)}{MEANINGS.get(name, '')})"


def _short(value: Any) -> Any:
    """Format ranges as A:B; return other values unchanged.

    >>> _short(((0, 17),))
    '0:17'
    """
    if isinstance(value, tuple):
        return listed([f"{each[0]}:{each[1]}" if isinstance(each, tuple) else str(each) for each in value], "values")
    return value
