"""The step of evaluate: blocks are counted, and their counts kept until all are there."""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import Checksum
from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, parse_place
from unetcli.core.process import cpu_threads
from unetcli.core.streams import ordered_map
from unetcli.engine.levels import Tables, damaged
from unetcli.engine.run import require_nobody_at_work
from unetcli.engine.runfolder import EVALUATE, RunFolder, remove_run_folder
from unetcli.engine.step import BlockResult, Change, Resources, Step, StepPaths, attempt
from unetcli.engine.verify import OTHER
from unetcli.evaluate.counting import Arrays, Counts, count_block, total_counts
from unetcli.evaluate.plan import FORMAT, EvaluationPlan, Pair
from unetcli.evaluate.request import EvaluateRequest
from unetcli.planning.plan import Stage
from unetcli.volumes.volume import describe, fingerprint, same_data

log = logging.getLogger(__name__)

BASE_BYTES, VOXEL_BYTES = 2**30, 128
"""Memory of a process, and of each voxel of a block that is counted."""
VOXELS_PER_JOB = {True: 10**8, False: 10**10}
"""Some minutes of work on one core, with em and without."""


@dataclass(frozen=True, kw_only=True)
class EvaluationPaths(StepPaths):
    """Where the data of an evaluation lie: what a worker needs beside the plan."""

    prediction: str
    truth: str
    mask: str | None
    threads: int | None
    """Threads of a worker. Default: as many as it may use."""


