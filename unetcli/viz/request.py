"""Options of show as the user gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from unetcli.core.options import Heading, Options, argument, channel_option, option


@dataclass(frozen=True, kw_only=True)
class ShowRequest(Options):
    """Options of one call of show."""

    volume: str = field(
        kw_only=False, metadata=argument("Zarr, OME-Zarr, store.zarr/path/inside or TIFF stack.", "VOLUME")
    )
    section: int | None = option(
        "Section along z, or t if there is no z, counted as in the predicted volume. Default: the middle one.",
        Heading.REGION,
        metavar="Z",
    )
    overlay: str | None = option(
        "Labels, drawn as outlines, or a probability, drawn as a transparent colour.", Heading.FILES, metavar="OTHER"
    )
    output: Path | None = option(
        "PNG file to write. Default: NAME.zNN.png in the current folder.", Heading.FILES, short="-o", metavar="PNG"
    )
    channel: int | None = channel_option()
    """Channel to show; None shows up to three channels as red, green and blue."""
