"""Voxel sizes as volumes state them, in whatever unit of length."""

from __future__ import annotations

import math

from unetcli.core.errors import UnetcliError
from unetcli.volumes.volume import Volume

METRES = {
    **dict.fromkeys(("picometer", "picometre", "pm"), 1e-12),
    **dict.fromkeys(("angstrom", "Å"), 1e-10),
    **dict.fromkeys(("nanometer", "nanometre", "nm"), 1e-9),
    **dict.fromkeys(("micrometer", "micrometre", "micron", "um", "µm", "μm"), 1e-6),
    **dict.fromkeys(("millimeter", "millimetre", "mm"), 1e-3),
    **dict.fromkeys(("centimeter", "centimetre", "cm"), 1e-2),
    **dict.fromkeys(("meter", "metre", "m"), 1.0),
}
"""Of OME-Zarr, and what people write; µ exists twice, as a sign and as a Greek letter."""
ALIKE = 0.01
"""Sizes that differ by a smaller share than this are rounded differently."""

Sizes = dict[str, tuple[float, str]]
"""Number and unit by axis."""


def stated_sizes(volume: Volume) -> Sizes:
    """Voxel size along the axes of space; none where all are 1 without unit, which is what says nothing."""
    sizes = {axis: (volume.voxel_size[axis], volume.units.get(axis, "")) for axis in "zyx" if axis in volume.voxel_size}
    return {} if all(size == (1.0, "") for size in sizes.values()) else sizes


def require_same_voxels(one: Volume, other: Volume, otherwise: str) -> None:
    """Refuse two volumes whose voxels have stated sizes that differ; the error ends in what that means.

    Axes that only one of them states, and units that cannot be compared, are passed over.
    """
    sizes, others = stated_sizes(one), stated_sizes(other)
    if any(differ(sizes[axis], others[axis]) for axis in sizes.keys() & others.keys()):
        raise UnetcliError(
            f"{one.path} has voxels of {in_words(sizes)}, but {other.path} of {in_words(others)}: {otherwise}"
        )


def differ(one: tuple[float, str], other: tuple[float, str]) -> bool:
    """Whether two sizes differ, where their units can be compared.

    >>> differ((500, "nanometer"), (0.5, "micrometer")), differ((1, "um"), (500, "nm")), differ((1, "um"), (2, ""))
    (False, True, False)
    """
    (size, unit), (other_size, other_unit) = one, other
    scale, other_scale = METRES.get(unit, math.nan), METRES.get(other_unit, math.nan)
    if unit == other_unit:
        scale = other_scale = 1.0
    sizes = size * scale, other_size * other_scale
    return abs(sizes[0] - sizes[1]) > ALIKE * max(sizes)  # False for units that cannot be compared: NaN


def in_words(sizes: Sizes) -> str:
    """For people, in the order of the axes; the unit once where it is the same.

    >>> in_words({"y": (4.0, "nm"), "x": (4.0, "nm")}), in_words({"z": (0.05, "um"), "x": (4.0, "nm")})
    ('4 x 4 nm', '0.05 um x 4 nm')
    """
    units = {unit for _, unit in sizes.values()}
    if len(units) == 1:
        return f"{' x '.join(f'{size:g}' for size, _ in sizes.values())} {units.pop()}".rstrip()
    return " x ".join(f"{size:g} {unit or '(no unit)'}" for size, unit in sizes.values())
