"""Names of volumes: a path or URL, and the part of it to read, such as ``plate.ome.tif:series=1`` or ``a.h5:/raw``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from unetcli.core.errors import UnetcliError

CHOICES = ("series", "level", "axes")
_CHANNEL = re.compile(r"(.+?):channel=(.+)", re.DOTALL)
_CHOICE = re.compile(rf"(.+):({'|'.join(CHOICES)})=([^:/]*)", re.DOTALL)
_INSIDE = re.compile(r"(.+\.(?:h5|hdf5|hdf|he5|ims|ilp)):(/.*)", re.DOTALL | re.IGNORECASE)
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeName:
    """Name of a volume in parts; ``str`` gives the name again, which says all that is needed to open the volume."""

    place: str
    """Path or URL of the file, store or folder, or pattern of the files of a stack."""
    inside: str = ""
    """Path of a dataset in an HDF5 file."""
    series: int | None = None
    """Image among several in a file or container, counted from 0."""
    level: int | None = None
    """Level of resolution, counted from 0, the finest."""
    axes: str = ""
    """Letters of the array's axes, which replace those in the file."""
    channel: str = ""
    """Name or number of the only channel to read."""

    @classmethod
    def parse(cls, text: str) -> VolumeName:
        """Parts of a name; raises :class:`UnetcliError` if a choice has a bad value.

        >>> VolumeName.parse("s3://bucket/a.zarr:level=2").place, VolumeName.parse("a.h5:/raw:axes=zyxc").inside
        ('s3://bucket/a.zarr', '/raw')
        """
        place, channel, found = text, "", dict[str, str]()
        if match := _CHANNEL.fullmatch(place):
            place, channel = match.groups()
        while match := _CHOICE.fullmatch(place):
            place, key, value = match.groups()
            found.setdefault(key, value)
        for key in ("series", "level"):
            if key in found and not (found[key].isascii() and found[key].isdecimal()):
                raise UnetcliError(f"{text}: {key} is {found[key]!r}; expected a number such as :{key}=1")
        numbers = {key: int(found[key]) for key in ("series", "level") if key in found}
        inside = ""
        if match := _INSIDE.fullmatch(place):
            place, inside = match.groups()
        axes = require_axes(found["axes"], text) if "axes" in found else ""
        return cls(place=place, inside=inside, channel=channel, axes=axes, **numbers)

    def __str__(self) -> str:
        chosen = [(key, getattr(self, key)) for key in (*CHOICES, "channel")]
        inside = f":{self.inside}" if self.inside else ""
        return f"{self.place}{inside}" + "".join(f":{key}={value}" for key, value in chosen if value not in (None, ""))

    def require_no_choice(self, why: str) -> None:
        """Raise :class:`UnetcliError` if the name states a series or level other than 0; ``why`` ends the message."""
        for key in ("series", "level"):
            if number := getattr(self, key):
                raise UnetcliError(f"{self.place}: no {key} {number}{why}")

    @property
    def is_pattern(self) -> bool:
        """Whether the place has wildcards, as in ``slices/*.tif``."""
        return "://" not in self.place and is_wild(self.place)


def is_wild(text: str) -> bool:
    """Whether text has wildcards of file names."""
    return _WILD.search(text) is not None


def require_axes(text: str, where: str) -> str:
    """Axis letters that a user gives, in lower case; raises :class:`UnetcliError` if they are not those of an image.

    >>> require_axes("ZCYX", "--axes ZCYX")
    'zcyx'
    """
    axes = text.lower()
    if len(set(axes)) != len(axes) or not set("yx") <= set(axes) <= set("tczyx"):
        raise UnetcliError(f"{where}: axes {text!r}; expected y, x and at most one each of t, c, z, such as zcyx")
    return axes


def with_choices(name: str, *, axes: str | None = None, channel: str | None = None, level: int | None = None) -> str:
    """Add choices to the name of a volume, unless it has such choices itself; a level must then be the same.

    >>> with_choices("a.zarr", axes="zcyx", channel="DAPI"), with_choices("a.tif:axes=cyx", axes="zyx", level=1)
    ('a.zarr:axes=zcyx:channel=DAPI', 'a.tif:level=1:axes=cyx')
    """
    found = VolumeName.parse(name)
    if level is not None and found.level not in (None, level):
        raise UnetcliError(f"--level {level}: {name} names level {found.level}; expected only one of them")
    return str(
        replace(
            found,
            axes=found.axes or axes or "",
            channel=found.channel or channel or "",
            level=found.level if level is None else level,
        )
    )
