"""Sections and regions of interest as text: ``A:B`` and ``z0:z1,y0:y1,x0:x1``."""

from __future__ import annotations

from unetcli.core.errors import UnetcliError

Sections = tuple[int | None, int | None]
"""First and stop, as in a Python slice; None: from the start, to the end."""
Roi = tuple[Sections, ...]
"""First and stop along each of the last axes, z, y, x."""


def parse_sections(text: str) -> Sections:
    """``A:B`` as two numbers; either may be missing.

    >>> parse_sections("20:")
    (20, None)
    """
    first, colon, stop = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return (int(first) if first else None, int(stop) if stop else None)
    except ValueError:
        raise UnetcliError(f"--sections {text}: expected A:B, first and stop, as in 20:25, 20: or :5") from None


def parse_roi(text: str) -> Roi:
    """``z0:z1,y0:y1,x0:x1``, or fewer of the last axes.

    >>> parse_roi("3:5,10:,:200")
    ((3, 5), (10, None), (None, 200))
    """
    try:
        return tuple(parse_sections(part.strip()) for part in text.split(","))
    except UnetcliError:
        raise UnetcliError(f"--roi {text}: expected z0:z1,y0:y1,x0:x1, as in 10:20,512:2048,0:1000") from None


def resolve_sections(sections: Sections, count: int, name: str) -> tuple[int, int]:
    """First and stop within ``count`` sections.

    >>> resolve_sections((20, None), 25, "raw.zarr")
    (20, 25)
    """
    first = 0 if sections[0] is None else sections[0]
    stop = count if sections[1] is None else sections[1]
    if not 0 <= first < stop <= count:
        raise UnetcliError(f"--sections {first}:{stop}: {name} has sections 0:{count}")
    return first, stop
