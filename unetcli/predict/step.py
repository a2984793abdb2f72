"""The step of ``predict``: first the probabilities of every block, then the coarser levels of the output."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from unetcli.core.arrays import checksum
from unetcli.core.errors import UnetcliError, counted, listed
from unetcli.core.files import Place, parse_place
from unetcli.core.streams import ordered_map, prefetch
from unetcli.engine.levels import ImageStep, Pyramid, halved, nearest, place
from unetcli.engine.run import require_no_workers
from unetcli.engine.runfolder import PREDICT, RunFolder
from unetcli.engine.step import BlockResult, Change, Resources, require_continued, try_block
from unetcli.engine.worker import void
from unetcli.model.file import load_network, read_header, read_model
from unetcli.model.training_data import common_objects
from unetcli.planning.estimate import wasted_work
from unetcli.planning.plan import FORMAT, Plan, Stage, differences
from unetcli.planning.planner import ITEM_BYTES
from unetcli.planning.pyramid_plan import PyramidPlan, pyramid_of
from unetcli.predict.checks import single_class
from unetcli.predict.skipping import Mask, open_mask
from unetcli.predict.stores import Paths, attributes_of, input_changes, is_planned, require_planned_models, spec_of
from unetcli.volumes.image import Image, label_names
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume, describe

if TYPE_CHECKING:
    from unetcli.predict.predictor import Predictor
    from unetcli.predict.windows import FinishedBlock
log = logging.getLogger(__name__)

MANY = 1000
"""If more blocks are missing, all levels are computed again instead of only the affected parts."""


@dataclass(frozen=True, kw_only=True)
class PredictStep(ImageStep):
    """Prediction of a volume; blocks of full resolution are numbered as in the plan, those of coarser levels follow."""

    FORMAT = FORMAT
    command = PREDICT

    folder: RunFolder
    plan: Plan
    paths: Paths

    # ---- blocks and stages

    @property
    def output(self) -> Place:
        return parse_place(self.paths.output)

    @functools.cached_property
    def levels(self) -> PyramidPlan:
        return pyramid_of(self.plan)

    @functools.cached_property
    def stages(self) -> tuple[Stage, ...]:
        n = self.plan.blocks
        coarser = (
            Stage(f"level {stage.base + 1}", range(n + stage.blocks.start, n + stage.blocks.stop))
            for stage in self.levels.stages
        )
        return (Stage(PREDICT, range(n)), *coarser)

    def place(self, number: int) -> str:
        n = self.plan.blocks
        return place(self.levels, number - n) if number >= n else describe(self.plan.grid.box(number), self.plan.axes)

    def voxels(self, blocks: NDArray[np.bool_]) -> int:
        n = self.plan.blocks
        return self.plan.grid.voxels(blocks[:n]) + self.levels.voxels(blocks[n:])

    @property
    def levels_from(self) -> int:
        return self.plan.blocks

    # ---- data

    @functools.cached_property
    def source(self) -> Volume:
        return open_volume(self.paths.volume, parts=True)

    @functools.cached_property
    def mask(self) -> Mask | None:
        given = self.paths.mask if self.plan.settings.mask else None
        return open_mask(given, self.source, self.plan.footprint)

    @functools.cached_property
    def wasted_work(self) -> float:
        """Extra multiply-adds of the tiles; see :func:`unetcli.planning.estimate.wasted_work`."""
        return wasted_work(self.plan, read_header(Path(self.paths.model)).architecture)

    @functools.cached_property
    def image(self) -> Image:
        return Image(self.output, spec_of(self.plan))

    @functools.cached_property
    def pyramid(self) -> Pyramid:
        return Pyramid(self.image, self.levels, nearest if self.plan.settings.output_classes else halved)

    @functools.cached_property
    def _written(self) -> zarr.Array[Any]:
        return self.image.level.open()

    @functools.cached_property
    def _stored(self) -> zarr.Array[Any]:
        return self.image.level.open_to_read()

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The network on its device.

        Raises
        ------
        UnetcliError
            This machine lacks the device or precision of the plan, and would compute other results.
        """
        from unetcli.model.network import exact_float32, require_precision, resolve_device
        from unetcli.predict.predictor import Predictor

        settings = self.plan.settings
        try:
            device = resolve_device(self.paths.device or settings.device)
            require_precision(device, settings.precision)
        except UnetcliError as error:
            raise UnetcliError(f"host {socket.gethostname()}: {error}") from error
        exact_float32()
        return Predictor([load_network(Path(model)) for model in self.paths.models], settings, device)

    def predict(self, blocks: Iterable[int], stopping: Callable[[], bool] = bool) -> Generator[FinishedBlock]:
        """Predict blocks without storing them; see :func:`unetcli.predict.predictor.predict_blocks`."""
        from unetcli.predict.predictor import predict_blocks  # torch

        return predict_blocks(self.plan, self.predictor, self.source, blocks, stopping, self.mask)

    # ---- in a worker

    def compute(self, blocks: Sequence[int], stopping: Callable[[], bool]) -> Generator[BlockResult]:
        if blocks[0] >= self.plan.blocks:
            yield from self._coarser(blocks, stopping)
            return
        from unetcli.predict.checks import require_same_results  # torch

        if "predictor" not in vars(self):  # the models are loaded once
            require_planned_models(self.plan, self.paths)
        require_same_results(self)
        with closing(self.predict(blocks, stopping)) as finished:
            yield from self._stored_in_order(finished)

    def _stored_in_order(self, finished: Iterable[FinishedBlock]) -> Iterator[BlockResult]:
        """Store blocks, in several threads if the network runs on a GPU."""
        from unetcli.predict.predictor import io_threads  # torch

        threads = io_threads(self.plan.settings.device)
        if threads == 1:
            yield from map(self._try_to_store, finished)
        else:
            stored = (future.result() for _, future in ordered_map(self._try_to_store, finished, threads))
            with closing(prefetch(stored, ahead=threads)) as ready:  # while the caller flushes files and adds receipts
                yield from ready

    def _try_to_store(self, block: FinishedBlock) -> BlockResult:
        if block.error is not None:
            return BlockResult(number=block.block.number, error=block.error)
        return try_block(block.block.number, functools.partial(self._store, block))

    def _store(self, block: FinishedBlock) -> BlockResult:
        assert block.values is not None
        started, box = time.perf_counter(), self.plan.output_box(block.block)
        self.image.level.write(self._written, box, block.values)
        return BlockResult(
            number=block.block.number,
            checksum=checksum(block.values),
            files=list(self.image.level.files(box)),
            voxels=box.size,
            device=self.plan.settings.device,
            tile=block.tile,
            read_seconds=block.read_seconds,
            forward_seconds=block.forward_seconds,
            write_seconds=time.perf_counter() - started,
        )

    def _coarser(self, blocks: Sequence[int], stopping: Callable[[], bool]) -> Iterator[BlockResult]:
        n = self.plan.blocks
        for number in itertools.takewhile(lambda _: not stopping(), blocks):
            yield try_block(number, functools.partial(self.pyramid.build, number - n, n))

    # ---- verification

    def read_back(self, number: int) -> str:
        n = self.plan.blocks
        return self.pyramid.checksum(number - n) if number >= n else checksum(self.read(self.plan.grid.box(number)))

    def read(self, box: Any) -> NDArray[Any]:
        """Stored values (outputs, *box.shape) of a box in voxels of the volume.

        Raises
        ------
        UnreadableBlock
            A chunk is damaged.
        """
        return self.image.level.read(self._stored, box.relative_to(self.plan.region))

    def is_absent(self, box: Any) -> bool:
        """Whether nothing is stored of a box in voxels of the volume: all of its values are 0."""
        return self.image.level.is_absent(self._stored, box.relative_to(self.plan.region))

    @property
    def block_bytes(self) -> int:
        settings = self.plan.settings
        return math.prod(self.plan.block_shape) * settings.outputs * ITEM_BYTES[settings.dtype]

    def require_readable(self) -> None:
        if not self.is_made():
            raise UnetcliError(f"{self.output}: no output of unetcli predict; the same predict command creates it")
        try:
            self.image.level.open_to_read()
        except Exception as error:
            raise UnetcliError(
                f"{self.output}: the array cannot be opened ({error}); start over with predict --overwrite"
            ) from error

    def extra_checks(self, request: Any) -> dict[str, Any]:
        from unetcli.predict.checks import check_seams

        for planned, path in zip(self.plan.sources.models, self.paths.models, strict=True):
            if is_planned(planned, Path(path)):
                read_model(Path(path))  # a result of damaged weights is wrong, although its blocks are not
        return {"seams": check_seams(self, request.seams)} if request.seams else {}

    # ---- in a launcher

    def differences(self, frozen: Plan) -> list[str]:
        return differences(frozen, self.plan)

    def continue_from(self, frozen: Plan) -> None:
        require_continued(self, frozen, "start over with --overwrite, or choose another path with --output")
        if frozen.levels != self.plan.levels:
            require_no_workers(self)
            self._renumber_levels(replace(self, plan=frozen))

    def _renumber_levels(self, before: PredictStep) -> None:
        """Adopt another number of levels; receipts of the blocks of the old levels become void."""
        if before.levels.levels > 1 and self.is_made():
            before.pyramid.hide()
        void(before, before.ledger.refresh(), range(before.plan.blocks, before.blocks))
        self.folder.replace_plan(self.plan, self.FORMAT)
        self.ledger.refresh()

    def discard(self) -> None:
        """Delete the output, and say which labels are deleted with it."""
        from unetcli.label.objects import table_place

        if names := label_names(self.output):
            tables = [table for name in names if (table := table_place(self.output, name, self.folder.path)).exists()]
            kept = f"; their tables stay: {listed(list(map(str, tables)), 'tables')}" if tables else ""
            log.warning("%s: --overwrite deletes the labels in it: %s%s", self.output, listed(names, "labels"), kept)
        super().discard()

    def create(self) -> None:
        """Create the output if there is none; void blocks of levels that are missing or depend on missing blocks."""
        if not self.is_made():
            headers = [read_header(Path(model)) for model in self.paths.models]
            objects = common_objects([header.objects for header in headers])
            names = headers[0].class_names  # the same of all models
            self.image.create(attributes_of(self.plan, self.output, self.source, objects, names))
            self.clear_cache()
        n, done = self.plan.blocks, self.ledger.refresh().done
        if done[n:].any():
            missing = np.flatnonzero(~done[:n])
            every = len(missing) > MANY or not self.pyramid.is_made
            void(self, self.ledger, range(n, self.blocks) if every else self.with_dependents(missing.tolist()))

    def prepare_stage(self, stage: Stage) -> None:
        if stage.blocks.start < self.plan.blocks:
            return
        log.info("%s: %s", stage.name, counted(len(stage.blocks), "block"))
        self.pyramid.hide()
        if not self.pyramid.is_made:
            self.pyramid.create()

    def sweep(self) -> None:
        self.image.store.sweep()

    def finish(self) -> None:
        """List the levels in the metadata, and mark the output complete."""
        if self.levels.levels > 1:
            self.pyramid.publish()
        if not self.is_complete():
            self.image.store.sweep()
            self.mark(self.image, complete=True, single_class=single_class(self) or "")

    def single_class(self) -> str | None:
        """Warning about a complete result of one class, which was found, once, when it was completed."""
        found = (self.marker() or {}).get("single_class")
        return single_class(self) if found is None else found or None  # by an earlier version of unetcli

    def reopen(self) -> None:
        self.mark(self.image, complete=False)

    def with_dependents(self, damaged: Sequence[int]) -> Iterable[int]:
        """Damaged blocks, and blocks of coarser levels that depend on them."""
        n, found = self.plan.blocks, set(damaged)
        for number in damaged:
            if number < n:
                box = self.plan.grid.box(number).relative_to(self.plan.region)
                found |= {n + dependent for dependent in self.levels.dependents(box)}
        return sorted(found)

    @property
    def remedy(self) -> str:
        return "run the same predict command with the unchanged file, which records its new path"

    @property
    def every_gpu(self) -> bool:
        return self.plan.settings.device == "cuda" and not self.paths.device

    def resources(self, asked: Any) -> Resources:
        from unetcli.predict.preview import MEMORY_MARGIN, sizes

        numbers, times = sizes(self.plan, self.source, [*map(Path, self.paths.models)], asked)
        return Resources(
            host_bytes=int(MEMORY_MARGIN * numbers.host_bytes), blocks=math.ceil(self.plan.blocks / times.shares)
        )

    def moved(self, output: Place, device: str | None = None) -> PredictStep:
        paths = replace(self.paths, output=str(output), device=device or self.paths.device)
        return replace(self, paths=paths)

    def announce(self, found: int) -> None:
        log_plan(self, found)

    def input_changes(self) -> list[Change]:
        return input_changes(self.plan, self.paths)


def log_plan(step: PredictStep, found: int, share: tuple[int, int] | None = None) -> None:
    """Log the paths, blocks, tile and device of a run before it computes; ``found`` blocks are already done."""
    plan = step.plan
    tile, inner = plan.tile[-1], plan.footprint.output(plan.tile)[-1]
    levels = f"{plan.levels} levels" if plan.levels > 1 else ""
    seen = f"resampled to {plan.resampled_text}" if plan.settings.rescale is not None else ""
    part = f"share {share[0]} of {share[1]} (0-{share[1] - 1}) of " if share else ""
    log.info("%s (%s) -> %s", step.paths.volume, describe(plan.region, plan.axes), step.paths.output)
    log.info(
        "%s%s of %s%s; tile %d -> %d, %.0f%% extra for context; %s %s%s",
        part,
        counted(plan.blocks, "block"),
        "x".join(map(str, plan.block_shape)),
        f" ({found} already done)" if found else "",
        tile,
        inner,
        100 * step.wasted_work,
        plan.settings.device,
        plan.settings.precision,
        "".join(f"; {each}" for each in (seen, plan.settings.averaged, levels) if each),
    )
