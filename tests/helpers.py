"""Helpers for tests: small models with random weights, volumes, plans and outputs."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from unetcli.core.geometry import Architecture, Box
from unetcli.engine.levels import Pyramid
from unetcli.engine.receipts import Receipt
from unetcli.model.file import Intensity, ModelHeader, save_model
from unetcli.planning.plan import Plan, Settings, Sources
from unetcli.planning.pyramid_plan import pyramid_of
from unetcli.predict.stores import attributes_of, spec_of
from unetcli.volumes.image import Image
from unetcli.volumes.volume import Volume

SETTINGS = Settings(
    dtype="uint8",
    outputs=1,
    channel=None,
    normalise="model",
    mean=100.0,
    std=50.0,
    nonfinite=None,
    device="cpu",
    precision="float32",
    threads=1,
)
SOURCES = Sources(volume="/in.zarr", volume_fingerprint="v", model="/model.safetensors", model_fingerprint="m")


PEAK = """
def peak():
    '''Peak memory of this process in bytes, unlike getrusage without that of the parent it was forked from.'''
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
"""


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until the condition holds.

    Raises
    ------
    TimeoutError
        The condition did not hold within ``seconds``; the message quotes the line that waited.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            waiting = traceback.extract_stack(limit=2)[0]
            raise TimeoutError(f"after {seconds:g} s still in {waiting.filename}:{waiting.lineno}: {waiting.line}")
        time.sleep(0.01)


def write_model(folder: Path, *, dtype: str = "uint8", mean: float = 100.0, std: float = 50.0, **sizes: Any) -> Path:
    """Write a model with seeded random weights, by default a tiny one, and return its file."""
    import torch

    from unetcli.model.network import UNet

    torch.manual_seed(7)
    architecture = Architecture(**{"depth": 2, "base_channels": 4, **sizes})
    folder.mkdir(parents=True, exist_ok=True)
    header = ModelHeader(
        architecture=architecture,
        class_names=tuple(f"class {k}" for k in range(architecture.classes)),
        intensity=Intensity(dtype=dtype, mean=mean, std=std),
        provenance={},
    )
    save_model(folder / "model.safetensors", UNet(architecture), header)
    return folder / "model.safetensors"


def write_zarr(path: Path, values: NDArray[Any], chunks: tuple[int, ...] | None = None, **options: Any) -> Path:
    """Write a plain Zarr array, by default of format v3."""
    array = zarr.create_array(path, shape=values.shape, dtype=values.dtype, chunks=chunks or values.shape, **options)
    array[...] = values
    return path


def write_placed(path: Path, values: NDArray[Any], origin: tuple[float, ...] | None, unit: str = "nanometer") -> Path:
    """Write an OME-Zarr image of voxels of 50 x 4 x 4 nm; its first voxel lies at ``origin`` nm, if that is stated."""
    by = {"nanometer": 1, "micrometer": 1000}[unit]
    transforms: list[dict[str, Any]] = [{"type": "scale", "scale": [50 / by, 4 / by, 4 / by]}]
    if origin is not None:
        transforms.append({"type": "translation", "translation": [place / by for place in origin]})
    axes = [{"name": axis, "type": "space", "unit": unit} for axis in "zyx"]
    entry = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": transforms}]}
    group = zarr.create_group(path, attributes={"ome": {"version": "0.5", "multiscales": [entry]}}, overwrite=True)
    group.create_array("0", data=values, chunks=values.shape)
    return path


def grey(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random grey values."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def plan_of(region: Box, **changes: Any) -> Plan:
    """Plan for a network of depth 2 (context 20, alignment 4) with small chunks and blocks, and with given changes."""
    dimensions = len(region.shape)
    lead = (1,) * (dimensions - 2)
    values: dict[str, Any] = {
        "axes": "tzyx"[-dimensions:],
        "extent": region.stop,
        "region": region,
        "footprint": Architecture(depth=2).footprint().expanded_to(dimensions),
        "tile": (*lead, 60, 60),
        "chunks": changes.get("write_chunks", (*lead, 8, 8)),
        "write_chunks": (*lead, 8, 8),
        "zarr_format": 3,
        "block_shape": (*lead, 24, 40),
        "settings": SETTINGS,
        "sources": SOURCES,
    }
    return Plan(**{**values, **changes})


class Output:
    """The image of a plan's probabilities, created, written and completed as by a prediction."""

    def __init__(self, path: Path | str, plan: Plan) -> None:
        self.path, self.plan = path, plan
        self.image = Image(path, spec_of(plan))
        self.store, self.level = self.image.store, self.image.level

    def create(self, source: Volume) -> None:
        self.image.create(attributes_of(self.plan, self.path, source))

    def open(self) -> zarr.Array[Any]:
        return self.level.open()

    def write(self, array: zarr.Array[Any], box: Box, values: NDArray[Any]) -> None:
        self.level.write(array, box, values)

    def read(self, box: Box) -> NDArray[Any]:
        return self.level.read(self.level.open_to_read(), box)

    def files(self, box: Box) -> Iterator[Path]:
        return self.level.files(box)

    def attributes(self) -> dict[str, Any]:
        return self.image.attributes()

    def mark_complete(self) -> None:
        self.image.mark(complete=True)


def write_prediction(
    path: Path | str, values: NDArray[Any], chunks: tuple[int, ...], levels: int = 1, **changes: Any
) -> Path | str:
    """Write a complete output of predict with ``values``: (t,) (z,) y, x, optionally with a leading axis of classes."""
    axes = changes.pop("axes", "tzyx"[-len(chunks) :])
    stored = values if values.ndim > len(chunks) else values[np.newaxis]
    region = Box.of_shape(stored.shape[1:])
    settings = replace(SETTINGS, dtype=str(values.dtype), outputs=len(stored))
    shards = changes.pop("shards", chunks)
    plan = plan_of(
        region, axes=axes, settings=settings, chunks=chunks, write_chunks=shards, block_shape=shards, **changes
    )
    output = Output(path, plan)
    output.create(Volume(path="in", array=np.zeros(plan.extent, np.uint8), stored_axes=axes, voxel_size={"z": 2.0}))
    array = output.open()
    output.write(array, region, stored)
    pyramid = Pyramid(output.image, pyramid_of(replace(plan, levels=levels)))
    pyramid.create()
    for number in range(pyramid.plan.blocks):
        pyramid.build(number)
    pyramid.publish()
    output.mark_complete()
    return path


def read_receipts(folder: Path) -> Iterator[Receipt]:
    """Every receipt of a run, in no particular order. Lines that a crash left incomplete are skipped."""
    for path in sorted(folder.glob("*.txt")):
        with path.open(errors="replace") as lines:
            whole = (line for line in lines if line.endswith("\n"))
            yield from filter(None, map(Receipt.from_line, whole))
