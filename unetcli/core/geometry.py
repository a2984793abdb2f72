"""Boxes, mirrored indices, and the footprint of a network: context, alignment and valid sides per axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Last names of the values that batch normalisation counts, and training does not fit."""


@dataclass(frozen=True, slots=True)
class Box:
    """Half-open region ``start..stop`` of a volume, in voxels, axes in array order.

    A box may extend beyond its volume; voxels there are mirrored when they are read.

    >>> Box((0, 4), (2, 10)).shape
    (2, 6)
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.start) != len(self.stop) or any(a > b for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"expected start <= stop on every axis, got start {self.start}, stop {self.stop}")

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> Box:
        """Box that covers an array of the given shape."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def shifted(self, offset: Sequence[int]) -> Box:
        """Return the box moved by ``offset``."""
        moved = [tuple(v + d for v, d in zip(side, offset, strict=True)) for side in (self.start, self.stop)]
        return Box(moved[0], moved[1])

    def relative_to(self, other: Box) -> Box:
        """Return the box in coordinates relative to the start of ``other``."""
        return self.shifted(tuple(-v for v in other.start))

    def grown(self, margin: Sequence[int]) -> Box:
        """Return the box enlarged by ``margin`` voxels on both sides of every axis."""
        return Box(
            tuple(v - m for v, m in zip(self.start, margin, strict=True)),
            tuple(v + m for v, m in zip(self.stop, margin, strict=True)),
        )

    def clipped(self, other: Box) -> Box:
        """Intersection with another box; empty if they do not overlap.

        >>> Box((-3,), (5,)).clipped(Box((0,), (4,)))
        Box(start=(0,), stop=(4,))
        """
        start = tuple(min(max(a, low), high) for a, low, high in zip(self.start, other.start, other.stop, strict=True))
        stop = tuple(max(min(b, high), a) for b, high, a in zip(self.stop, other.stop, start, strict=True))
        return Box(start, stop)

    def planes(self) -> Iterator[Box]:
        """Split the box into planes of its last two axes, in C order.

        >>> [plane.start for plane in Box((3, 0, 0), (5, 8, 8)).planes()]
        [(3, 0, 0), (4, 0, 0)]
        """
        for lead in np.ndindex(self.shape[:-2]):
            first = tuple(a + i for a, i in zip(self.start, lead, strict=False))
            yield Box(first + self.start[-2:], tuple(a + 1 for a in first) + self.stop[-2:])


def hull(boxes: Sequence[Box]) -> Box:
    """Smallest box that contains all given boxes, of which there is at least one.

    >>> hull([Box((0, 4), (2, 6)), Box((1, 1), (3, 2))])
    Box(start=(0, 1), stop=(3, 6))
    """
    start = tuple(map(min, zip(*(box.start for box in boxes), strict=True)))
    return Box(start, tuple(map(max, zip(*(box.stop for box in boxes), strict=True))))


def mirror_indices(start: int, stop: int, extent: int) -> NDArray[np.intp]:
    """Indices into ``range(extent)`` for ``start..stop``, mirrored at both edges as often as needed.

    The edge voxel is not repeated, as in ``numpy.pad(mode="reflect")`` and in the tiling code released with the paper.

    Parameters
    ----------
    start, stop : voxels
        Half-open range, which may extend beyond the axis on either side.
    extent : voxels
        Length of the axis, at least 1.

    Returns
    -------
    (stop - start,), intp
        Index of the voxel to read for each position.

    >>> mirror_indices(-2, 6, extent=4).tolist()
    [2, 1, 0, 1, 2, 3, 2, 1]
    >>> mirror_indices(-2, 2, extent=1).tolist()
    [0, 0, 0, 0]
    """
    period = max(2 * (extent - 1), 1)
    folded = np.arange(start, stop) % period
    return np.minimum(folded, period - folded) if extent > 1 else np.zeros(stop - start, np.intp)