@dataclass(frozen=True, kw_only=True)
class EvaluateStep(Step):
    """One stage: the counts of each block, in the run folder."""

    FORMAT = FORMAT
    command = EVALUATE
    repairable = False
    begins_anew = True

    folder: RunFolder
    plan: EvaluationPlan
    paths: EvaluationPaths

    @property
    def output(self) -> Place:
        return parse_place(self.paths.prediction)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("count", range(self.plan.blocks)),)

    def place(self, number: int) -> str:
        return describe(self.plan.box(number), self.plan.axes)

    def voxels(self, blocks: NDArray[np.bool_]) -> int:
        return self.plan.grid.voxels(blocks)

    @property
    def writes_from(self) -> int:
        return self.plan.blocks

    @property
    def counts(self) -> Tables:
        """The counts of each block."""
        return Tables(self.folder.path / "counts")

    @property
    def own_files(self) -> tuple[Path, ...]:
        return (self.counts.folder,)

    # ---- in a worker

    def data(self, stage: Stage) -> Place:
        return self.folder.path

    def compute(self, blocks: Sequence[int], stopping: Callable[[], bool]) -> Generator[BlockResult]:
        pair = self.pair  # opened before threads are
        threads = self.paths.threads or cpu_threads()
        todo = itertools.takewhile(lambda _: not stopping(), blocks)
        for number, future in ordered_map(lambda n: count_block(self.plan, pair, n), todo, threads):
            yield attempt(number, lambda n=number, found=future: self._store(n, found.result()))  # type: ignore[misc]

    def _store(self, number: int, counts: Counts) -> BlockResult:
        arrays = counts.to_arrays()
        files = [self.counts.save(number, arrays)]
        return BlockResult(number=number, checksum=digest(arrays), files=files, voxels=self.plan.box(number).size)

    @functools.cached_property
    def pair(self) -> Pair:
        """Prediction and truth, side by side."""
        settings = self.plan.settings
        return Pair.open(
            EvaluateRequest(
                prediction=self.paths.prediction,
                truth=self.paths.truth,
                mask=self.paths.mask,
                ignore=settings.ignore,
                level=settings.level,
                allow_incomplete=True,  # the launcher has asked
            )
        )

    # ---- reading back

    def read_back(self, number: int) -> str:
        return digest(self.counts.load(number))

    @property
    def block_bytes(self) -> int:
        return 16 * math.prod(self.plan.block_shape)  # where every voxel is another pair of labels

    # ---- in a launcher

    def is_made(self) -> bool:
        return True

    def is_complete(self) -> bool:
        return not self.folder.plan_file.exists()

    def continue_from(self, frozen: EvaluationPlan) -> None:
        """Drop what was counted for other settings."""
        if not continues(frozen, self.plan):
            require_nobody_at_work(self)
            self.folder.clear_run(self.own_files)
            self.folder.publish_plan(self.plan, self.FORMAT)

    def create(self) -> None:
        """The counts are made with the first block."""

    def sweep(self) -> None:
        self.counts.sweep()

    def announce(self, found: int) -> None:
        before = f" ({found} found done)" if found else ""
        log.info("%d blocks to count%s; what is counted is kept in %s", self.plan.blocks, before, self.folder.path)

    def finish(self) -> Counts:
        """The counts of everything; the run folder is deleted then. The caller holds its lock."""
        total = total_counts(self.plan, self._read_counts())
        names = [path.name for path in (*self.folder.contents, *self.own_files)]
        remove_run_folder(self.folder.path, names)
        return total

    def _read_counts(self) -> Iterator[Counts]:
        """Counts of all blocks, in order."""
        for number in range(self.plan.blocks):
            arrays = self.counts.load(number)
            if digest(arrays) != self.ledger.checksum(number):
                raise damaged(number, self.counts.path(number), OTHER)
            yield Counts.from_arrays(arrays)

    def input_changes(self) -> list[Change]:
        """Whether prediction and truth are still the same; up to 64 chunks of each are looked at."""
        plan, paths = self.plan, self.paths
        try:
            now = fingerprint(self.pair.prediction), fingerprint(self.pair.truth)
        except UnetcliError as error:
            return [Change(source="prediction", path=paths.prediction, what=f"cannot be compared: {error}")]
        pairs = zip(("prediction", "truth"), now, (plan.prediction, plan.truth), strict=True)
        changed = [source for source, found, before in pairs if not same_data(before, found)]
        if self.pair.mask and self.pair.mask.fingerprint(plan.region) != plan.mask:
            changed.append("mask")
        return [Change(source=name, path=getattr(paths, name), what="holds other values") for name in changed]

    def moved(self, output: Place, device: str | None = None) -> EvaluateStep:
        return replace(self, paths=replace(self.paths, prediction=str(output)))

    def resources(self, asked: Any) -> Resources:
        voxels, at_once = math.prod(self.plan.block_shape), 1 + int(asked.cpus_per_task or 1)
        blocks = max(1, VOXELS_PER_JOB["em" in self.plan.settings.metrics] // voxels)
        return Resources(host_bytes=BASE_BYTES + at_once * VOXEL_BYTES * voxels, blocks=blocks)


def continues(frozen: EvaluationPlan, plan: EvaluationPlan) -> bool:
    """Whether what was counted by a frozen plan counts for this one: a chunk that was unreadable then is no change."""
    volumes = ("prediction", "truth", "mask")
    same = all(same_data(getattr(frozen, name) or "", getattr(plan, name) or "") for name in volumes)
    return same and replace(frozen, **{name: getattr(plan, name) for name in volumes}) == plan


def digest(arrays: Arrays) -> str:
    """Checksum of all values, as a receipt has it."""
    found = Checksum()
    for name in sorted(arrays):
        found.add(arrays[name])
    return found.hexdigest()


def folder_of(request: EvaluateRequest) -> RunFolder:
    """The run folder that the user names, else the one beside the store that the prediction lies in."""
    if request.run_folder is not None:
        return RunFolder(request.run_folder)
    place = parse_place(request.prediction)
    if not isinstance(place, Path):
        raise UnetcliError(f"{place}: --run-folder FOLDER names a place on this file system for plan and receipts")
    store = next((folder for folder in (place, *place.parents) if folder.suffix == ".zarr"), place)
    return RunFolder.of(store, EVALUATE)
