"""Declaration of options as fields of requests, and parsing of sections and regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from enum import StrEnum
from functools import partial
from typing import Any, Self, get_type_hints

from unetcli.core.errors import UnetcliError
from unetcli.core.label_values import parse_value, parse_values
from unetcli.core.names import require_axes, with_choices

Sections = tuple[int | None, int | None]
"""First and stop, as in a Python slice; None stands for the start or the end."""
Roi = tuple[Sections, ...]
"""First and stop index along each of the last axes (z, y, x)."""


def parse_sections(text: str) -> Sections:
    """Parse ``A:B`` into two numbers; either may be missing.

    >>> parse_sections("20:")
    (20, None)
    """
    first, colon, stop = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return (int(first) if first else None, int(stop) if stop else None)
    except ValueError:
        raise UnetcliError(f"--sections {text}: expected A:B (first and stop), such as 20:25, 20: or :5") from None


def parse_roi(text: str) -> Roi:
    """Parse ``z0:z1,y0:y1,x0:x1``, or ranges of the last axes only.

    >>> parse_roi("3:5,10:,:200")
    ((3, 5), (10, None), (None, 200))
    """
    try:
        return tuple(parse_sections(part.strip()) for part in text.split(","))
    except UnetcliError:
        raise UnetcliError(f"--roi {text}: expected z0:z1,y0:y1,x0:x1, such as 10:20,512:2048,0:1000") from None


def parse_channel(text: str) -> int | str:
    """Parse ``--channel``: a number, or else a name.

    >>> parse_channel("2"), parse_channel("DAPI")
    (2, 'DAPI')
    """
    return int(text) if text.isascii() and text.isdecimal() else text


def resolve_sections(sections: Sections, count: int, name: str) -> tuple[int, int]:
    """First and stop as numbers, for a volume of ``count`` sections.

    >>> resolve_sections((20, None), 25, "raw.zarr")
    (20, 25)
    """
    first = 0 if sections[0] is None else sections[0]
    stop = count if sections[1] is None else sections[1]
    if not 0 <= first < stop <= count:
        raise UnetcliError(f"--sections {first}:{stop}: {name} has sections 0:{count}")
    return first, stop


class Heading(StrEnum):
    """Groups of options, in the order of ``--help``."""

    ARGUMENTS = "Arguments"
    FILES = "Input and output"
    REGION = "Part of the data"
    NETWORK = "Network"
    TRUTH = "Annotation and loss weights"
    AUGMENTATION = "Augmentation"
    OPTIMISATION = "Optimisation"
    OBJECTS = "Objects"
    SCORES = "Scores"
    CHECKS = "Checks"
    PLANNING = "Planning"
    RUN = "Run control"
    CLUSTER = "Cluster"
    SLURM = "SLURM"
    OTHER = "Other options"


@dataclass(frozen=True, slots=True)
class Option:
    """Command-line form of a field: ``--field-name``, or an argument by position under ``Heading.ARGUMENTS``."""

    help: str
    heading: Heading
    _: KW_ONLY
    short: str | None = None
    """One-letter name, such as ``-o``."""
    negative: str | None = None
    """Name of the option that turns a flag off, such as ``--no-blocks``."""
    metavar: str | None = None
    env: bool = False
    """Whether the environment variable ``UNETCLI_<NAME>`` is read if the option is not on the command line.

    Only for options that describe a machine or a site rather than a run. If every option had a variable, a forgotten
    ``UNETCLI_OVERWRITE`` would delete data, and ``UNETCLI_OUTPUT`` would name a model for one command and a volume for
    another.
    """
    min: float | None = None
    max: float | None = None
    parse: Callable[[str], Any] | None = None
    """Function from the text on the command line to the value; without it, Typer converts to the type of the field."""
    text: str | None = None
    """Default of an option with ``parse``, as text."""


def option(help: str, heading: Heading, *, default: Any = None, **rest: Any) -> Any:
    """Field of a request that is an option of its command; ``rest`` as in :class:`Option`."""
    return field(default=default, metadata={"option": Option(help, heading, **rest)})


def argument(help: str, metavar: str) -> Mapping[str, Option]:
    """Metadata of a field that is an argument by position."""
    return {"option": Option(help, Heading.ARGUMENTS, metavar=metavar)}


@dataclass(frozen=True, slots=True)
class DeclaredOption:
    """A field of a request that is an option."""

    name: str
    kind: Any
    """Type of the field."""
    default: Any
    """``dataclasses.MISSING`` if a value is required."""
    option: Option


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class Options:
    """Base class of requests, and of the groups of options that requests inherit."""

    def __post_init__(self) -> None:
        """Check and normalise the fields. Every subclass calls its base class, as a request may have several."""

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Create a request from the values of the command line, by field name; other names are ignored.

        Raises
        ------
        UnetcliError
            If a value cannot be parsed, or if the values contradict each other.
        """
        values: dict[str, Any] = {}
        for name, declared in options_of(cls).items():
            if (value := given.get(name)) is not None:
                values[name] = (declared.option.parse or _frozen)(value)
        return cls(**values)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def name_choices(request: Options, *volumes: str) -> None:
    """Move the axes, the level and the name of a channel that a request states into the names of its volumes.

    A name then says all that is needed to open the volume, in any process. Fields ``axes``, ``level`` and ``channel``
    become None, except for the number of a channel.
    """
    axes, level, channel = (getattr(request, name, None) for name in ("axes", "level", "channel"))
    if axes is not None:
        require_axes(axes, f"--axes {axes}")
        object.__setattr__(request, "axes", None)
    if level is not None:
        object.__setattr__(request, "level", None)
    if isinstance(channel, str):
        object.__setattr__(request, "channel", None)
    chosen = partial(with_choices, axes=axes, channel=channel if isinstance(channel, str) else None, level=level)
    for field_name in volumes:
        if (name := getattr(request, field_name)) is not None:
            object.__setattr__(request, field_name, chosen(name))


