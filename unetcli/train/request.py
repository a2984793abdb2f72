"""What a user asks of train, before anything is resolved; ``None`` stands for "choose"."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unetcli.config import Sections
from unetcli.core.errors import UnetcliError
from unetcli.core.files import plain

RECIPES = ("fast", "paper")
MEASURES = ("pixel_disagreement", "pixel_error", "rand_error", "iou", "seg")
"""What the model to keep can be chosen by, on the held-out sections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """One call of train. Fields named as in the settings that they become are taken over by name."""

    pairs: tuple[tuple[str, str], ...]
    """Images and labels, one pair for each annotated volume."""
    output: Path = Path("model")
    recipe: str | None = None
    steps: int | None = None
    minutes: float | None = None
    """How long to train where no number of steps is given."""
    # the network
    depth: int | None = None
    base_channels: int | None = None
    dropout: float | None = None
    batch_norm: bool | None = None
    tile: int | None = None
    # the truth
    truth: str = "auto"
    ignore: int | None = None
    partial: int | None = None
    keep_empty: bool | None = None
    w0: float | None = None
    sigma: float | None = None
    everywhere: bool | None = None
    balance: bool | None = None
    # the split
    sections: Sections = (None, None)
    validation: Sections | None = None
    validation_fraction: float | None = None
    # augmentation
    augment: bool = True
    elastic: float | None = None
    rotation: float | None = None
    flip: bool | None = None
    scale: float | None = None
    gamma: float | None = None
    contrast: float | None = None
    brightness: float | None = None
    noise: float | None = None
    blur: float | None = None
    # optimisation
    batch_size: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    schedule: str | None = None
    warm_up: int | None = None
    clip: float | None = None
    ema: float | None = None
    precision: str | None = None
    # the course
    seed: int = 0
    select: str | None = None
    patience: int | None = None
    validate_every: int | None = None
    checkpoint_minutes: float = 10.0
    compile: bool = False
    tensorboard: bool = False
    device: str | None = None
    channel: int | None = None
    overwrite: bool = False
    take_over: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", tuple((plain(raw), plain(labels)) for raw, labels in self.pairs))
        if not self.pairs:
            raise UnetcliError("no images: give RAW and LABELS, or --pair RAW LABELS")
        if self.recipe is not None and self.recipe not in RECIPES:
            raise UnetcliError(f"--recipe {self.recipe}: expected {' or '.join(RECIPES)}")
        if self.select is not None and self.select not in MEASURES:
            raise UnetcliError(f"--select {self.select}: expected one of {', '.join(MEASURES)}")
        for name in ("steps", "patience", "validate_every", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UnetcliError(f"--{name.replace('_', '-')} {value}: at least 1")
        for name in ("minutes", "checkpoint_minutes"):
            if (value := getattr(self, name)) is not None and not 0 < value < 1e6:
                raise UnetcliError(f"--{name.replace('_', '-')} {value}: a number above 0 is needed")
