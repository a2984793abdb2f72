"""``unetcli show``."""

from __future__ import annotations

import typer

from unetcli.cli import options as o


def show(
    volume: o.VolumeArgument,
    section: o.SectionOption = None,
    overlay: o.OverlayOption = None,
    output: o.PictureOption = None,
    channel: o.ChannelOption = None,
) -> None:
    """Draw one section of VOLUME, with another one over it.

    Labels as outlines, a probability as a colour.
    """
    from unetcli.viz.show import ShowRequest, show

    request = ShowRequest(volume=volume, section=section, overlay=overlay, output=output, channel=channel)
    typer.echo(show(request))
