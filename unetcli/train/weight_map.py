"""The image of a weight map: written under a draft's name, and under its own once all of it is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import PARTIAL, is_remote, plain, remove_aside
from unetcli.core.geometry import Box
from unetcli.core.lock import Holder
from unetcli.volumes import ngff
from unetcli.volumes.image import MARKER, marker
from unetcli.volumes.level import Level
from unetcli.volumes.store import LocalStore, Store
from unetcli.volumes.volume import Volume

KIND = "weights"
CHUNK = 512
WRITER = "writer.json"
"""In a draft: who writes it, so that a dead one's is known for what it is."""

Write = Callable[[Box, NDArray[np.float32]], None]
"""Stores a window of one section, in coordinates of the labels."""


@dataclass(frozen=True, slots=True)
class WeightMap:
    """An OME-Zarr image of float32 for sections of a label volume, with its axes and voxel size."""

    path: Path
    labels: Volume
    sections: tuple[int, int]

    @classmethod
    def at(cls, place: str, labels: Volume, sections: tuple[int, int]) -> WeightMap:
        if is_remote(plain(place)):
            raise UnetcliError(f"--output {place}: a weight map is written to a folder here")
        return cls(Path(plain(place)), labels, sections)

    @property
    def region(self) -> Box:
        """The sections that it covers."""
        return self.labels.sections(*self.sections)

    @property
    def picture(self) -> Path:
        """The picture beside it."""
        return self.path.with_name(f"{self.path.name.removesuffix('.zarr')}.png")

    def require_free(self, *, overwrite: bool) -> None:
        """Refuse a place that holds something else, or a weight map that is not to be replaced, or one in no folder."""
        if not self.path.parent.is_dir():
            raise UnetcliError(f"--output {self.path}: no folder {self.path.parent}; make it first")
        if LocalStore(self.path).is_free():
            if self.picture.exists():  # whose it is nothing tells
                raise UnetcliError(f"{self.picture}: exists without its weight map; --output names another place")
            return
        if (found := marker(self.path)) is None or found.get("kind") != KIND:
            raise UnetcliError(
                f"{self.path}: exists and was not written by unetcli weights; --output names another place"
            )
        if not overwrite:
            raise UnetcliError(f"{self.path}: exists; --overwrite writes it anew, --output names another place")

    def publish(self, told: Mapping[str, Any], fill: Callable[[Write], None]) -> None:
        """Make the image with all that ``fill`` stores, in place of an earlier weight map.

        Killed at any time, nothing is left under the image's name; the next call removes the draft.
        """
        self._sweep()

        def make(store: Store) -> None:
            store.replace_text(WRITER, json.dumps(asdict(Holder.myself())))
            level = self._level(store)
            level.create(store)
            array = level.open()
            fill(lambda box, w: level.write(array, box.relative_to(self.region), w.reshape(1, *box.shape)))
            for name, text in ngff.documents(self._attributes(told), level.zarr_format).items():
                store.replace_text(name, text)
            Path(store.place, WRITER).unlink()
            self.require_free(overwrite=True)
            remove_aside(self.path)

        LocalStore(self.path).publish(make)

    def _level(self, store: Store) -> Level:
        shape = self.region.shape
        chunks = (1,) * (len(shape) - 2) + tuple(min(n, CHUNK) for n in shape[-2:])
        return Level(
            store=store,
            name="0",
            axes=self.labels.axes,
            shape=shape,
            chunks=chunks,
            write_chunks=chunks,
            outputs=1,
            dtype="float32",
            zarr_format=3,
        )

    def _attributes(self, told: Mapping[str, Any]) -> dict[str, Any]:
        axes, first = self.labels.axes, dict(zip(self.labels.axes, self.region.start, strict=True))
        sizes = {axis: self.labels.voxel_size.get(axis, 1.0) for axis in axes}
        starts = {axis: self.labels.translation.get(axis, 0.0) + first[axis] * sizes[axis] for axis in axes}
        grid = ngff.Grid(scale=sizes, translation=starts)
        image = ngff.image(self.path.name.removesuffix(".zarr"), axes, self.labels.units, [grid])
        ours = {
            "complete": True,
            "kind": KIND,
            "extent": list(self.labels.extent),
            "region": [[a, b] for a, b in zip(self.region.start, self.region.stop, strict=True)],
        }
        return {**ngff.attributes(image, 3), MARKER: {**ours, **told}}

    def _sweep(self) -> None:
        """Remove drafts whose writer has provably ended."""
        for draft in self.path.parent.glob(f"*{PARTIAL}"):
            if draft.name.startswith(f"{self.path.name}.") and _is_dead(draft / WRITER):
                remove_aside(draft)


def _is_dead(writer: Path) -> bool:
    try:
        return Holder(**json.loads(writer.read_text())).is_gone()
    except (OSError, ValueError, TypeError):
        return False
