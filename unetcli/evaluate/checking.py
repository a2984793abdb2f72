"""What an unfinished evaluation has counted, read back."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unetcli.engine.reading_back import Made
from unetcli.engine.runfolder import RunFolder
from unetcli.evaluate.folder import EvaluationFolder
from unetcli.evaluate.plan import EvaluationPlan
from unetcli.evaluate.work import digest
from unetcli.volumes.volume import describe


@dataclass(frozen=True)
class CountsMade(Made):
    """The counts of each block."""

    folder: EvaluationFolder
    plan: EvaluationPlan

    @property
    def block_bytes(self) -> int:
        """Where every voxel is another pair of labels."""
        return 16 * math.prod(self.plan.block_shape)

    def checksum(self, number: int) -> str:
        return digest(self.folder.counts.load(number))

    def place(self, number: int) -> str:
        return describe(self.plan.box(number), self.plan.axes)


def counts_made(folder: RunFolder) -> CountsMade:
    """Of a run folder with a plan that can be read."""
    return CountsMade(EvaluationFolder(folder), EvaluationPlan.from_json(folder.plan_file.read_text()))
