"""One section of a volume as a picture, with labels or a probability over it: the library call behind ``show``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unetcli.config import stem
from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, place_of, require_apart
from unetcli.core.geometry import Box
from unetcli.evaluate.pairing import shape
from unetcli.viz.colours import enlarged, label_colours, outlines, round_length, save_dots, stretched
from unetcli.viz.shown import Shown
from unetcli.volumes.volume import Volume, stated_sizes

LARGEST, ROOMY = 2048, 1500
"""Dots along the longer side at most, and what small sections are enlarged to by whole factors, if they fit."""
HEAT, OPACITY = (1.0, 0.45, 0.1), 0.6
SIGNATURE = "unetcli show"
"""In the file's metadata: what is ours may be replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowRequest:
    """A section of a volume to look at."""

    volume: str
    section: int | None = None
    """Along z, else t, counted as in the volume that was predicted; None: the middle one."""
    overlay: str | None = None
    output: Path | None = None
    channel: int | None = None
    """One of several; None: up to three are shown as red, green and blue."""


def show(request: ShowRequest) -> Path:
    """Draw a section and its overlay; the picture's file.

    Raises
    ------
    UnetcliError
        Something cannot be read, there is no such section or channel, the overlay is of another shape, or the
        output is a file of others.
    """
    base = Shown.open(request.volume, LARGEST)
    plane = _plane(base, request)
    over = None if request.overlay is None else _fitting(request.overlay, base, plane)
    output = _output(request, base, plane)
    step = base.step(LARGEST)
    zoom = max(1, ROOMY // max(plane.shape[-2:]))
    colours = enlarged(_base_colours(base, plane, step, request.channel), zoom)
    if over is not None:
        _lay_over(colours, over, plane, step, zoom)
    save_dots(colours, _scale_bar(base.volume, step / zoom, colours.shape[1]), output, SIGNATURE)
    return output


def _plane(base: Shown, request: ShowRequest) -> Box:
    """The section asked for, else the middle one; of several times the first."""
    name, volume = request.volume, base.volume
    if request.channel is not None and not 0 <= request.channel < volume.channels:
        raise UnetcliError(f"--channel {request.channel}: {name} has {volume.channels}, counted from 0")
    axis, sections = volume.section_axis, base.sections
    if axis is None:
        if request.section not in (None, 0):
            raise UnetcliError(f"--section {request.section}: {name} is a single image ({shape(volume)})")
        return base.box
    section = sections[len(sections) // 2] if request.section is None else request.section
    if section not in sections:
        raise UnetcliError(
            f"--section {section}: {name} has sections {sections[0]} to {sections[-1]} along {volume.axes[axis]}"
        )
    start, stop = list(base.box.start), list(base.box.stop)
    for place in range(len(start) - 2):
        start[place] = section if place == axis else start[place]
        stop[place] = start[place] + 1
    return Box(tuple(start), tuple(stop))


def _fitting(name: str, base: Shown, plane: Box) -> Shown:
    """The overlay, where it is of the same volume and has the section."""
    over = Shown.open(name, LARGEST)
    if over.extent != base.extent:
        raise UnetcliError(
            f"{name} is {shape(over.volume)}, but {base.volume.path} is {shape(base.volume)}: no overlay of it"
        )
    if over.volume.channels > 1 and over.volume.dtype.kind in "bui" and over.kind != "probabilities":
        raise UnetcliError(f"{name}: {over.volume.channels} channels of integers; labels have one")
    if not plane.clipped(over.box).size:
        found, axis = over.sections, base.volume.section_axis
        where = f"sections {found[0]} to {found[-1]}" if found else "another part"
        asked = "the picture" if axis is None else f"section {plane.start[axis]}"
        raise UnetcliError(f"{name}: covers {where}, not {asked} of {base.volume.path}")
    return over


def _output(request: ShowRequest, base: Shown, plane: Box) -> Path:
    axis = base.volume.section_axis
    number = "" if axis is None else f".{base.volume.axes[axis]}{plane.start[axis]:02d}"
    output = request.output or Path(f"{stem(request.volume)}{number}.png")
    if output.suffix.lower() != ".png":
        raise UnetcliError(f"--output {output}: a PNG file is written; {output.with_suffix('.png')} would do")
    if not output.absolute().parent.is_dir():
        raise UnetcliError(f"--output {output}: no folder {output.absolute().parent}")
    inputs: list[Place] = [place_of(name) for name in (request.volume, request.overlay) if name is not None]
    require_apart(output, inputs)
    if output.exists() and not _is_ours(output):
        raise UnetcliError(f"{output}: exists, and show did not write it; --output names another place")
    return output


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return SIGNATURE.encode() in file.read(4096)


def _base_colours(base: Shown, plane: Box, step: int, channel: int | None) -> NDArray[np.float32]:
    """(y, x, 3) in 0..1: grey values between their percentiles, probabilities as they are, labels in colours."""
    if base.kind == "instances":
        return label_colours(base.read(plane, step, channel, mean=False)[0])
    values = base.read(plane, step, channel, mean=True)[:3].astype(np.float32)
    top = _most(base.volume) if base.kind == "probabilities" else None
    greys = [np.clip(v / top, 0, 1) if top else stretched(v) for v in values]
    if len(greys) == 1:
        return np.repeat(greys[0][..., np.newaxis], 3, axis=-1)
    greys += [np.zeros_like(greys[0])] * (3 - len(greys))
    return np.stack(greys, axis=-1)


def _most(volume: Volume) -> float:
    """The stored value of probability 1."""
    return float(np.iinfo(volume.dtype).max) if volume.dtype.kind in "ui" else 1.0


def _lay_over(colours: NDArray[np.float32], over: Shown, plane: Box, step: int, zoom: int) -> None:
    """Labels as outlines, a probability as a transparent colour; of several classes the most probable one."""
    probable = over.kind == "probabilities" or over.volume.dtype.kind == "f"
    values = over.read(plane, step, None, mean=probable)
    if probable and len(values) == 1:
        share = np.clip(np.nan_to_num(values[0].astype(np.float32)) / _most(over.volume), 0, 1)
        opacity = OPACITY * enlarged(share, zoom)[..., np.newaxis]
        colours *= 1 - opacity
        colours += opacity * np.array(HEAT, np.float32)
        return
    labels = enlarged(values.argmax(axis=0) if probable else values[0], zoom)
    edge = outlines(labels, dots=min(zoom, 2))
    colours[edge] = label_colours(labels[edge])


def _scale_bar(volume: Volume, pixels_per_dot: float, width: int) -> tuple[float, str] | None:
    """Length in dots, and what it says; about a fifth of the width. None where no voxel size is stated."""
    size, unit = stated_sizes(volume).get("x", (0.0, ""))
    if not size > 0:
        return None
    per_dot = size * pixels_per_dot
    length = round_length(per_dot * width / 5)
    short = {"nanometer": "nm", "micrometer": "µm", "millimeter": "mm", "angstrom": "Å"}.get(unit, unit)
    return length / per_dot, f"{length:g} {short}".strip()
