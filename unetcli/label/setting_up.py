"""One labelling: request, plan, run folder and output, brought together and checked before anything happens."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, remove_drafts_of, replacing
from unetcli.core.lock import hold
from unetcli.engine.ownership import LABEL, require_claimable
from unetcli.engine.pyramid import Pyramid, first_of
from unetcli.engine.receipts import Ledger
from unetcli.engine.runfolder import RunFolder
from unetcli.label.components import neighbourhood
from unetcli.label.folder import LabelFolder, LabelPlaces
from unetcli.label.image import LabelImage, Parent, list_labels, make_labels_group, require_ours
from unetcli.label.inputs import offset_in, require_probabilities
from unetcli.label.objects import require_our_table, table_place
from unetcli.label.plan import BLOCK_VOXELS, LabelPlan, Settings, choose_block, differences
from unetcli.label.request import DEPTHS, REACHES, LabelRequest
from unetcli.label.threshold import choose_threshold
from unetcli.planning.pyramid_plan import largest_possible_levels
from unetcli.planning.stages import Stage
from unetcli.predict.resolve import absolute
from unetcli.volumes.fingerprint import fingerprint
from unetcli.volumes.opening import open_volume
from unetcli.volumes.output import marker, marker_around, remove_output

THRESHOLD = 0.5
LIST_SECONDS = 60.0
"""How long the list of labels is waited for, which others may be changing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRun:
    """A request with all that it means."""

    request: LabelRequest
    parent: Parent
    folder: LabelFolder
    plan: LabelPlan

    @classmethod
    def settle(cls, request: LabelRequest) -> LabelRun:
        """Resolve a request; nothing is written yet.

        Raises
        ------
        UnetcliError
            Anything about the request that the user can put right.
        """
        require_complete(request)
        parent = Parent.open(request.prediction)
        folder = LabelFolder(
            RunFolder(request.run_folder) if request.run_folder else RunFolder.of(parent.place, request.name)
        )
        require_claimable(folder.path, LABEL, overwrite=request.overwrite)
        require_ours(parent.labels(request.name))
        require_our_table(table_place(parent.place, request.name, folder.path), parent.volume.axes)
        frozen = None if request.overwrite else folder.plan()
        run = cls(request=request, parent=parent, folder=folder, plan=make_plan(request, parent, frozen))
        run._require_continued(frozen)
        return run

    @property
    def output(self) -> Place:
        """Where the labels are."""
        return self.parent.labels(self.request.name)

    @property
    def table(self) -> Path:
        """Where the table of objects is, once all is complete."""
        return table_place(self.parent.place, self.request.name, self.folder.path)

    @property
    def image(self) -> LabelImage:
        """The labels; to be asked for once the objects are merged."""
        return LabelImage(self.output, self.plan, self.folder.merged()["dtype"])

    @property
    def is_complete(self) -> bool:
        """By the labels' own word."""
        return bool((marker(self.output) or {}).get("complete"))

    def launcher(self, *, take_over: bool = False) -> AbstractContextManager[None]:
        """Hold the launcher's lock; see :meth:`RunFolder.launcher`."""
        return self.folder.launcher(overwrite=self.request.overwrite, take_over=take_over)

    def prepare(self) -> None:
        """Freeze the plan; forget what was found for labels that are gone. For who holds the launcher's lock."""
        remove_drafts_of(self.table)
        if self.request.overwrite:
            self._list(listed=False)
            self.table.unlink(missing_ok=True)
            self.folder.forget()
            remove_output(self.output)
        frozen = self.folder.publish_plan(self.plan)
        self._require_continued(frozen)
        self.folder.tell_places(self._places())
        done = self.folder.run.ledger(self.plan.blocks).done
        if done[self.plan.pieces + 1 :].any() and not self._is_made():
            self.folder.forget_results()

    def prepare_stage(self, stage: Stage) -> None:
        """Make what the blocks of a stage write to."""
        if not self.plan.in_folder(stage) and not self._is_made():
            make_labels_group(self.parent.place, self.plan.zarr_format)
            self.image.create(self.parent.volume, self._told())
            self._pyramid.create()

    def close(self, ledger: Ledger) -> bool:
        """Show the labels and put the table in its place if nothing is missing; whether it is so."""
        if not ledger.refresh().complete:
            return False
        if not self.is_complete:
            self.image.store.sweep()
            self._pyramid.publish()
            self.image.mark_complete()
        self._list(listed=True)
        if self.table != self.folder.table:
            with replacing(self.table) as draft:
                shutil.copyfile(self.folder.table, draft)
        self.folder.tidy()
        return True

    @property
    def _pyramid(self) -> Pyramid:
        return Pyramid(self.image, self.plan.pyramid, first_of)

    def _is_made(self) -> bool:
        """Whether the arrays of all levels are there."""
        if marker(self.output) is None or not self.folder.summary_file.exists():
            return False
        return self.image.level.exists() and self._pyramid.is_made

    def _list(self, *, listed: bool) -> None:
        folder = self.folder.path if self.request.run_folder else self.folder.path.parent  # of all labels of the store
        lock = folder / "labels.lock"
        with hold(lock, wait=LIST_SECONDS):
            remove_drafts_of(lock)
            list_labels(self.parent.place, self.request.name, self.plan.zarr_format, listed=listed)

    def _told(self) -> dict[str, Any]:
        """What the labels say of themselves, beside whether they are complete."""
        settings, parent = self.plan.settings, marker_around(self.request.prediction) or {}
        own = {"method": settings.method, "threshold": settings.threshold, "objects": self.folder.merged()["objects"]}
        own |= {"of_incomplete": True} if self.plan.of_incomplete else {}
        return own | {name: parent[name] for name in ("extent", "region") if name in parent}

    def _places(self) -> LabelPlaces:
        intensity = self.request.intensity
        return LabelPlaces(
            prediction=absolute(self.request.prediction),
            output=absolute(str(self.output)),
            intensity=absolute(intensity) if intensity else None,
        )

    def _require_continued(self, frozen: LabelPlan | None) -> None:
        """Refuse to go on with other settings than the labels were begun with."""
        if frozen is None:
            if marker(self.output) and not self.request.overwrite:
                raise UnetcliError(
                    f"{self.output}: exists, but {self.folder.run.plan_file}, which says how it was made, is gone; "
                    "--overwrite starts anew, --name names other labels"
                )
        elif told := differences(frozen, self.plan):
            raise UnetcliError(
                f"{self.output}: begun with other settings: {'; '.join(told)}; "
                "use those again, --overwrite starts anew, --name names other labels"
            )


