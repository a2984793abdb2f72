"""Axes of an array: letters for the names that files give them, and guesses where there are no names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from unetcli.core.errors import UnetcliError, format_shape, warn
from unetcli.core.files import absolute

AXES = "tczyx"
DEFAULT_AXES = {2: "yx", 3: "zyx"}
"""Axes of an array without axis names, by their number."""
NAMES = {
    **dict.fromkeys(("depth", "slice", "slices", "section", "sections", "plane", "planes"), "z"),
    **dict.fromkeys(("height", "row", "rows"), "y"),
    **dict.fromkeys(("width", "column", "columns", "col", "cols"), "x"),
    **dict.fromkeys(("frame", "frames"), "t"),
    **dict.fromkeys(("band", "bands", "sample", "samples", "rgb", "rgba"), "c"),
}
"""Letters of names that do not begin with their letter."""
UNNAMED = re.compile(r"(dim|dimension|axis|phony_dim|d)_?\d+")
"""Names that programs give to axes that nobody has named, such as ``dim_0`` of zarr-python and xarray."""
MOST_CHANNELS = 4
"""Largest extent of a last axis that looks like channels, in arrays without names."""


def stored_names(array: Any) -> list[str] | None:
    """Axis names of a Zarr array, from its metadata (v3) or the attribute of xarray (v2); None without names."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return given_names(names) if isinstance(names, list | tuple) else None


def given_names(names: Sequence[Any]) -> list[str] | None:
    """Axis names, or None if nobody has named the axes.

    >>> given_names(["depth", "height", "width"]), given_names(["dim_0", "dim_1"])
    (['depth', 'height', 'width'], None)
    """
    found = [str(name or "") for name in names]
    return None if all(not name or UNNAMED.fullmatch(name.lower()) for name in found) else found


def axes_from_names(path: str, names: list[str] | None, shape: Sequence[int], chosen: str = "") -> str:
    """Axis letters for stored names, or the default for the number of axes if there are no names.

    Letters that the user has chosen replace both.

    Raises
    ------
    UnetcliError
        The axes are not those of an image, or are too many to be guessed.
    """
    if chosen and (len(chosen) == len(shape) or not names or not any(names)):
        return _chosen(path, chosen, shape)
    if not names or not any(names):
        return _guess(path, shape)
    letters = "".join(NAMES.get(name.lower(), name.lower()[:1]) for name in names)
    if len(letters) != len(shape) or len(set(letters)) != len(letters) or not set("yx") <= set(letters) <= set(AXES):
        raise UnetcliError(
            f"{path}: axes {', '.join(names)} of {format_shape(shape)}; expected y, x and at most one each of t, c, z, "
            "or --axes with a letter for each axis, such as --axes zcyx"
        )
    return letters


def _guess(path: str, shape: Sequence[int]) -> str:
    """Axes of an array without names: z, y, x or y, x; axes of extent 1 do not count and take the letters left.

    >>> _guess("a", (4, 13, 22)), _guess("a", (1, 1, 4, 13, 22))
    ('zyx', 'tczyx')
    """
    if len(shape) in DEFAULT_AXES:
        _warn_of_channels(path, shape)
        return DEFAULT_AXES[len(shape)]
    counted = [place for place, n in enumerate(shape) if n > 1 or place >= len(shape) - 2]
    if len(counted) not in DEFAULT_AXES or len(shape) > len(AXES):
        example = AXES[-len(shape) :] if len(shape) == len(AXES) else "zcyx"
        raise UnetcliError(
            f"{path}: {len(shape)} axes without names ({format_shape(shape)}); expected a letter for each of them, "
            f"such as --axes {example}, or {path}:axes={example}"
        )
    return _spread(DEFAULT_AXES[len(counted)], counted, len(shape))


def _warn_of_channels(path: str, shape: Sequence[int]) -> None:
    """Warn if the last of three axes without names looks like that of channels."""
    if len(shape) == 3 and 1 < shape[-1] <= MOST_CHANNELS < min(shape[:-1]):
        warn(
            f"{absolute(path)}: {format_shape(shape)} without axis names is read as z, y, x, which makes sections "
            f"{shape[-1]} wide; if its last axis is that of channels, --axes yxc, or NAME:axes=yxc"
        )


def _chosen(path: str, axes: str, shape: Sequence[int]) -> str:
    """The letters that a user gives, one per axis; axes of extent 1 may be left out."""
    if len(axes) == len(shape):
        return axes
    if len(shape) in DEFAULT_AXES:
        _warn_of_channels(path, shape)
        return DEFAULT_AXES[len(shape)]
    counted = [place for place, n in enumerate(shape) if n > 1]
    if len(axes) == len(counted) and len(shape) <= len(AXES):
        return _spread(axes, counted, len(shape))
    raise UnetcliError(
        f"{path}: axes {axes} name {len(axes)} axes, but the array has {len(shape)} ({format_shape(shape)})"
    )


def _spread(axes: str, places: Sequence[int], count: int) -> str:
    """Letters at the given places of ``count`` axes, and letters that are left elsewhere."""
    letters = dict(zip(places, axes, strict=True))
    free = iter(axis for axis in AXES if axis not in axes)
    return "".join(letters.get(place) or next(free) for place in range(count))