def ceil_to(value: int, multiple: int) -> int:
    """Smallest multiple of ``multiple`` that is at least ``value``.

    >>> ceil_to(513, 512)
    1024
    """
    return -(-value // multiple) * multiple


Kind = Literal["conv", "pool", "up"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the longest path through a network, with its size per spatial axis.

    ``conv`` is a valid convolution with odd kernel side ``size`` and stride 1. ``pool`` and ``up`` change the
    resolution by the factor ``size``, which is also their stride.
    """

    kind: Kind
    size: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AxisFootprint:
    """Footprint along one axis: valid input sides and the resulting output side.

    The defaults describe an axis that the network does not use (z for a 2-D network): every side is valid and no
    context is consumed.
    """

    context: int = 0
    """Voxels that the convolutions consume on each side."""
    alignment: int = 1
    """Tiles start on multiples of this number of voxels, counted from the volume's origin."""
    smallest: int = 1
    """Smallest valid input side, in voxels; further valid sides follow in steps of ``alignment``."""

    def __post_init__(self) -> None:
        if self.context < 0 or self.alignment < 1 or self.smallest < 1:
            raise ValueError(f"expected context >= 0, alignment and smallest >= 1, got {self}")

    @classmethod
    def from_layers(cls, steps: Sequence[tuple[Kind, int]]) -> AxisFootprint:
        """Footprint of layers ``(kind, size)`` along one axis, in the order of the forward pass.

        >>> AxisFootprint.from_layers([("conv", 3), ("conv", 3), ("pool", 2), ("conv", 3), ("up", 2), ("conv", 3)])
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
        """Whether every convolution fits and every pooling layer divides its input evenly."""
        return side >= self.smallest and (side - self.smallest) % self.alignment == 0

    def is_usable(self, side: int) -> bool:
        """Whether the side is valid and its output covers at least one step, so that tiles can advance."""
        return self.is_valid(side) and self.output(side) >= self.alignment

    def step(self, side: int) -> int:
        """Distance between tiles: the largest multiple of the alignment that is not larger than the output.

        The paper steps by the output itself (388 for 572). Max-pooling commutes only with shifts by multiples of its
        stride, so tiles 388 voxels apart would pool on different grids and differ from the whole image.
        """
        return self.output(side) // self.alignment * self.alignment

    def side_for(self, output: int) -> int:
        """Smallest usable input side whose output is at least ``output``."""
        side = max(output + 2 * self.context, self.smallest)
        side += -(side - self.smallest) % self.alignment
        return side if self.is_usable(side) else side + self.alignment

    def nearest_usable(self, side: int) -> list[int]:
        """Nearest usable sides: one below ``side``, if there is one, and one above or equal."""
        above = self.side_for(side - 2 * self.context)
        below = above - self.alignment
        return [below, above] if self.is_usable(below) else [above]


def _output_side(steps: Sequence[tuple[Kind, int]], side: int) -> int | None:
    """Output side after all layers, or None if a layer does not fit."""
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
    def from_layers(cls, layers: Iterable[Layer]) -> Footprint:
        """Footprint of a network from its layers, in the order of the forward pass."""
        listed = list(layers)
        axes = ([(layer.kind, layer.size[axis]) for layer in listed] for axis in range(len(listed[0].size)))
        return cls(tuple(map(AxisFootprint.from_layers, axes)))

    @property
    def context(self) -> tuple[int, ...]:
        return tuple(axis.context for axis in self.axes)

    @property
    def alignment(self) -> tuple[int, ...]:
        return tuple(axis.alignment for axis in self.axes)

    def expanded_to(self, dimensions: int) -> Footprint:
        """Footprint on a volume with more axes; the network does not use the leading ones."""
        return Footprint((AxisFootprint(),) * (dimensions - len(self.axes)) + self.axes)

    def output(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Output shape for an input shape."""
        return tuple(axis.output(side) for axis, side in zip(self.axes, shape, strict=True))

    def step(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Distance between tiles of the given input shape, per axis, in voxels."""
        return tuple(axis.step(side) for axis, side in zip(self.axes, shape, strict=True))

    def require_usable(self, shape: Sequence[int], *, name: str = "--tile") -> None:
        """Raise :class:`UnetcliError`, naming the nearest usable sides, if ``shape`` is not usable as a tile."""
        for axis, side in zip(self.axes, shape, strict=True):
            if not axis.is_usable(side):
                near = " and ".join(str(n) for n in axis.nearest_usable(side))
                raise UnetcliError(
                    f"{name} {side}: not a usable tile side for this network "
                    f"(context {axis.context}, alignment {axis.alignment}); nearest usable: {near}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Size of a U-Net. The defaults are those of the paper (31,030,658 parameters)."""

    depth: int = 4
    """Number of pooling layers."""
    base_channels: int = 64
    """Feature channels at the first level; each further level has twice as many."""
    in_channels: int = 1
    classes: int = 2
    dropout: float = 0.5
    """Dropout probability at the end of the contracting path; the paper gives the position, not the probability."""
    batch_norm: bool = False
    """Whether the network is trained with batch normalisation; saved models have it folded into the convolutions."""

    def __post_init__(self) -> None:
        for name, low in (("depth", 0), ("base_channels", 1), ("in_channels", 1), ("classes", 2)):
            if (value := getattr(self, name)) < low:
                raise UnetcliError(f"{name} = {value}: expected at least {low}")
        if not 0 <= self.dropout < 1:
            raise UnetcliError(f"dropout = {self.dropout}: expected 0 <= dropout < 1")

    def channels(self, level: int) -> int:
        """Feature channels at a level; level 0 has the resolution of the image."""
        return int(self.base_channels * 2**level)

    def layers(self) -> Iterator[Layer]:
        """Layers of the longest path through the network, in the order of the forward pass (2-D: y, x)."""
        for _ in range(self.depth):
            yield from (Layer("conv", (3, 3)), Layer("conv", (3, 3)), Layer("pool", (2, 2)))
        yield from (Layer("conv", (3, 3)), Layer("conv", (3, 3)))
        for _ in range(self.depth):
            yield from (Layer("up", (2, 2)), Layer("conv", (3, 3)), Layer("conv", (3, 3)))
        yield Layer("conv", (1, 1))

    def footprint(self) -> Footprint:
        """Context, alignment and valid sides along y and x."""
        return Footprint.from_layers(self.layers())

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each weight and running statistic, by its name in the network's state."""
        widths = [self.channels(level) for level in range(self.depth + 1)]
        shapes: dict[str, tuple[int, ...]] = {}
        for level, (below, width) in enumerate(itertools.pairwise([self.in_channels, *widths])):
            shapes |= self._double_conv(f"down.{level}", below, width)
        for step, width in enumerate(reversed(widths[:-1])):
            shapes[f"up.{step}.weight"] = (2 * width, width, 2, 2)
            shapes |= {} if self.batch_norm else {f"up.{step}.bias": (width,)}
            shapes |= self._double_conv(f"merge.{step}", 2 * width, width)
        return {**shapes, "head.weight": (self.classes, widths[0], 1, 1), "head.bias": (self.classes,)}

    def _double_conv(self, name: str, below: int, width: int) -> dict[str, tuple[int, ...]]:
        """Shapes of two 3x3 convolutions, each with its normalisation or bias."""
        found: dict[str, tuple[int, ...]] = {}
        for place, channels in ((0, below), (3 if self.batch_norm else 2, width)):
            found[f"{name}.{place}.weight"] = (width, channels, 3, 3)
            norm, values = f"{name}.{place + 1}", ("weight", "bias", "running_mean", "running_var")
            if self.batch_norm:
                found |= {f"{norm}.{value}": (width,) for value in values} | {f"{norm}.num_batches_tracked": ()}
            else:
                found[f"{name}.{place}.bias"] = (width,)
        return found

    @property
    def parameters(self) -> int:
        """Number of trained weights and biases.

        >>> Architecture().parameters
        31030658
        """
        trained = (shape for name, shape in self.weight_shapes().items() if not name.endswith(STATISTICS))
        return sum(map(math.prod, trained))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
