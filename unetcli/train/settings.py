"""The settings of a training: recipes, and what follows from a request."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Architecture

SCHEDULES = ("constant", "cosine", "poly")
POLY_POWER = 0.9
"""Of the polynomial decay, as in most networks trained with it."""
RATES = {"sgd": 3e-4, "adam": 1e-3, "adamw": 1e-3}
"""Learning rate of each optimizer where it is not the recipe's own."""
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
FULL_TURN = 180.0
LARGEST_PART = 1 / 24
"""Standard deviation of the displacements as part of the tile's side, at most."""
HIGHEST = {
    "elastic": (100.0, "pixels"),
    "rotation": (FULL_TURN, "degrees to either side"),
    "scale": (1.0, "a factor of up to 1 + scale"),
    "gamma": (4.0, "an exponent of up to 1 + gamma"),
    "contrast": (4.0, "a factor of up to 1 + contrast"),
    "brightness": (5.0, "standard deviations of the image"),
    "noise": (5.0, "standard deviations of the image"),
    "blur": (5.0, "pixels"),
}
TRUTHS = ("binary", "instances", "classes")
IGNORED = 255
"""Class of pixels without truth: they weigh nothing. Classes are 0 (background) to 254."""
LINE = 1
"""Pixels of an object that the line takes where it touches another."""
FAINTEST = 1e-6
"""Where the exponential of eq. 2 falls below this, the border weight is 0."""
WIDEST_SIGMA = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimisation:
    """How weights change from step to step."""

    optimizer: str
    learning_rate: float
    momentum: float
    """Of SGD; the first moment's decay in Adam."""
    weight_decay: float
    schedule: str
    warm_up: int
    """Steps over which the rate rises linearly."""
    clip: float | None
    """Largest norm of the gradient; None: whatever it is."""
    ema: float
    """Decay per step of the moving average of the weights that is kept as the model; 0: the weights themselves."""
    batch_size: int
    """Tiles a step, over all processes together."""
    steps: int | None
    """Length of a decaying schedule; None for a constant one, which has no end."""

    def __post_init__(self) -> None:
        require_one_of("optimizer", self.optimizer, tuple(RATES))
        require_one_of("schedule", self.schedule, SCHEDULES)
        _within("lr", self.learning_rate, 0 < self.learning_rate < math.inf, "a number above 0")
        _within("momentum", self.momentum, 0 <= self.momentum < 1, "0 <= momentum < 1")
        _within("weight-decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more")
        _within("warm-up", self.warm_up, self.warm_up >= 0, "0 or more steps")
        _within("ema", self.ema, 0 <= self.ema < 1, "0 <= ema < 1")
        _within("batch-size", self.batch_size, self.batch_size >= 1, "at least 1")
        if self.clip is not None:
            _within("clip", self.clip, 0 < self.clip < math.inf, "a number above 0")

    @property
    def decays(self) -> bool:
        """Whether the learning rate depends on the number of steps."""
        return self.schedule != "constant"

    def rate(self, step: int) -> float:
        """Learning rate of step ``step``, counted from 0."""
        warmth = min(1.0, (step + 1) / (self.warm_up + 1))
        if not self.decays or self.steps is None:
            return self.learning_rate * warmth
        left = max(0.0, 1 - step / self.steps)
        decay = left**POLY_POWER if self.schedule == "poly" else (1 - math.cos(math.pi * left)) / 2
        return self.learning_rate * warmth * decay


def require_one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a word that an option does not know."""
    if value not in allowed:
        raise UnetcliError(f"--{option} {value}: expected {', '.join(allowed[:-1])} or {allowed[-1]}")


def _within(option: str, value: float, fits: bool, expected: str) -> None:
    if not fits:
        raise UnetcliError(f"--{option} {value}: {expected} is needed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Ranges that each sample draws its changes from; 0 (or False) switches a change off.

    The paper (section 3.1) states the displacements: N(0, 10 px) on a 3 x 3 grid. Of rotations, shifts and grey values
    it says that they are needed, not how strong; shifts come from the random centre of each sample. Grey values are in
    standard deviations of the normalised image.
    """

    elastic: float = 10.0
    """Standard deviation of the displacements, pixels; held to a 24th of the tile (see ``displacement``)."""
    rotation: float = FULL_TURN
    """Degrees; uniform to either side."""
    flip: bool = True
    """Mirrored along y and along x, each in half of the samples."""
    scale: float = 0.1
    """Magnification, log-uniform from 1 / (1 + scale) to 1 + scale."""
    gamma: float = 0.3
    """Exponent of the tone curve, log-uniform from 1 / (1 + gamma) to 1 + gamma."""
    contrast: float = 0.25
    """Factor, log-uniform from 1 / (1 + contrast) to 1 + contrast."""
    brightness: float = 0.25
    """Added value, uniform to either side."""
    noise: float = 0.2
    """Standard deviation of Gaussian noise, uniform from 0; in one sample of four."""
    blur: float = 1.0
    """Standard deviation of a Gaussian blur, pixels, uniform from 0; in one sample of four."""

    def __post_init__(self) -> None:
        for name, (highest, meaning) in HIGHEST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= highest:
                raise UnetcliError(
                    f"{name} = {value!r}: expected a number from 0 (off) to {highest:g}; it means {meaning}"
                )
            object.__setattr__(self, name, float(value))
        if not isinstance(self.flip, bool):
            raise UnetcliError(f"flip = {self.flip!r}: expected true or false")

    @classmethod
    def none(cls) -> Augmentation:
        """Everything off: samples are plain crops.

        >>> Augmentation.none().flip, Augmentation.none().elastic
        (False, 0.0)
        """
        return cls(flip=False, **dict.fromkeys(HIGHEST, 0.0))

    def displacement(self, tile: int) -> float:
        """Standard deviation of the displacements for a tile, pixels: the paper's 10 from a side of 240 on.

        The grid spans the tile, so the same pixels deform a smaller tile more. At a 10th of its side 13 % of all maps
        fold over themselves, at a 16th 0.2 %: one place is seen twice. At a 24th it is 2 in a million, the limit here.

        >>> [round(Augmentation().displacement(tile), 2) for tile in (572, 316, 188)]
        [10.0, 10.0, 7.83]
        """
        return min(self.elastic, tile * LARGEST_PART)


