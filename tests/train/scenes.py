"""Small annotated volumes to train on, in memory and on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from helpers import grey, write_zarr
from numpy.typing import NDArray

from unetcli.core.process import Signals
from unetcli.model.file import load_network
from unetcli.train.border import border_weights, cells_of
from unetcli.train.dataset import AnnotatedVolume, Dataset, Part
from unetcli.train.request import TrainRequest
from unetcli.train.sampling import Sampler
from unetcli.train.settings import Augmentation, Ranges, TruthRules
from unetcli.volumes.volume import Volume

if TYPE_CHECKING:  # tests without torch import this module too
    import pytest
    import torch

TURNS = replace(Augmentation.none(), flip=True)
"""Samples are mirrored and not changed otherwise."""


def volume(values: Any, axes: str | None = None, path: str = "labels.zarr", **more: Any) -> Volume:
    return Volume(path=path, array=values, stored_axes=axes or "tzyx"[-len(values.shape) :], **more)


def annotated(
    raw: Any, labels: Any, axes: str | None = None, channel: int | None = None, **rules: Any
) -> AnnotatedVolume:
    """Pair of images and labels; by default the labels are classes, and there is no border weight."""
    axes = axes or "tzyx"[-len(raw.shape) :]
    volumes = volume(raw, axes, "raw.zarr"), volume(labels, axes.replace("c", ""))
    return AnnotatedVolume.buffered(*volumes, TruthRules(**{"truth": "classes", "w0": 0.0, **rules}), channel)


def dataset(
    *pairs: AnnotatedVolume, train: Ranges | None = None, held_out: Ranges | None = None, keep_empty: bool = False
) -> Dataset:
    """Dataset of pairs; by default all sections are trained on."""
    counts = [1 if (axis := pair.raw.section_axis) is None else pair.raw.extent[axis] for pair in pairs]
    everything = tuple((0, count) for count in counts)
    nothing = tuple((0, 0) for _ in counts)
    return Dataset.of_sections(pairs, train or everything, held_out or nothing, keep_empty=keep_empty)


def region(pair: AnnotatedVolume, box: Any) -> Dataset:
    """Dataset that trains on one region of a pair."""
    return Dataset((pair,), (Part(0, box),), (), keep_empty=True)


def sampler(dataset: Dataset, tile: int, output: int, seed: int = 0, augmentation: Augmentation = TURNS) -> Sampler:
    return Sampler(dataset, tile, output, augmentation, seed)


def border_of(labels: NDArray[Any], classes: NDArray[np.uint8], rules: TruthRules) -> NDArray[np.float32]:
    """Border weight of each pixel of a label map."""
    return border_weights(cells_of(labels, classes, rules), classes, rules)


def write_discs(folder: Path) -> None:
    """Write eight sections of bright discs to ``raw.zarr`` and ``labels.zarr``."""
    raw, labels = discs()
    write_zarr(folder / "labels.zarr", labels)
    write_zarr(folder / "raw.zarr", raw)


def discs() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    disc = np.hypot(*np.ogrid[-30:34, -40:32]) < 16
    labels = np.stack([np.roll(disc, 3 * k, 1) for k in range(8)]).astype(np.uint8)
    return (labels * 90 + grey(*labels.shape) // 4).astype(np.uint8), labels


TINY = TrainRequest(
    pair=(("raw.zarr", "labels.zarr"),),
    recipe="paper",
    steps=30,
    depth=1,
    base_channels=8,
    tile=44,
    optimizer="adam",
    lr=0.01,
    device="cpu",
    precision="float32",
)
"""Request to train on ``write_discs``: 5,000 parameters, about 4 ms per step."""


def leave_pictures_out(patch: pytest.MonkeyPatch) -> None:
    """Do not draw samples and curves, which takes longer than a training of some steps."""
    for name in ("unetcli.train.loop.draw_first_samples", "unetcli.viz.png.draw_curves"):
        patch.setattr(name, lambda *_: None)


def contents(place: Path) -> dict[str, bytes]:
    return {str(f.relative_to(place)): f.read_bytes() for f in place.rglob("*") if f.is_file()}


def log_rows(folder: str = "model") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "log.jsonl").read_text().splitlines()]


class Stop(Signals):
    """Signals that ask to stop after some steps."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def stopping(self) -> bool:
        self.left -= 1
        return self.left < 0


def weights(folder: str = "model") -> dict[str, torch.Tensor]:
    return load_network(Path(folder) / "model.safetensors").state_dict()


def state(folder: str = "model") -> dict[str, torch.Tensor]:
    from unetcli.train.folder import Checkpoint

    return Checkpoint.load(Path(folder) / "checkpoint.pt").network


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    import torch

    return all(torch.equal(one[name], other[name]) for name in one | other)
