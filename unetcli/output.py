"""The volume that predict writes: an OME-Zarr 0.5 image whose chunks appear whole, marked until it is complete."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from unetcli.errors import UnetcliError
from unetcli.files import draft_of, remove_aside, replacing, sync, sync_all
from unetcli.geometry import Box
from unetcli.plan import Plan
from unetcli.volume import Volume

MARKER = "unetcli"
SPATIAL = "zyx"


@dataclass(frozen=True, slots=True)
class Output:
    """The image group at ``path`` of one plan; level 0 is the array ``0``."""

    path: Path
    plan: Plan

    @property
    def level(self) -> Path:
        return self.path / "0"

    @property
    def stored_axes(self) -> str:
        """The volume's axes, and c before the spatial ones where there are several probabilities a voxel."""
        lead = "t" if "t" in self.plan.axes else ""
        channels = "c" if self.plan.choices.outputs > 1 else ""
        return lead + channels + self.plan.axes.removeprefix("t")

    def create(self, source: Volume) -> None:
        """Make the empty image; it appears complete or not at all.

        An output made meanwhile by another launcher stays as it is.
        """
        draft = draft_of(self.path)
        zarr.create_array(
            draft / "0",
            shape=self._with_channels(self.plan.region.shape, self.plan.choices.outputs),
            chunks=self._with_channels(self.plan.write_chunks, 1),
            dtype=self.plan.choices.dtype,
            compressors=ZstdCodec(level=3, checksum=True),
            dimension_names=list(self.stored_axes),
            zarr_format=3,
        )
        zarr.open_group(draft, mode="a", zarr_format=3, attributes=self._attributes(source))
        sync_all([draft / "0" / "zarr.json", draft / "zarr.json"], draft)
        try:
            os.rename(draft, self.path)  # fails on a folder that holds something
            sync(self.path.absolute().parent)
        except OSError:
            remove_aside(draft)
            if marker(self.path) is None:
                raise

    def open(self) -> zarr.Array[Any]:
        """The array, for writing."""
        return zarr.open_array(self.level, mode="r+")

    def write(self, array: zarr.Array[Any], box: Box, values: NDArray[Any]) -> None:
        """Store ``(outputs, *box.shape)`` at a box (output coordinates) that covers whole chunks."""
        lead = 1 if "t" in self.plan.axes else 0
        if self.plan.choices.outputs == 1:
            array[box.slices] = values[0]
        else:
            array[(*box.slices[:lead], slice(None), *box.slices[lead:])] = np.moveaxis(values, 0, lead)

    def read(self, box: Box) -> NDArray[Any]:
        """What is stored at a box (output coordinates), ``(outputs, *box.shape)``."""
        lead = 1 if "t" in self.plan.axes else 0
        array = zarr.open_array(self.level, mode="r")
        if self.plan.choices.outputs == 1:
            return np.asarray(array[box.slices])[np.newaxis]
        return np.moveaxis(np.asarray(array[(*box.slices[:lead], slice(None), *box.slices[lead:])]), lead, 0)

    def files(self, box: Box) -> Iterator[Path]:
        """The chunk files of a box, in output coordinates; those of chunks that are all zero do not exist."""
        ranges = [
            range(a // chunk, -(-b // chunk))
            for a, b, chunk in zip(box.start, box.stop, self.plan.write_chunks, strict=True)
        ]
        channels = range(self.plan.choices.outputs)
        for place in itertools.product(*ranges):
            for channel in channels:
                yield self.level.joinpath("c", *map(str, self._with_channels(place, channel)))

    def mark_complete(self) -> None:
        """Say in the group's metadata that every block is there."""
        self._mark(complete=True)

    def mark_incomplete(self) -> None:
        """Say in the group's metadata that blocks are missing, or made anew."""
        self._mark(complete=False)

    def _mark(self, *, complete: bool) -> None:
        document = json.loads((self.path / "zarr.json").read_text())
        document["attributes"][MARKER]["complete"] = complete
        with replacing(self.path / "zarr.json") as draft:
            draft.write_text(json.dumps(document, indent=2))

    def _with_channels(self, values: tuple[int, ...], channels: int) -> tuple[int, ...]:
        """Per-axis values in stored order, with that of the channel axis where there is one."""
        picks = dict(zip(self.plan.axes, values, strict=True)) | {"c": channels}
        return tuple(picks[axis] for axis in self.stored_axes)

    def _attributes(self, source: Volume) -> dict[str, Any]:
        sizes = {axis: source.voxel_size.get(axis, 1.0) for axis in self.plan.axes} | {"c": 1.0}
        starts = {
            axis: source.translation.get(axis, 0.0) + first * sizes[axis]
            for axis, first in zip(self.plan.axes, self.plan.region.start, strict=True)
        } | {"c": 0.0}
        transforms = [
            {"type": "scale", "scale": [sizes[axis] for axis in self.stored_axes]},
            {"type": "translation", "translation": [starts[axis] for axis in self.stored_axes]},
        ]
        image = {
            "name": self.path.name.removesuffix(".zarr"),
            "axes": [_axis(axis, source.units.get(axis)) for axis in self.stored_axes],
            "datasets": [{"path": "0", "coordinateTransformations": transforms}],
        }
        return {"ome": {"version": "0.5", "multiscales": [image]}, MARKER: self._marker()}

    def _marker(self) -> dict[str, Any]:
        return {
            "complete": False,
            "kind": "probabilities",
            "outputs": self.plan.choices.outputs,
            "extent": list(self.plan.extent),
            "region": [[a, b] for a, b in zip(self.plan.region.start, self.plan.region.stop, strict=True)],
            "model": self.plan.sources.model_fingerprint,
        }


def marker(path: Path) -> dict[str, Any] | None:
    """What a group says of itself if unetcli wrote it, else None."""
    try:
        found: dict[str, Any] | None = json.loads((path / "zarr.json").read_text())["attributes"][MARKER]
    except (OSError, KeyError, ValueError):
        return None
    return found


def marker_around(path: Path) -> dict[str, Any] | None:
    """The marker of a group, or of the group that an array lies in."""
    return marker(path) or marker(path.parent)


def require_ours(path: Path) -> None:
    """Raise :class:`UnetcliError` unless ``path`` is free or a prediction of ours: nothing else is ever replaced."""
    if path.exists() and marker(path) is None and not (path.is_dir() and not any(path.iterdir())):
        raise UnetcliError(f"{path}: exists and was not written by unetcli predict; --output names another place")


def _axis(name: str, unit: str | None) -> dict[str, str]:
    kind = "space" if name in SPATIAL else {"t": "time", "c": "channel"}[name]
    return {"name": name, "type": kind} | ({"unit": unit} if unit else {})
