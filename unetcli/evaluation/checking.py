"""What an unfinished evaluation has counted, read back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unetcli.evaluation.folder import EvaluationFolder
from unetcli.evaluation.plan import EvaluationPlan
from unetcli.evaluation.work import digest
from unetcli.runs.receipts import Ledger
from unetcli.runs.runfolder import RunFolder
from unetcli.volumes.volume import describe


@dataclass(frozen=True)
class CountsMade:
    """The counts of each block."""

    folder: EvaluationFolder
    plan: EvaluationPlan

    @property
    def block_bytes(self) -> int:
        """Where every voxel is another pair of labels."""
        return 16 * math.prod(self.plan.block_shape)

    def kept(self, ledger: Ledger) -> NDArray[np.bool_]:
        return np.ones(len(ledger.done), np.bool_)

    def checksum(self, number: int) -> str:
        return digest(self.folder.counts.load(number))

    def place(self, number: int) -> str:
        return describe(self.plan.box(number), self.plan.axes)


def counts_made(folder: RunFolder) -> CountsMade:
    """Of a run folder with a plan that can be read."""
    return CountsMade(EvaluationFolder(folder), EvaluationPlan.from_json(folder.plan_file.read_text()))
