"""Evaluation as a step of the engine: blocks are counted, and their counts are stored until all are complete."""

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
from unetcli.core.errors import UnetcliError, counted
from unetcli.core.files import Place, parse_place
from unetcli.core.process import cpu_threads
from unetcli.core.streams import ordered_map
from unetcli.engine.levels import Tables, damaged
from unetcli.engine.run import require_no_workers
from unetcli.engine.runfolder import EVALUATE, RunFolder, remove_run_folder
from unetcli.engine.step import BlockResult, Change, Resources, Step, StepPaths, try_block
from unetcli.engine.verify import OTHER
from unetcli.evaluate.blocks import BlockCounter
from unetcli.evaluate.counting import Arrays, Counts, total_counts
from unetcli.evaluate.plan import FORMAT, EvaluationPlan, Pair
from unetcli.evaluate.request import EvaluateRequest
from unetcli.planning.plan import Stage
from unetcli.volumes.samples import fingerprint, same_data
from unetcli.volumes.volume import describe

log = logging.getLogger(__name__)

BASE_BYTES, VOXEL_BYTES = 2**30, 128
"""Memory of a process, and additional memory per voxel of each block in progress, in bytes."""
VOXELS_PER_JOB = {True: 10**8, False: 10**10}
"""Voxels that take a few minutes on one core, with em (True) and without."""


@dataclass(frozen=True, kw_only=True)
class EvaluationPaths(StepPaths):
    """Paths of the data, and threads: what a worker needs in addition to the plan."""

    prediction: str
    truth: str
    mask: str | None
    threads: int | None
    """Threads of a worker; None: as many as the process may use."""