def log_uniform(strength: float, uniform: float) -> float:
    """A factor from 1 / (1 + strength) to 1 + strength, log-uniform for ``uniform`` in -1..1.

    >>> [round(log_uniform(0.25, u), 3) for u in (-1, 0, 1)]
    [0.8, 1.0, 1.25]
    """
    return math.exp(uniform * math.log1p(strength))


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthRules:
    """How labels become classes and loss weights; the options of the same names set it."""

    truth: str
    """``binary``: 0 is background, all else foreground. ``instances``: likewise, one number per object, and where two
    touch, a line of background between them. ``classes``: labels are classes, 0 is background."""
    w0: float = 10.0
    """Height of the border weight between cells that nearly touch (eq. 2); 0 switches it off."""
    sigma: float = 5.0
    """Pixels over which the border weight fades."""
    everywhere: bool = False
    """Raise the weight of all pixels, not of the background alone."""
    ignore: int | None = None
    """Label of pixels without truth."""
    partial: int | None = None
    """Background farther than this many pixels from every drawn cell has no truth."""

    def __post_init__(self) -> None:
        require_one_of("truth", self.truth, TRUTHS)
        if not 0 <= self.w0 < math.inf:
            raise UnetcliError(f"--w0 {self.w0:g}: expected 0 (no raise) or more; the paper has 10")
        if not 0 < self.sigma <= WIDEST_SIGMA:
            raise UnetcliError(
                f"--sigma {self.sigma:g}: expected pixels above 0, at most {WIDEST_SIGMA:g}; the paper has 5"
            )
        if self.partial is not None and self.partial < 1:
            raise UnetcliError(f"--partial {self.partial}: expected at least 1 pixel")

    @property
    def fade(self) -> float:
        """The largest d1 + d2, in pixels, that raises the weight: there the exponential is ``FAINTEST``.

        >>> round(TruthRules(truth="binary").fade, 2)
        26.28
        """
        return self.sigma * math.sqrt(-2 * math.log(FAINTEST)) if self.w0 else 0.0

    @property
    def reach(self) -> int:
        """Pixels around a window that its classes and border weights depend on, where objects are no larger.

        Objects matter as a whole: whether two parts are one, and whether the line would make one vanish.

        >>> TruthRules(truth="instances").reach, TruthRules(truth="instances", partial=40).reach
        (28, 41)
        """
        return max(math.ceil(self.fade), self.partial or 0) + LINE


Ranges = tuple[tuple[int, int], ...]
"""First and stop section of each pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """The frozen choices of a training. How long it goes on is not part of it, unless the learning rate decays."""

    recipe: str
    architecture: Architecture
    tile: int
    rules: TruthRules
    keep_empty: bool
    """Whether sections without anything drawn in them are trained on, as pure background."""
    balance: bool
    """Whether classes weigh the same in all (w_c); else pixels do."""
    sections: Ranges
    """Sections to train on."""
    validation: Ranges
    """Sections held out; empty ranges where there are too few."""
    augmentation: Augmentation
    optimisation: Optimisation
    precision: str
    select: str
    """The measure that the kept model is the best by."""
    validate_every: int
    """Steps between looks at the held-out sections."""
    seed: int
    channel: int | None
    device: str
    data: tuple[str, ...]
    """Fingerprint of images and labels of each pair."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        parts = {
            "architecture": Architecture.from_dict(values["architecture"]),
            "rules": TruthRules(**values["rules"]),
            "augmentation": Augmentation(**values["augmentation"]),
            "optimisation": Optimisation(**values["optimisation"]),
            "sections": tuple(map(tuple, values["sections"])),
            "validation": tuple(map(tuple, values["validation"])),
            "data": tuple(values["data"]),
        }
        return cls(**{**values, **parts})

    def differences(self, new: TrainingConfig) -> list[str]:
        """What another configuration does differently, one phrase each."""
        before, after = dict(_flat(self.to_dict())), dict(_flat(new.to_dict()))
        return [_difference(name, value, after[name]) for name, value in before.items() if value != after[name]]


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values, those of nested settings in line with the others."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name, value


def _difference(name: str, before: Any, after: Any) -> str:
    if name == "data":
        return "images or labels are others"
    why = ", over which the learning rate falls" if name == "steps" else ""
    return f"{name} {_short(after)} (was {_short(before)}{why})"


def _short(value: Any) -> Any:
    """The ranges of a single pair, as people write them.

    >>> _short(((0, 17),))
    '0:17'
    """
    if isinstance(value, tuple):
        return ", ".join(f"{a}:{b}" for a, b in value)
    return value
