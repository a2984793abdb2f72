"""What a labelling keeps in its run folder beside receipts, and for how long."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import Checksum
from unetcli.core.files import replacing
from unetcli.engine.tables import Tables
from unetcli.label.merging import Merged
from unetcli.label.objects import sizes, write_table

BYTES_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True)
class LabelFiles:
    """The files of one labelling in its run folder, beside the engine's."""

    path: Path

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
