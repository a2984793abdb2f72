"""The network as numbers, without torch: its architecture, and the geometry found by walking its layers.

A valid convolution consumes voxels at the border and a pooling layer fixes a grid, so only some input sides are
valid, and a tile's result equals the whole volume's only where the tile starts on that grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from unetcli.core.errors import UnetcliError

Kind = Literal["conv", "pool", "up"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One step of the longest path through a network, per spatial axis.

    ``conv``: valid convolution of odd side ``size``, stride 1; ``pool`` and ``up``: by the factor ``size``, its stride.
    """

    kind: Kind
    size: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AxisFootprint:
    """Footprint along one axis: which input sides are valid, and what comes out.

    The default is an axis that the network does not see (z for a 2-D network): every side is valid, nothing is lost.
    """

    context: int = 0
    """Voxels consumed on each side."""
    alignment: int = 1
    """Tiles start on multiples of this, counted from the volume's origin."""
    smallest: int = 1
    """First valid input side; valid sides follow in steps of ``alignment``."""

    @classmethod
    def walk(cls, steps: Sequence[tuple[Kind, int]]) -> AxisFootprint:
        """The footprint of layers ``(kind, size)`` along one axis, in the order of the forward pass.

        >>> AxisFootprint.walk([("conv", 3), ("conv", 3), ("pool", 2), ("conv", 3), ("up", 2), ("conv", 3)])
        AxisFootprint(context=5, alignment=2, smallest=12)
        """
        context, stride, alignment = 0, 1, 1
        for kind, size in steps:
            if kind == "conv":
                context += size // 2 * stride
            else:
                stride = stride * size if kind == "pool" else stride // size
            alignment = max(alignment, stride)
        sides = range(1, 2 * (context + alignment) + 1)
        smallest = next(side for side in sides if _output_side(steps, side) is not None)
        return cls(context, alignment, smallest)

    def output(self, side: int) -> int:
        """Output side for an input side."""
        return side - 2 * self.context

    def is_valid(self, side: int) -> bool:
        """Whether every convolution fits and every pooling layer meets an even side."""
        return side >= self.smallest and (side - self.smallest) % self.alignment == 0

    def is_usable(self, side: int) -> bool:
        """Whether a tile of this side can move: valid, and its output covers at least one step."""
        return self.is_valid(side) and self.output(side) >= self.alignment

    def step(self, side: int) -> int:
        """Distance between tiles: the largest multiple of the alignment that the output covers.

        Not the output itself, as in the paper (388 for 572): max-pooling commutes with shifts by multiples of its
        stride only, so tiles at steps of 388 would pool on different grids and differ from the whole image.
        """
        return self.output(side) // self.alignment * self.alignment

    def side_for(self, output: int) -> int:
        """Smallest usable input side whose output is at least ``output``."""
        side = max(output + 2 * self.context, self.smallest)
        side += -(side - self.smallest) % self.alignment
        return side if self.is_usable(side) else side + self.alignment

    def nearest_usable(self, side: int) -> list[int]:
        """Usable sides next to ``side``: the one below, where there is one, and the one above."""
        above = self.side_for(side - 2 * self.context)
        below = above - self.alignment
        return [below, above] if self.is_usable(below) else [above]


def _output_side(steps: Sequence[tuple[Kind, int]], side: int) -> int | None:
    """Side after all layers, or None where a layer does not fit."""
    for kind, size in steps:
        if kind == "conv":
            side -= size - 1
        elif kind == "up":
            side *= size
        elif side % size:
            return None
        else:
            side //= size
        if side < 1:
            return None
    return side


@dataclass(frozen=True, slots=True)
class Footprint:
    """One :class:`AxisFootprint` per axis, in array order."""

    axes: tuple[AxisFootprint, ...]

    @classmethod
    def walk(cls, layers: Iterable[Layer]) -> Footprint:
        """The footprint of a network from its layers, in the order of the forward pass."""
        listed = list(layers)
        dimensions = len(listed[0].size)
        return cls(tuple(AxisFootprint.walk([(x.kind, x.size[axis]) for x in listed]) for axis in range(dimensions)))

    @property
    def context(self) -> tuple[int, ...]:
        return tuple(axis.context for axis in self.axes)

    @property
    def alignment(self) -> tuple[int, ...]:
        return tuple(axis.alignment for axis in self.axes)

    def lifted(self, dimensions: int) -> Footprint:
        """The same network on a volume of more axes; it does not see the leading ones."""
        return Footprint((AxisFootprint(),) * (dimensions - len(self.axes)) + self.axes)

    def output(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Output shape for an input shape."""
        return tuple(axis.output(side) for axis, side in zip(self.axes, shape, strict=True))

    def step(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Distance between tiles of that input shape, per axis."""
        return tuple(axis.step(side) for axis, side in zip(self.axes, shape, strict=True))

    def require_usable(self, shape: Sequence[int], *, name: str = "--tile") -> None:
        """Raise :class:`UnetcliError` naming the nearest usable sides where ``shape`` cannot be a tile."""
        for axis, side in zip(self.axes, shape, strict=True):
            if not axis.is_usable(side):
                near = " and ".join(str(n) for n in axis.nearest_usable(side))
                raise UnetcliError(
                    f"{name} {side}: no usable tile for this network "
                    f"(context {axis.context}, alignment {axis.alignment}); nearest that would work: {near}"
                )


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