def options_of(request: type[Options]) -> dict[str, DeclaredOption]:
    """Options of a request by field name, in the order of their headings."""
    kinds, headings = get_type_hints(request), list(Heading)
    found = [
        DeclaredOption(each.name, kinds[each.name], each.default, each.metadata["option"])
        for each in fields(request)
        if "option" in each.metadata
    ]
    ordered = sorted(found, key=lambda declared: headings.index(declared.option.heading))
    return {declared.name: declared for declared in ordered}


# Options under one heading.

file_option = partial(option, heading=Heading.FILES)
region_option = partial(option, heading=Heading.REGION)
network_option = partial(option, heading=Heading.NETWORK)
run_option = partial(option, heading=Heading.RUN)
cluster_option = partial(option, heading=Heading.CLUSTER)

# Options of several commands; each call makes a field.

IMAGE = (
    "OME-Zarr (also store.zarr/path/inside), Zarr, TIFF, PNG, JPEG, HDF5 (file.h5:/path), a folder of slices or a "
    "quoted pattern 'slices/*.tif'."
)
"""Files that are read, for the help of an argument."""

device_option = partial(
    network_option, "Device to use: cpu, cuda or the number of a GPU. Default: a GPU if there is one.", env=True
)
channel_option = partial(
    region_option,
    "Use only this channel: its number, counted from 0, or its name in the file.",
    metavar="N",
    parse=parse_channel,
)
axes_option = partial(
    region_option,
    "Letters of the axes of an array that does not name them, such as zcyx; as part of a name, a.zarr:axes=zcyx.",
    metavar="LETTERS",
)
background_option = partial(option, metavar="VALUE", parse=parse_value)
classes_option = partial(option, metavar="V,V,..", parse=parse_values)
label_threshold_option = partial(option, metavar="V")
sections_option = partial(
    region_option,
    "Use only sections A to B - 1, along z (or t if there is no z).",
    default=(None, None),
    metavar="A:B",
    parse=parse_sections,
)
retries_option = partial(run_option, "Number of times a failed block is tried again.", default=1, metavar="N", min=0)
block_voxels_option = partial(
    run_option, "Approximate voxels per block; limits memory and does not change the result.", metavar="N"
)
same_place_option = partial(
    region_option,
    "Pair volumes voxel by voxel although the files state that they begin at different places.",
    default=False,
)
strict_option = partial(
    run_option, "Exit with code 1 if there is a warning, if possible before computing.", default=False, env=True
)
overwrite_option = partial(run_option, "Start from scratch and replace the earlier output.", default=False)
take_over_option = partial(run_option, "Ignore the lock of an earlier run that is no longer alive.", default=False)
