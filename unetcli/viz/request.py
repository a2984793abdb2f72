"""What a user asks of show."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from unetcli.core.options import Heading, Options, argument, channel_option, option


@dataclass(frozen=True, kw_only=True)
class ShowRequest(Options):
    """One call of show: a section of a volume to look at."""

    volume: str = field(
        kw_only=False, metadata=argument("Zarr, OME-Zarr, store.zarr/path/inside or TIFF stack.", "VOLUME")
    )
    section: int | None = option(
        "Section along z, else t, counted as in the predicted volume. Default: the middle one.",
        Heading.REGION,
        metavar="Z",
    )
    overlay: str | None = option(
        "Labels, drawn as outlines, or a probability, drawn as a transparent colour.", Heading.FILES, metavar="OTHER"
    )
    output: Path | None = option(
        "Picture to write. Default: NAME.zNN.png here.", Heading.FILES, short="-o", metavar="PNG"
    )
    channel: int | None = channel_option()
    """None: up to three channels are shown as red, green and blue."""
