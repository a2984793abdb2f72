"""Two recipes: what the paper states, and what reaches a good result soonest; and what both leave open.

The paper's recipe, and our choice where it is silent:

======================  ===========================  =========================================================
what                    the paper                    our choice, and why
======================  ===========================  =========================================================
batch                   one large tile               572 on a GPU; 316 on a CPU, for the small network
momentum                0.99                         -
learning rate           not stated                   3e-4, constant: the largest of 1e-4, 3e-4, 1e-3 and 3e-3
                                                     that fell steadily (ISBI, small network, 1200 steps)
loss                    sum over pixels              weighted mean: the rate does not depend on the tile
w_c                     "balance the frequency"      n / (K n_k): every class weighs the same in all
w0, sigma               10, about 5 px               -
separation border       "morphological operations"   two pixels wide where objects touch, less on tiny ones
elastic deformation     3x3 grid, N(0, 10 px)        at most a 24th of the tile, so that nothing folds over
shift, rotation         "invariance"                 any place, any angle, flips, 10 % of scale
grey values             "variations"                 gamma, contrast, brightness, noise and blur, all slight
dropout                 "end of the contracting      probability 0.5, whole feature channels
                        path"
steps                   10 h on a GPU of 2015        20,000 on a GPU; about 20 minutes on a CPU
======================  ===========================  =========================================================

``fast`` was found on ISBI sections 0-16, judged on 17-19 (depth 3, 16 channels, bfloat16, seed 0). Pixel disagreement
there after 200, 400 and 800 steps, by `unetcli train --steps 800 --validate-every 100`, which the schedule is part of:

=============================================================  ======  ======  ======
what                                                              200     400     800
=============================================================  ======  ======  ======
paper: SGD, dropout 0.5, one tile of 316                        0.162   0.163   0.139
AdamW, 1e-3, cosine, average of the weights                     0.159   0.117   0.107
.. with batch normalisation                                     0.105   0.104   0.104
.. and without dropout, 3e-3                                    0.094   0.094   0.102
.. and running statistics from 40 % of the steps on             0.094   0.101   0.088
.. instead three tiles of 220                                   0.094   0.088   0.085
.. instead four tiles of 204: `fast`                            0.092   0.087   0.084
=============================================================  ======  ======  ======

A single tile's own statistics are not those of the next image: the loss on held-out sections rises again. Several
smaller tiles a step mend that, at 1.6 times the work of a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unetcli.core.errors import UnetcliError

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "poly")
POLY_POWER = 0.9
"""Of the polynomial decay, as in most networks trained with it."""

RATES = {"sgd": 3e-4, "adam": 1e-3, "adamw": 1e-3}
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
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("schedule", self.schedule, SCHEDULES)
        _within("lr", self.learning_rate, 0 < self.learning_rate < math.inf, "a number above 0")
        _within("momentum", self.momentum, 0 <= self.momentum < 1, "0 up to, not with, 1")
        _within("weight-decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more")
        _within("warm-up", self.warm_up, self.warm_up >= 0, "0 or more steps")
        _within("ema", self.ema, 0 <= self.ema < 1, "0 up to, not with, 1")
        _within("batch-size", self.batch_size, self.batch_size >= 1, "at least 1")
        if self.clip is not None:
            _within("clip", self.clip, 0 < self.clip < math.inf, "a number above 0")

    @property
    def decays(self) -> bool:
        """Whether the course depends on how many steps it is to have."""
        return self.schedule != "constant"

    def rate(self, step: int) -> float:
        """Learning rate of step ``step``, counted from 0."""
        warmth = min(1.0, (step + 1) / (self.warm_up + 1))
        if not self.decays or self.steps is None:
            return self.learning_rate * warmth
        left = max(0.0, 1 - step / self.steps)
        decay = left**POLY_POWER if self.schedule == "poly" else (1 - math.cos(math.pi * left)) / 2
        return self.learning_rate * warmth * decay

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UnetcliError(f"--{option} {value}: expected {', '.join(allowed[:-1])} or {allowed[-1]}")


def _within(option: str, value: float, fits: bool, expected: str) -> None:
    if not fits:
        raise UnetcliError(f"--{option} {value}: {expected} is needed")
