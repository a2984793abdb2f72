"""The run folder of a large evaluation: its plan, its receipts and the counts of its blocks, until it has told them."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import is_remote, place_of, publish, replacing
from unetcli.engine.ownership import EVALUATE, remove_run_folder
from unetcli.engine.runfolder import RunFolder
from unetcli.evaluate.counts import Counts
from unetcli.evaluate.plan import EvaluationPlan
from unetcli.evaluate.request import EvaluateRequest
from unetcli.label.tables import Tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Where an evaluation's data lie: what a worker needs beside the plan."""

    prediction: str
    truth: str
    mask: str | None
    threads: int | None
    """Of a worker; None: as many as it may use."""


@dataclass(frozen=True, slots=True)
class EvaluationFolder:
    """Owns every path of one evaluation."""

    run: RunFolder

    @classmethod
    def of(cls, request: EvaluateRequest) -> EvaluationFolder:
        """Where the user says, else beside the store that the prediction lies in."""
        if request.run_folder is not None:
            return cls(RunFolder(request.run_folder))
        place = place_of(request.prediction)
        if is_remote(place):
            raise UnetcliError(f"{place}: --run-folder FOLDER names a place on this file system for plan and receipts")
        inside = [Path(place), *Path(place).parents]
        store = next((folder for folder in inside if folder.suffix == ".zarr"), Path(place))
        return cls(RunFolder.of(store, "evaluate"))

    @property
    def counts(self) -> Tables:
        return Tables(self.run.path / "counts")

    def launcher(self, *, take_over: bool = False, wait: float = 0) -> AbstractContextManager[None]:
        """Hold the launcher's lock; see :meth:`RunFolder.launcher`."""
        return self.run.launcher(EVALUATE, [self.counts.folder], take_over=take_over, wait=wait)

    def sweep_workers(self) -> None:
        """Delete what killed workers left unfinished; only if no worker lives."""
        self.run.sweep_workers()
        self.counts.sweep()

    def plan(self) -> EvaluationPlan | None:
        """The frozen plan; None if there is none that this version of unetcli can read."""
        try:
            return EvaluationPlan.from_json(self.run.plan_file.read_text())
        except (FileNotFoundError, ValueError, UnetcliError):
            return None

    def begin(self, plan: EvaluationPlan, inputs: Inputs) -> bool:
        """Freeze the plan; whether it goes on with what was counted before. Other counts than its own are dropped."""
        goes_on = self.plan() == plan
        if not goes_on:
            self.run.forget_run()
            self.counts.remove()
            publish(self.run.plan_file, plan.to_json())
        with replacing(self.run.places_file) as draft:
            draft.write_text(json.dumps(asdict(inputs), indent=1))
        return goes_on

    def inputs(self) -> Inputs:
        return Inputs(**json.loads(self.run.places_file.read_text()))

    def load(self, number: int) -> Counts:
        """The counts of a block that has a receipt."""
        return Counts.from_arrays(self.counts.load(number))

    def remove(self) -> None:
        """Delete the folder, once the scores are known. The caller holds its lock."""
        remove_run_folder(self.run.path, [path.name for path in (*self.run.contents, self.counts.folder)])
