"""A minimal step of the engine, which writes its input plus one: a template for new steps.

A step consists of a plan (the blocks), paths (where the data are now), and a class that computes a block, reads one
back, creates the output and marks it complete. The engine provides executors, retries, receipts, locks, status, verify
and repair. ``unetcli.registry.STEPS`` registers a step for the commands ``status`` and ``verify``.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import checksum
from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, parse_place
from unetcli.core.geometry import Box
from unetcli.engine.levels import ImageStep
from unetcli.engine.run import RunOptions, RunOutcome, run
from unetcli.engine.runfolder import RunFolder
from unetcli.engine.step import BlockResult, Change, StepPaths, try_block
from unetcli.planning.plan import BlockGrid, Stage
from unetcli.volumes.image import MARKER, ArraySpec, Image, image_attributes
from unetcli.volumes.opening import open_volume
from unetcli.volumes.samples import fingerprint, same_data
from unetcli.volumes.volume import describe

COMMAND = "plus-one"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Blocks that cover the input exactly once; each is one chunk of the output."""

    axes: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    source: str
    """Fingerprint of the input."""

    @property
    def grid(self) -> BlockGrid:
        return BlockGrid(Box.of_shape(self.shape), self.chunks)


@dataclass(frozen=True, kw_only=True)
class Paths(StepPaths):
    source: str
    output: str


@dataclass(frozen=True, kw_only=True)
class PlusOne(ImageStep):
    folder: RunFolder
    plan: Plan
    paths: Paths

    command = COMMAND

    @property
    def output(self) -> Place:
        return parse_place(self.paths.output)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("add", range(self.plan.grid.blocks)),)

    def place(self, number: int) -> str:
        return describe(self.plan.grid.box(number), self.plan.axes)

    def voxels(self, blocks: NDArray[np.bool_]) -> int:
        return self.plan.grid.voxels(blocks)

    def compute(self, blocks: Sequence[int], stopping: Callable[[], bool]) -> Generator[BlockResult]:
        for number in itertools.takewhile(lambda _: not stopping(), blocks):
            yield try_block(number, functools.partial(self._add, number))

    def _add(self, number: int) -> BlockResult:
        box = self.plan.grid.box(number)
        values = self._source.read(box) + np.uint8(1)
        self.image.level.write(self.image.level.open(), box, values)
        files = [*self.image.level.files(box)]
        return BlockResult(number=number, checksum=checksum(values), files=files, voxels=box.size)

    def read_back(self, number: int) -> str:
        return checksum(self.image.level.read(self.image.level.open_to_read(), self.plan.grid.box(number)))

    @property
    def block_bytes(self) -> int:
        return int(np.prod(self.plan.chunks))

    def create(self) -> None:
        if not self.is_made():
            attributes = image_attributes(self.image.spec, self.output, self._source, {})
            self.image.create({**attributes, MARKER: {"complete": False, "kind": COMMAND}})
            self.clear_cache()

    def finish(self) -> None:
        self.mark(self.image, complete=True)

    def reopen(self) -> None:
        self.mark(self.image, complete=False)

    def differences(self, frozen: Plan) -> list[str]:
        return [] if same_data(frozen.source, self.plan.source) else ["the input is different"]

    def input_changes(self) -> list[Change]:
        same = same_data(fingerprint(self._source), self.plan.source)
        return [] if same else [Change(source="input", path=self.paths.source, what="has different values")]

    def moved(self, output: Place, device: str | None = None) -> PlusOne:
        return replace(self, paths=replace(self.paths, output=str(output)))

    @functools.cached_property
    def _source(self):  # type: ignore[no-untyped-def]
        return open_volume(self.paths.source)

    @functools.cached_property
    def image(self) -> Image:
        names = ("axes", "shape", "chunks")
        sizes = {name: getattr(self.plan, name) for name in names} | {"write_chunks": self.plan.chunks}
        return Image(self.output, ArraySpec(**sizes, outputs=1, dtype="uint8", zarr_format=3))


def add_one(
    source: str, output: Path, options: RunOptions | None = None, stopping: Callable[[], bool] = bool
) -> RunOutcome:
    """Resolve the request, then let the engine run the step."""
    volume = open_volume(source)
    if volume.dtype != np.uint8:
        raise UnetcliError(f"{source}: {volume.dtype}; expected uint8")
    plan = Plan(axes=volume.axes, shape=volume.extent, chunks=volume.chunks, source=fingerprint(volume))
    step = PlusOne(folder=RunFolder.of(output, COMMAND), plan=plan, paths=Paths(source=source, output=str(output)))
    return run(step, options or RunOptions(), stopping=stopping)