def require_complete(request: LabelRequest) -> None:
    """Refuse a prediction of ours that is not finished."""
    if is_incomplete(request.prediction) and not request.allow_incomplete:
        raise UnetcliError(f"{request.prediction}: not complete; run its predict command again, or --allow-incomplete")


def is_incomplete(prediction: str) -> bool:
    """Whether a prediction is ours and not finished."""
    ours = marker_around(prediction)
    return ours is not None and not ours.get("complete")


def make_plan(request: LabelRequest, parent: Parent, frozen: LabelPlan | None) -> LabelPlan:
    """The plan that a request means; what it leaves open is taken from the frozen one, else chosen."""
    volume, write_chunks = parent.volume, parent.write_chunks
    settings = settle_settings(request, parent, frozen)
    limit = request.block_voxels or BLOCK_VOXELS[settings.method]
    block = choose_block(volume.extent, volume.axes, write_chunks, limit, three_d=settings.three_d)
    return LabelPlan(
        axes=volume.axes,
        shape=volume.extent,
        chunks=parent.chunks,
        write_chunks=write_chunks,
        block_shape=frozen.block_shape if frozen and not request.block_voxels else block,
        zarr_format=parent.zarr_format,
        levels=min(parent.levels, largest_possible_levels(volume.extent, volume.axes)),
        voxel_size=tuple(volume.voxel_size.get(axis, 1.0) for axis in volume.axes),
        settings=settings,
        automatic=request.auto_threshold_from is not None,
        prediction=fingerprint(volume),
        intensity=_intensity(request, parent),
        of_incomplete=is_incomplete(request.prediction),
    )


def settle_settings(request: LabelRequest, parent: Parent, frozen: LabelPlan | None) -> Settings:
    """All that shows in the labels."""
    neighbourhood(parent.volume.axes, request.connectivity, three_d=request.three_d)  # refuses what cannot be
    settings = Settings(
        method=request.method,
        threshold=THRESHOLD if request.threshold is None else request.threshold,
        three_d=request.three_d,
        connectivity=request.connectivity or (6 if request.three_d else 4),
        min_size=request.min_size,
        channel=require_probabilities(parent.volume, request.channel),
        landscape=request.landscape,
        depth=DEPTHS.get(request.landscape, 0.0) if request.depth is None else request.depth,
        reach=request.reach or REACHES[request.three_d],
        smoothing=request.smoothing,
    )
    if request.auto_threshold_from is None:
        return settings
    if frozen and frozen.automatic:
        return replace(settings, threshold=frozen.settings.threshold)
    truth = open_volume(request.auto_threshold_from)
    offset = offset_in(truth, parent.volume, parent.place)
    return replace(settings, threshold=choose_threshold(parent.volume, truth, offset, settings)[0])


def _intensity(request: LabelRequest, parent: Parent) -> str | None:
    if request.intensity is None:
        return None
    volume = open_volume(request.intensity)
    offset_in(volume, parent.volume, parent.place)
    return fingerprint(volume)
