"""Everything that the course of a training depends on, resolved and frozen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unetcli.core.footprint import Architecture
from unetcli.train.recipes import Augmentation, Optimisation, TruthRules

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
