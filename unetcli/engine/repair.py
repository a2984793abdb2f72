"""A prediction read back, and what is damaged of it computed anew: its full resolution, and its coarser levels."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unetcli.config import PredictRequest, VerifyRequest, Where
from unetcli.core.arrays import checksum
from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place
from unetcli.engine.changes import changes
from unetcli.engine.closing import close
from unetcli.engine.clusters import executor_for, require_no_jobs
from unetcli.engine.prediction import compute
from unetcli.engine.pyramid import Pyramid, place
from unetcli.engine.reading_back import Drain, Findings, Made, find_damage, look_again, void
from unetcli.engine.receipts import Ledger
from unetcli.engine.rounds import Report
from unetcli.engine.run import Run
from unetcli.engine.runfolder import RunFolder
from unetcli.planning.plan import Plan
from unetcli.planning.planner import ITEM_BYTES
from unetcli.planning.pyramid_plan import PyramidPlan
from unetcli.volumes.opening import open_volume
from unetcli.volumes.output import Output, marker
from unetcli.volumes.volume import describe


@dataclass(frozen=True)
class PredictionMade(Made):
    """Full resolution: the stored voxels of each block."""

    output: Output

    @property
    def block_bytes(self) -> int:
        plan = self.output.plan
        return math.prod(plan.block_shape) * plan.choices.outputs * ITEM_BYTES[plan.choices.dtype]

    def checksum(self, number: int) -> str:
        plan = self.output.plan
        return checksum(self.output.read(plan.output_box(plan.block(number))))

    def place(self, number: int) -> str:
        return describe(self.output.plan.block(number).box, self.output.plan.axes)


@dataclass(frozen=True)
class LevelsMade(Made):
    """Coarser levels: the stored voxels of each block, in all levels that it made."""

    pyramid: Pyramid

    @property
    def block_bytes(self) -> int:
        """Pieces are read one after the other: a chunk (shard) at a time."""
        plan = self.pyramid.plan
        return math.prod(plan.write_chunks) * plan.outputs * np.dtype(self.pyramid.output.level.dtype).itemsize

    def checksum(self, number: int) -> str:
        return self.pyramid.checksum(number)

    def place(self, number: int) -> str:
        return place(self.pyramid.plan, number)


def levels_of(folder: RunFolder, output: Output) -> LevelsMade:
    """What the run folder of coarser levels says was made."""
    frozen = json.loads((folder.path / "pyramid.json").read_text())
    return LevelsMade(Pyramid(output, PyramidPlan.from_json(frozen["pyramid"])))


def require_output(output: Place, plan: Plan) -> None:
    """Raise where there is no output of ours that can be opened."""
    if marker(output) is None:
        raise UnetcliError(f"{output}: no output of unetcli predict; the same predict command makes it")
    try:
        Output(output, plan).open()
    except Exception as error:
        raise UnetcliError(
            f"{output}: its array cannot be opened ({error}); --overwrite of predict starts anew"
        ) from error


def repair_prediction(request: VerifyRequest, run: Run, report: Report, drain: Drain) -> Findings:
    """Compute anew what is damaged or missing, and nothing else; then look at it again.

    The receipts are void before anything is touched: wherever this is killed, predict or another repair goes on.
    """
    with alone(request, run):
        made, ledger = PredictionMade(run.output), run.folder.ledger(run.plan.blocks)
        found = find_damage(made, ledger, report)
        if found.damaged:
            begin_again(run, run.folder, ledger, found)
            compute(run, ledger.refresh(), Where(), report, drain())
            found = look_again(made, ledger.refresh(), found)
        if not found.damaged:
            run.close(ledger)
    return found


def repair_levels(request: VerifyRequest, run: Run, folder: RunFolder, report: Report, drain: Drain) -> Findings:
    """The same for coarser levels, which are made of full resolution: that has to be whole."""
    with alone(request, run):
        made, finest = levels_of(folder, run.output), run.folder.ledger(run.plan.blocks)
        ledger = folder.ledger(made.pyramid.plan.blocks)
        found = find_damage(made, ledger, report)
        if found.damaged and not finest.complete:
            raise UnetcliError(f"{run.request.output_path}: its levels wait for blocks of full resolution")
        if found.damaged:
            begin_again(run, folder, ledger, found)
            run = replace(run, request=replace(run.request, levels=made.pyramid.plan.levels))
            close(run, finest, lambda: executor_for(Where(), run), report, drain())
            found = look_again(made, ledger.refresh(), found)
    return found


@contextmanager
def alone(request: VerifyRequest, run: Run) -> Iterator[None]:
    """Nobody else works on the output while this is open."""
    with run.launcher(take_over=request.take_over):
        run.folder.require_no_shares(take_over=request.take_over)
        require_no_jobs(Where(), run)
        yield


def begin_again(run: Run, folder: RunFolder, ledger: Ledger, found: Findings) -> None:
    """Take back what is said of damaged blocks, and that the output is complete."""
    require_same_input(run)
    void(folder, run.request.output_path, ledger, found.damaged)
    run.output.mark_incomplete()
    run.prepare()


def require_same_input(run: Run) -> None:
    """Raise where volume or model are others now: what they give would not fit the rest."""
    if told := changes(run.plan, run.folder.places()):
        first = told[0]
        raise UnetcliError(
            f"{run.request.output_path}: cannot be repaired, the {first.source} {first.path} {first.what}; "
            "predict with the unchanged one notes where it is now"
        )


def adopted(request: VerifyRequest, folder: RunFolder, plan: Plan) -> Run:
    """The run that made an output, to go on with."""
    places = folder.places()
    return Run(
        request=PredictRequest(
            volume=places.volume,
            output=request.output,
            model=Path(places.model),
            mask=places.mask,
            device=request.device or places.device,
            run_folder=request.run_folder,
            retries=request.retries,
            take_over=request.take_over,
        ),
        source=open_volume(places.volume),
        model=Path(places.model),
        folder=folder,
        plan=plan,
    )
