"""Options of show as the user gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from unetcli.core.options import (
    IMAGE,
    Options,
    argument,
    axes_option,
    channel_option,
    file_option,
    name_choices,
    region_option,
)


@dataclass(frozen=True, kw_only=True)
class ShowRequest(Options):
    """Options of one call of show."""

    volume: str = field(kw_only=False, metadata=argument(f"Image: {IMAGE}", "VOLUME"))
    section: int | None = region_option(
        "Section along z (or t if there is no z), numbered as in the input of predict. Default: the middle one.",
        metavar="Z",
    )
    overlay: str | None = file_option(
        "Draw this on top: labels as outlines, a probability as a transparent colour.", metavar="OTHER"
    )
    output: Path | None = file_option(
        "Picture to write. Default: NAME.zNN.png in the current folder.", short="-o", metavar="PNG"
    )
    channel: int | None = channel_option()
    """Channel to show; None shows up to three channels as red, green and blue."""
    axes: str | None = axes_option()

    def __post_init__(self) -> None:
        name_choices(self, "volume")
        super().__post_init__()
