"""Labels read back, and what is damaged of them made anew.

What was found in each block is deleted once the labels are complete; the numbers that objects got are kept. So a
damaged block is found again, which has to come out as before, and numbered again; no other block is touched.
"""

from __future__ import annotations

import filecmp
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from unetcli.config import VerifyRequest, Where
from unetcli.core.arrays import checksum
from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, parent_of, place_of
from unetcli.engine.changes import Change
from unetcli.engine.clusters import require_no_live_jobs
from unetcli.engine.pyramid import Pyramid, first_of
from unetcli.engine.reading_back import Drain, Findings, Made, damage, find_damage, look_again, void
from unetcli.engine.receipts import Ledger
from unetcli.engine.rounds import Report
from unetcli.engine.steps import Step
from unetcli.label import plan as stages
from unetcli.label.folder import LabelFolder
from unetcli.label.image import LabelImage, Parent
from unetcli.label.objects import table_place
from unetcli.label.plan import LabelPlan
from unetcli.label.request import LabelRequest
from unetcli.label.run import compute
from unetcli.label.setting_up import LabelRun, require_complete
from unetcli.label.work import Bench
from unetcli.predict.resolve import absolute
from unetcli.volumes.fingerprint import fingerprint
from unetcli.volumes.opening import open_volume
from unetcli.volumes.output import marker


@dataclass(frozen=True)
class LabelsMade(Made):
    """What the blocks of all stages made."""

    bench: Bench

    @property
    def plan(self) -> LabelPlan:
        return self.bench.plan

    @property
    def folder(self) -> LabelFolder:
        return self.bench.folder

    @property
    def block_bytes(self) -> int:
        return 8 * math.prod(self.plan.block_shape)

    @property
    def merging(self) -> int:
        """The block that merges."""
        return self.plan.pieces

    def kept(self, ledger: Ledger) -> NDArray[np.bool_]:
        """What was found is needed until it is numbered, everything else for good."""
        kept, n = np.ones(self.plan.blocks, np.bool_), self.plan.pieces
        if ledger.done[self.merging]:
            kept[:n] = ~ledger.done[n + 1 : 2 * n + 1]
        return kept

    def checksum(self, number: int) -> str:
        stage = self.plan.stage(number)
        piece = number - stage.blocks.start
        match stage.name:
            case stages.FIND:
                return checksum(self.folder.tables.load(piece)["labels"])
            case stages.MERGE:
                return self.folder.merged_checksum()
            case stages.NUMBER:
                return checksum(self.image.level.read(self._labels, self.plan.box(piece)))
            case _:
                return Pyramid(self.image, self.plan.pyramid, first_of).checksum(number - self.plan.before_levels)

    def place(self, number: int) -> str:
        stage = self.plan.stage(number)
        return (
            f"{stage.name}: {self.bench.describe(number)}"
            if self.plan.in_folder(stage)
            else self.bench.describe(number)
        )

    @cached_property
    def image(self) -> LabelImage:
        """The labels; of what type they are nobody has to know who reads."""
        return LabelImage(place_of(self.bench.places.output), self.plan, "")

    @cached_property
    def _labels(self) -> zarr.Array[Any]:
        return self.image.level.open_to_read()


def labels_made(step: Step) -> LabelsMade:
    """What the step of labels made, wherever its store is now."""
    folder = LabelFolder(step.folder)
    plan, places = folder.plan(), folder.places()
    assert plan is not None
    if step.is_gone(step.folder.ledger(plan.blocks).done):
        raise UnetcliError(f"{step.output}: no labels of unetcli; the same label command makes them")
    prediction = absolute(str(store_of(step)))  # wherever both are now
    return LabelsMade(Bench(folder, plan, replace(places, prediction=prediction, output=step.output)))


def wrong_with_table(step: Step, made: LabelsMade) -> str | None:
    """What is wrong with the table of objects beside the labels; None: nothing."""
    table = table_place(store_of(step), step.name, step.folder.path)
    if not table.exists():
        return f"{table}: not there"
    if not made.folder.table.exists() or filecmp.cmp(table, made.folder.table, shallow=False):
        return None  # without the run folder's, the merging is told to be damaged
    return f"{table}: other content than was written"