@dataclass(frozen=True, kw_only=True)
class EvaluateStep(Step):
    """Step with one stage: count each block and store the counts in the run folder."""

    FORMAT = FORMAT
    command = EVALUATE
    repairable = False
    replaces_unreadable_plan = True

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
        """Stored counts of each block."""
        return Tables(self.folder.path / "counts")

    @property
    def own_files(self) -> tuple[Path, ...]:
        return (self.counts.folder,)

    # ---- in a worker

    def data(self, stage: Stage) -> Place:
        return self.folder.path

    def compute(self, blocks: Sequence[int], stopping: Callable[[], bool]) -> Generator[BlockResult]:
        count = BlockCounter(self.plan, self.pair)  # opened before threads start
        threads = self.paths.threads or cpu_threads()
        todo = itertools.takewhile(lambda _: not stopping(), blocks)
        for number, future in ordered_map(count, todo, threads):
            yield try_block(number, lambda n=number, found=future: self._store(n, found.result()))  # type: ignore[misc]

    def _store(self, number: int, counts: Counts) -> BlockResult:
        arrays = counts.to_arrays()
        files = [self.counts.save(number, arrays)]
        return BlockResult(number=number, checksum=digest(arrays), files=files, voxels=self.plan.box(number).size)

    @functools.cached_property
    def pair(self) -> Pair:
        """Prediction and truth, aligned."""
        settings = self.plan.settings
        return Pair.open(
            EvaluateRequest(
                prediction=self.paths.prediction,
                truth=self.paths.truth,
                mask=self.paths.mask,
                kind=settings.kind,
                ignore=settings.ignore,
                classes=settings.values.classes or (),
                background=settings.values.background,
                label_threshold=settings.values.threshold,
                level=settings.level,
                allow_incomplete=True,  # the launcher has checked this and the next
                same_place=True,
            )
        )

    # ---- reading back

    def read_back(self, number: int) -> str:
        return digest(self.counts.load(number))

    @property
    def block_bytes(self) -> int:
        return 16 * math.prod(self.plan.block_shape)  # if every voxel has its own pair of labels

    # ---- in a launcher

    def is_made(self) -> bool:
        return True

    def is_complete(self) -> bool:
        return not self.folder.plan_file.exists()

    def continue_from(self, frozen: EvaluationPlan) -> None:
        """Delete the counts of earlier settings or data."""
        if not is_continuation(frozen, self.plan):
            require_no_workers(self)
            self.folder.clear_run(self.own_files)
            self.folder.publish_plan(self.plan, self.FORMAT)

    def create(self) -> None:
        """Do nothing: the first block creates the folder of counts."""

    def sweep(self) -> None:
        self.counts.sweep()

    def announce(self, found: int) -> None:
        before = f" ({found} already done)" if found else ""
        log.info("%s to count%s; counts are stored in %s", counted(self.plan.blocks, "block"), before, self.folder.path)

    def finish(self) -> Counts:
        """Sum the counts of all blocks, and delete the run folder. The caller holds its lock."""
        total = total_counts(self.plan, self._read_counts())
        names = [path.name for path in (*self.folder.contents, *self.own_files)]
        remove_run_folder(self.folder.path, names)
        return total

    def _read_counts(self) -> Iterator[Counts]:
        """Read the counts of all blocks, in order."""
        for number in range(self.plan.blocks):
            arrays = self.counts.load(number)
            if digest(arrays) != self.ledger.checksum(number):
                raise damaged(number, self.counts.path(number), OTHER)
            yield Counts.from_arrays(arrays)

    def input_changes(self) -> list[Change]:
        """Inputs that have changed since planning; up to 64 chunks of each are compared."""
        plan, paths = self.plan, self.paths
        try:
            now = fingerprint(self.pair.prediction), fingerprint(self.pair.truth)
        except UnetcliError as error:
            return [Change(source="prediction", path=paths.prediction, what=f"cannot be compared: {error}")]
        pairs = zip(("prediction", "truth"), now, (plan.prediction, plan.truth), strict=True)
        changed = [source for source, found, before in pairs if not same_data(before, found)]
        if self.pair.mask and self.pair.mask.fingerprint(plan.region) != plan.mask:
            changed.append("mask")
        return [Change(source=name, path=getattr(paths, name), what="has other values") for name in changed]

    def moved(self, output: Place, device: str | None = None) -> EvaluateStep:
        return replace(self, paths=replace(self.paths, prediction=str(output)))

    def resources(self, asked: Any) -> Resources:
        voxels, at_once = math.prod(self.plan.block_shape), 1 + int(asked.cpus_per_task or 1)
        blocks = max(1, VOXELS_PER_JOB["em" in self.plan.settings.metrics] // voxels)
        return Resources(host_bytes=BASE_BYTES + at_once * VOXEL_BYTES * voxels, blocks=blocks)


def is_continuation(frozen: EvaluationPlan, plan: EvaluationPlan) -> bool:
    """Whether counts of a frozen plan are valid for this one; a chunk that was unreadable then is not a change."""
    volumes = ("prediction", "truth", "mask")
    same = all(same_data(getattr(frozen, name) or "", getattr(plan, name) or "") for name in volumes)
    return same and replace(frozen, **{name: getattr(plan, name) for name in volumes}) == plan


def digest(arrays: Arrays) -> str:
    """Checksum of all arrays and their names, for the receipt."""
    found = Checksum()
    for name in sorted(arrays):
        found.add(np.frombuffer(name.encode(), np.uint8))
        found.add(arrays[name])
    return found.hexdigest()


def folder_of(request: EvaluateRequest) -> RunFolder:
    """Run folder: the one of ``--run-folder``, else next to the store that contains the prediction."""
    if request.run_folder is not None:
        return RunFolder(request.run_folder)
    place = parse_place(request.prediction)
    if not isinstance(place, Path):
        raise UnetcliError(f"{place}: not a local path; name a folder for plan and receipts with --run-folder FOLDER")
    store = next((folder for folder in (place, *place.parents) if folder.suffix == ".zarr"), place)
    return RunFolder.of(store, EVALUATE)
