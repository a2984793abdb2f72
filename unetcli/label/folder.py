"""The run folder of a labelling: what lies in it beside receipts, and for how long."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import Checksum
from unetcli.core.files import publish, remove_aside, replacing
from unetcli.engine.ownership import LABEL
from unetcli.engine.runfolder import RunFolder
from unetcli.label.merging import Merged
from unetcli.label.objects import sizes, write_table
from unetcli.label.plan import LabelPlan
from unetcli.label.tables import Tables

BYTES_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelPlaces:
    """Where a labelling's data lie."""

    prediction: str
    output: str
    intensity: str | None = None


@dataclass(frozen=True, slots=True)
class LabelFolder:
    """Owns every path of one labelling."""

    run: RunFolder

    @property
    def path(self) -> Path:
        return self.run.path

    @property
    def tables(self) -> Tables:
        """What was found in each block, with its voxels' labels; deleted at the end."""
        return Tables(self.path / "blocks")

    @property
    def numbers(self) -> Path:
        """The final number of each object of each block; it stays, for repairs."""
        return self.path / "numbers.npy"

    @property
    def offsets(self) -> Path:
        """Where in ``numbers`` each block's objects start; it stays."""
        return self.path / "offsets.npy"

    @property
    def table(self) -> Path:
        """Of all objects; it stays."""
        return self.path / "objects.csv"

    @property
    def summary_file(self) -> Path:
        """What the merging told; it stays."""
        return self.path / "merged.json"

    def launcher(self, *, overwrite: bool = False, take_over: bool = False) -> AbstractContextManager[None]:
        """Hold the launcher's lock; see :meth:`RunFolder.launcher`."""
        own = [*self.of_merging, self.tables.folder]
        return self.run.launcher(LABEL, own, overwrite=overwrite, take_over=take_over)

    def sweep_workers(self) -> None:
        """Delete what killed workers left unfinished; only if no worker lives."""
        self.run.sweep_workers()
        self.tables.sweep()

    def plan(self) -> LabelPlan | None:
        """The frozen plan, or None where none was published."""
        try:
            return LabelPlan.from_json(self.run.plan_file.read_text())
        except FileNotFoundError:
            return None

    def publish_plan(self, plan: LabelPlan) -> LabelPlan:
        """Freeze the plan; returns the one that holds, which is an earlier one where another launcher was faster."""
        publish(self.run.plan_file, plan.to_json())
        frozen = self.plan()
        assert frozen is not None
        return frozen

    def places(self) -> LabelPlaces:
        return LabelPlaces(**json.loads(self.run.places_file.read_text()))

    def tell_places(self, places: LabelPlaces) -> None:
        with replacing(self.run.places_file) as draft:
            draft.write_text(json.dumps(asdict(places), indent=1))

    @property
    def of_merging(self) -> list[Path]:
        """All files that the merging makes."""
        return [self.numbers, self.offsets, self.table, self.summary_file]

    def merged_checksum(self) -> str:
        """Of all that the merging made, as its receipt has it."""
        digest = Checksum()
        for path in self.of_merging:
            with path.open("rb") as file:
                while part := file.read(BYTES_AT_ONCE):
                    digest.add(part)
        return digest.hexdigest()

    def save_merged(self, merged: Merged, axes: str, unit: float) -> None:
        """Keep what a merging gave."""
        for path, values in ((self.numbers, merged.numbers), (self.offsets, merged.offsets)):
            with replacing(path) as draft, draft.open("wb") as file:
                np.save(file, values)
        write_table(self.table, axes, merged.measures, unit)
        told = {
            "objects": merged.count,
            "removed": merged.removed,
            "provisional": len(merged.numbers),
            "dtype": merged.dtype,
            "sizes": sizes(merged.measures.size),
        }
        with replacing(self.summary_file) as draft:
            draft.write_text(json.dumps(told, indent=1))

    def merged(self) -> Mapping[str, Any]:
        """What the merging told."""
        found: dict[str, Any] = json.loads(self.summary_file.read_text())
        return found

    def numbers_of(self, piece: int) -> NDArray[Any]:
        """The final number of each object of a block, after a 0 for the background."""
        start, stop = np.load(self.offsets, mmap_mode="r")[piece : piece + 2]
        numbers = np.load(self.numbers, mmap_mode="r")
        return np.concatenate([np.zeros(1, numbers.dtype), numbers[start:stop]])

    def tidy(self) -> None:
        """Delete what was found in each block: only later stages need it."""
        self.tables.remove()

    def forget_results(self) -> None:
        """Drop receipts and all that they vouch for."""
        self.run.forget_receipts()
        for path in self.of_merging:
            remove_aside(path)
        self.tidy()

    def forget(self) -> None:
        """Drop everything. The plan goes first: without it nothing else is ever trusted."""
        self.run.forget_run()
        self.forget_results()