def prediction_changes(made: LabelsMade) -> list[Change]:
    """Whether what was labelled, and measured, is still the same; of a volume up to 64 chunks are looked at."""
    plan, places = made.plan, made.bench.places
    volumes = [("prediction", places.prediction, plan.prediction)]
    volumes += [("intensity", places.intensity, plan.intensity)] if places.intensity and plan.intensity else []
    told = [(source, path, what_changed(path, before)) for source, path, before in volumes]
    return [Change(source=source, path=path, what=what) for source, path, what in told if what]


def what_changed(place: str, before: str) -> str | None:
    """A phrase where a volume is not what its fingerprint says."""
    try:
        return None if fingerprint(open_volume(place)) == before else "holds other values"
    except UnetcliError as error:
        return f"cannot be opened: {error}"


def repair_labels(request: VerifyRequest, step: Step, made: LabelsMade, report: Report, drain: Drain) -> Findings:
    """Make anew what is damaged or missing, and nothing else; then look at it again.

    What was found in damaged blocks comes first; receipts of labels are void before those are touched: wherever this
    is killed, label or another repair goes on.
    """
    run = adopted(request, step, made)
    with run.launcher(take_over=request.take_over):
        require_no_live_jobs(step.output, step.folder)
        ledger = step.folder.ledger(step.blocks)
        found = find_damage(made, ledger, report)
        if found.damaged:
            require_complete(run.request)
            require_same(step, prediction_changes(made))
            stopping = drain()
            if find_again(step, made, ledger, found.damaged, stopping):
                take_back(step, made, ledger, found.damaged)
                run.prepare()
                compute(run, ledger.refresh(), Where(), report, stopping)
            found = look_again(made, ledger.refresh(), found)
        if not found.damaged:
            run.close(ledger)
    return found


def find_again(
    step: Step, made: LabelsMade, ledger: Ledger, damaged: Iterable[int], stopping: Callable[[], bool]
) -> bool:
    """Make anew what the run folder held for damaged blocks; whether all of it is there. It comes out as before."""
    with_receipt = {number for number in damaged if ledger.done[number]}
    for number in [*pieces_for(made, with_receipt), *({made.merging} & with_receipt)]:
        if stopping():
            return False
        if damage(made, ledger, number) and made.bench.make(number).checksum != ledger.checksum(number):
            raise UnetcliError(
                f"{step.output}: cannot be repaired, {made.place(number)} does not come out as before: "
                f"{made.bench.places.prediction} is not what was labelled; label --overwrite starts anew"
            )
    return True


def pieces_for(made: LabelsMade, damaged: Collection[int]) -> list[int]:
    """The blocks to be found again: all for the merging, else those that are damaged or to be numbered again."""
    n = made.plan.pieces
    if made.merging in damaged:
        return list(range(n))
    return sorted({number % (n + 1) for number in damaged if number < made.plan.before_levels})


def take_back(step: Step, made: LabelsMade, ledger: Ledger, damaged: Iterable[int]) -> None:
    """Void the receipts of damaged labels, and say that they are not complete."""
    if marker(place_of(step.output)) is not None:
        made.image.mark_complete(complete=False)
    labels = [number for number in damaged if number > made.merging]
    void(step.folder, place_of(step.output), ledger, labels)


def require_same(step: Step, told: list[Change]) -> None:
    """Raise where what was labelled is another now: what comes of it would not fit the rest."""
    for change in told:
        raise UnetcliError(
            f"{step.output}: cannot be repaired, the {change.source} {change.path} {change.what}; "
            "label --overwrite starts anew"
        )


def adopted(request: VerifyRequest, step: Step, made: LabelsMade) -> LabelRun:
    """The run that made labels, to go on with."""
    prediction = str(store_of(step))
    return LabelRun(
        request=LabelRequest(
            prediction=prediction,
            name=step.name,
            intensity=made.bench.places.intensity,
            run_folder=request.run_folder and step.folder.path,
            retries=request.retries,
        ),
        parent=Parent.open(prediction),
        folder=made.folder,
        plan=made.plan,
    )


def store_of(step: Step) -> Place:
    """The store that labels lie in."""
    return parent_of(parent_of(place_of(step.output)))
