"""Places and voxel sizes of volumes: comparison and formatting of sizes and origins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from unetcli.core.errors import UnetcliError
from unetcli.volumes.volume import Volume

METRES_PER_UNIT = {
    **dict.fromkeys(("picometer", "picometre", "pm"), 1e-12),
    **dict.fromkeys(("angstrom", "Å"), 1e-10),
    **dict.fromkeys(("nanometer", "nanometre", "nm"), 1e-9),
    **dict.fromkeys(("micrometer", "micrometre", "micron", "um", "µm", "μm"), 1e-6),
    **dict.fromkeys(("millimeter", "millimetre", "mm"), 1e-3),
    **dict.fromkeys(("centimeter", "centimetre", "cm"), 1e-2),
    **dict.fromkeys(("meter", "metre", "m"), 1.0),
}
"""Names of units in OME-Zarr, and common abbreviations; µ has two code points, a sign and a Greek letter."""
SIZE_TOLERANCE = 0.01
"""Relative difference up to which two voxel sizes count as equal, as files round them differently."""
TOLERATED_SHIFT = 0.5
"""Difference between two origins, in voxels, up to which they count as equal. Programs place the origin of an image at
the corner or at the centre of its first voxel."""
Sizes = dict[str, tuple[float, str]]
"""Voxel size and its unit, by axis."""


def stated_sizes(volume: Volume) -> Sizes:
    """Voxel size along the spatial axes; empty if all are 1 without unit, as in files that do not state it."""
    sizes = {axis: (volume.voxel_size[axis], volume.units.get(axis, "")) for axis in "zyx" if axis in volume.voxel_size}
    return {} if all(size == (1.0, "") for size in sizes.values()) else sizes


def require_same_voxels(
    one: Volume, other: Volume, otherwise: str, *, factors: Sequence[Fraction] | None = None
) -> None:
    """Raise :class:`UnetcliError` if the stated voxel sizes of two volumes differ.

    Axes whose size only one of the volumes states are not compared, nor are units that cannot be converted.

    Parameters
    ----------
    otherwise
        End of the message, which says what the difference implies.
    factors
        Voxels of ``one`` per voxel of ``other``, along the axes of ``one``. Default: 1.
    """
    sizes, others = stated_sizes(one), stated_sizes(other)
    by = dict(zip(one.axes, factors or (), strict=False))
    expected = {axis: (size * float(by.get(axis, 1)), unit) for axis, (size, unit) in sizes.items()}
    if any(sizes_differ(expected[axis], others[axis]) for axis in sizes.keys() & others.keys()):
        raise UnetcliError(
            f"{one.path} has voxels of {format_sizes(sizes)}, but {other.path} of {format_sizes(others)}: {otherwise}"
        )


def require_same_place(
    one: Volume,
    other: Volume,
    otherwise: str,
    *,
    offset: Sequence[int] | None = None,
    factors: Sequence[Fraction] | None = None,
) -> None:
    """Raise :class:`UnetcliError` if two volumes state origins that differ by more than half a voxel.

    Axes whose place only one of the volumes states are not compared, nor are units that cannot be converted.

    Parameters
    ----------
    offset : voxels
        Where ``other`` begins in ``one``, along its axes. Default: at its origin.
    factors
        Voxels of ``one`` per voxel of ``other``; the origins may differ by half of the larger voxel. Default: 1.
    otherwise
        End of the message, which says what the difference implies.
    """
    if not (one.places and other.places):
        return
    moved, by = offset or (0,) * len(one.axes), factors or (Fraction(1),) * len(one.axes)
    for axis, first, factor in zip(one.axes, moved, by, strict=True):
        tolerated = TOLERATED_SHIFT * max(Fraction(1), factor)
        if axis in other.axes and axis in "zyx" and abs(_shift(one, other, axis, first)) > tolerated:
            raise UnetcliError(
                f"{one.path} begins at {_origin(one)}, but {other.path} at {_origin(other)}"
                f"{f', expected {_origin(one, moved)}' if any(moved) else ''}: {otherwise}"
            )


def _shift(one: Volume, other: Volume, axis: str, first: int) -> float:
    """Distance along an axis of the other origin from voxel ``first`` of one volume, in its voxels; NaN if unknown."""
    own, others = (volume.units.get(axis, "") for volume in (one, other))
    begin, begins = in_one_unit((one.translation.get(axis, 0.0), own), (other.translation.get(axis, 0.0), others))
    size, _ = in_one_unit((one.voxel_size.get(axis, 1.0), own), (1.0, others))
    return (begins - begin) / size - first if size else math.nan


def _origin(volume: Volume, offset: Sequence[int] = ()) -> str:
    """Place of a voxel for the user, in the unit of each axis."""
    moved = dict(zip(volume.axes, offset, strict=False))
    places = {
        axis: (
            volume.translation.get(axis, 0.0) + moved.get(axis, 0) * volume.voxel_size.get(axis, 1.0),
            volume.units.get(axis, ""),
        )
        for axis in volume.axes
        if axis in "zyx"
    }
    return ", ".join(f"{axis} {place:g} {unit}".rstrip() for axis, (place, unit) in places.items())


def sizes_differ(one: tuple[float, str], other: tuple[float, str], tolerance: float = SIZE_TOLERANCE) -> bool:
    """Whether two sizes differ by more than a relative tolerance; False if their units cannot be converted.

    >>> sizes_differ((500, "nanometer"), (0.5, "micrometer")), sizes_differ((1, "um"), (500, "nm"))
    (False, True)
    """
    sizes = in_one_unit(one, other)
    return abs(sizes[0] - sizes[1]) > tolerance * max(sizes)  # False for NaN, from units that are not known


def in_one_unit(one: tuple[float, str], other: tuple[float, str]) -> tuple[float, float]:
    """Two lengths in the same unit; NaN if they have different units, one of which is not known.

    >>> in_one_unit((3.0, "pixel"), (4.0, "pixel")), in_one_unit((3.0, "pixel"), (4.0, "pm"))
    ((3.0, 4.0), (nan, 4e-12))
    """
    (length, unit), (other_length, other_unit) = one, other
    if unit == other_unit:
        return length, other_length
    return length * METRES_PER_UNIT.get(unit, math.nan), other_length * METRES_PER_UNIT.get(other_unit, math.nan)


def format_sizes(sizes: Sizes) -> str:
    """Format voxel sizes for the user, in the order of the axes; a common unit is given once.

    >>> format_sizes({"y": (4.0, "nm"), "x": (4.0, "nm")}), format_sizes({"z": (0.05, "um"), "x": (4.0, "nm")})
    ('4 x 4 nm', '0.05 um x 4 nm')
    """
    units = {unit for _, unit in sizes.values()}
    if len(units) == 1:
        return f"{' x '.join(f'{size:g}' for size, _ in sizes.values())} {units.pop()}".rstrip()
    return " x ".join(f"{size:g} {unit or '(no unit)'}" for size, unit in sizes.values())
