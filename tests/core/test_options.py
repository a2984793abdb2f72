"""Options as fields of requests."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field

import pytest

from unetcli.core.errors import UnetcliError
from unetcli.core.options import Heading, Options, Sections, argument, option, options_of, sections_option


@dataclass(frozen=True, kw_only=True)
class Group(Options):
    lines: tuple[str, ...] = option("Lines.", Heading.SLURM, default=())
    sections: Sections = sections_option()


@dataclass(frozen=True, kw_only=True)
class Call(Group):
    place: str = field(kw_only=False, metadata=argument("A place.", "PLACE"))
    size: int | None = option("A size.", Heading.FILES, default=3)
    of_the_library: bool = False


def test_options_are_in_the_order_of_their_headings_and_other_fields_are_none() -> None:
    found = options_of(Call)
    assert list(found) == ["place", "size", "sections", "lines"]
    assert (found["place"].default, found["size"].kind, found["size"].default) == (MISSING, int | None, 3)


def test_values_of_the_command_line_are_parsed_and_frozen() -> None:
    given = {"place": "here", "lines": ["a", "b"], "sections": "2:", "size": None, "of_another": 3}
    assert Call.read(given) == Call("here", lines=("a", "b"), sections=(2, None), size=3)
    with pytest.raises(UnetcliError, match="--sections 2"):
        Call.read({"place": "here", "sections": "2"})
