"""The network as numbers: enough to plan and to describe a model without importing torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from unetcli.core.errors import UnetcliError
from unetcli.core.footprint import Footprint, Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A U-Net: levels, width, and what goes in and out. The defaults are the paper's (31,030,658 parameters)."""

    depth: int = 4
    """Number of pooling layers."""
    base_channels: int = 64
    """Channels at the first level; doubled at each level."""
    in_channels: int = 1
    classes: int = 2
    dropout: float = 0.5
    """Probability at the end of the contracting path; the paper states the place, not the number."""
    batch_norm: bool = False
    """Whether the network trains with batch normalisation; a saved model has it folded into its convolutions."""

    def __post_init__(self) -> None:
        for name, low in (("depth", 0), ("base_channels", 1), ("in_channels", 1), ("classes", 2)):
            if (value := getattr(self, name)) < low:
                raise UnetcliError(f"{name} = {value}: at least {low} is needed")
        if not 0 <= self.dropout < 1:
            raise UnetcliError(f"dropout = {self.dropout}: 0 <= dropout < 1 is needed")

    def channels(self, level: int) -> int:
        """Feature channels at a level; level 0 is the image's resolution."""
        return int(self.base_channels * 2**level)

    def layers(self) -> Iterator[Layer]:
        """The longest path through the network, in the order of the forward pass (2-D: y, x)."""
        for _ in range(self.depth):
            yield from (Layer("conv", (3, 3)), Layer("conv", (3, 3)), Layer("pool", (2, 2)))
        yield from (Layer("conv", (3, 3)), Layer("conv", (3, 3)))
        for _ in range(self.depth):
            yield from (Layer("up", (2, 2)), Layer("conv", (3, 3)), Layer("conv", (3, 3)))
        yield Layer("conv", (1, 1))

    def footprint(self) -> Footprint:
        """Context, alignment and valid sides, y and x."""
        return Footprint.walk(self.layers())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        return cls(**values)
