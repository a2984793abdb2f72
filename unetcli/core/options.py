"""Declaration of options as fields of requests; parsing of sections and regions of interest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from enum import StrEnum
from functools import partial
from typing import Any, Self, get_type_hints

from unetcli.core.errors import UnetcliError

Sections = tuple[int | None, int | None]
"""First and stop index, as in a Python slice; None means the start or the end of the axis."""
Roi = tuple[Sections, ...]
"""First and stop index along each of the last axes (z, y, x)."""


def parse_sections(text: str) -> Sections:
    """Parse ``A:B``; either number may be missing.

    >>> parse_sections("20:")
    (20, None)
    """
    first, colon, stop = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return (int(first) if first else None, int(stop) if stop else None)
    except ValueError:
        raise UnetcliError(f"--sections {text}: expected A:B (B is excluded), such as 20:25, 20: or :5") from None


def parse_roi(text: str) -> Roi:
    """Parse ``z0:z1,y0:y1,x0:x1``, or ranges of fewer axes, counted from the last.

    >>> parse_roi("3:5,10:,:200")
    ((3, 5), (10, None), (None, 200))
    """
    try:
        return tuple(parse_sections(part.strip()) for part in text.split(","))
    except UnetcliError:
        raise UnetcliError(f"--roi {text}: expected z0:z1,y0:y1,x0:x1, such as 10:20,512:2048,0:1000") from None


def resolve_sections(sections: Sections, count: int, name: str) -> tuple[int, int]:
    """Replace missing numbers of a range of sections, and check it against the ``count`` sections of a volume.

    >>> resolve_sections((20, None), 25, "raw.zarr")
    (20, 25)
    """
    first = 0 if sections[0] is None else sections[0]
    stop = count if sections[1] is None else sections[1]
    if not 0 <= first < stop <= count:
        raise UnetcliError(f"--sections {first}:{stop}: {name} has sections 0:{count}")
    return first, stop


class Heading(StrEnum):
    """Headings under which ``--help`` groups the options, in their order there."""

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
    """Declaration of a command-line option ``--field-name``, or of an argument under ``Heading.ARGUMENTS``."""

    help: str
    heading: Heading
    _: KW_ONLY
    short: str | None = None
    """One-letter name, such as ``-o``."""
    negative: str | None = None
    """Name of the option that turns a flag off, such as ``--no-blocks``."""
    metavar: str | None = None
    env: bool = False
    """Whether the environment variable ``UNETCLI_<NAME>`` sets the option if the command line does not.

    Only for options that describe a machine or a site rather than a run. If every option had a variable, a forgotten
    ``UNETCLI_OVERWRITE`` would delete data, and ``UNETCLI_OUTPUT`` would mean a model to one command and a volume to
    another.
    """
    min: float | None = None
    max: float | None = None
    parse: Callable[[str], Any] | None = None
    """Converts the text of the command line to the field's value; without it, typer parses by the field's type."""
    text: str | None = None
    """Default of an option with ``parse``, as text of the command line."""


def option(help: str, heading: Heading, *, default: Any = None, **rest: Any) -> Any:
    """Declare a field of a request as an option of its command; ``rest`` as in :class:`Option`."""
    return field(default=default, metadata={"option": Option(help, heading, **rest)})


def argument(help: str, metavar: str) -> Mapping[str, Option]:
    """Metadata that declares a field of a request as a positional argument."""
    return {"option": Option(help, Heading.ARGUMENTS, metavar=metavar)}


@dataclass(frozen=True, slots=True)
class DeclaredOption:
    """A field of a request that is an option."""

    name: str
    kind: Any
    """Type of the field."""
    default: Any
    """Default value; ``dataclasses.MISSING`` if the option is required."""
    option: Option


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class Options:
    """Base class of requests and of the groups of options that they inherit."""

    def __post_init__(self) -> None:
        """Check and normalise the fields; subclasses call ``super()``, as a request may inherit several groups."""

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Create a request from command-line values by field name; unknown names are ignored.

        Raises
        ------
        UnetcliError
            A value cannot be parsed, or options contradict each other.
        """
        values: dict[str, Any] = {}
        for name, declared in options_of(cls).items():
            if (value := given.get(name)) is not None:
                values[name] = (declared.option.parse or _frozen)(value)
        return cls(**values)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


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


# Options shared by several commands. Call one to declare a field.

device_option = partial(
    option, "cpu, cuda or the number of a GPU. Default: a GPU if available.", Heading.NETWORK, env=True
)
channel_option = partial(option, "Use only this channel, counted from 0.", Heading.REGION, metavar="N")
sections_option = partial(
    option,
    "Use only sections A to B - 1 (along z, else t).",
    Heading.REGION,
    default=(None, None),
    metavar="A:B",
    parse=parse_sections,
)
retries_option = partial(option, "Number of times to retry a failed block.", Heading.RUN, default=1, min=0)
block_voxels_option = partial(
    option, "Approximate voxels per block; limits memory. Does not affect the result.", Heading.RUN, metavar="N"
)
overwrite_option = partial(option, "Start over; replaces output written by unetcli.", Heading.RUN, default=False)
take_over_option = partial(option, "Ignore the lock of a launcher that is dead.", Heading.RUN, default=False)
