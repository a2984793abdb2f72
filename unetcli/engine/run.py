"""One run of predict: request, plan, run folder and output, brought together and checked before anything happens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, is_remote, require_apart
from unetcli.engine.ownership import PREDICT, PYRAMID, require_claimable
from unetcli.engine.receipts import Ledger
from unetcli.engine.runfolder import Places, RunFolder
from unetcli.model.file import find_model
from unetcli.planning.plan import Plan, differences
from unetcli.planning.pyramid_plan import PyramidPlan
from unetcli.predict.request import PredictRequest
from unetcli.predict.resolve import absolute, resolve_plan
from unetcli.volumes.opening import open_volume
from unetcli.volumes.output import Output, marker, remove_output, require_no_others, require_ours
from unetcli.volumes.volume import Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A request with all that it means."""

    request: PredictRequest
    source: Volume
    model: Path
    folder: RunFolder
    plan: Plan

    @classmethod
    def settle(cls, request: PredictRequest) -> Run:
        """Resolve a request; nothing is written yet.

        Raises
        ------
        UnetcliError
            Anything about the request that the user can put right.
        """
        model, source = find_model(request.model), open_volume(request.volume)
        inputs = [request.volume, *([request.mask] if request.mask else [])]
        require_place(request.output_path, [*inputs, model])
        require_alone(request)
        if request.overwrite:
            require_no_others(request.output_path)
        folder = folder_of(request)
        require_claimable(folder.path, PREDICT, overwrite=request.overwrite)
        plan = settle_plan(request, source, model, folder)
        run = cls(request=request, source=source, model=model, folder=folder, plan=plan)
        if PyramidPlan.of(plan, request.levels).levels > 1:  # refuses a number of levels that cannot be
            require_claimable(run.pyramid_folder.path, PYRAMID, overwrite=request.overwrite)
        return run

    @property
    def output(self) -> Output:
        return Output(self.request.output_path, self.plan)

    @property
    def pyramid_folder(self) -> RunFolder:
        """The run folder of the step that makes coarser levels."""
        return self.folder.of_step(PYRAMID)

    @property
    def is_complete(self) -> bool:
        """Whether every block is there, by the output's own word."""
        return bool((marker(self.request.output_path) or {}).get("complete"))

    def launcher(self, *, take_over: bool = False, wait: float = 0) -> AbstractContextManager[None]:
        """Hold the launcher's lock; see :meth:`RunFolder.launcher`."""
        return self.folder.launcher(PREDICT, overwrite=self.request.overwrite, take_over=take_over, wait=wait)

    def prepare(self) -> None:
        """Freeze the plan and make the output where they are not there yet. For who holds the launcher's lock."""
        output = self.request.output_path
        if self.request.overwrite:
            self.folder.forget_run()
            remove_output(output)
        require_same(self.folder.publish_plan(self.plan), self.plan, output)
        if marker(output) is None:
            self.folder.forget_receipts()  # of an output that was deleted
            self.output.create(self.source)
        self.folder.tell_places(self.places())

    def close(self, ledger: Ledger) -> bool:
        """Mark the output complete if nothing is missing; whether it is. For who holds the launcher's lock."""
        if not ledger.refresh().complete:
            return False
        if not self.is_complete:
            self.output.store.sweep()
            self.output.mark_complete()
        return True

    def places(self) -> Places:
        """Where its data lie now."""
        request = self.request
        return Places(
            volume=absolute(request.volume),
            model=absolute(str(self.model)),
            output=absolute(str(request.output_path)),
            mask=absolute(request.mask) if request.mask else None,
            device=request.device,
        )


def folder_of(request: PredictRequest) -> RunFolder:
    """The run folder of a request: the one it names, else the one beside the output."""
    return RunFolder(request.run_folder) if request.run_folder else RunFolder.of(request.output_path)


def require_place(output: Place, inputs: Sequence[Place]) -> None:
    """Refuse an output that would touch an input, or anything that is not ours."""
    require_apart(output, inputs)
    if not is_remote(output) and not (folder := Path(output).absolute().parent).is_dir():
        raise UnetcliError(f"{output}: the folder {folder} does not exist")
    require_ours(output)


def require_alone(request: PredictRequest) -> None:
    """Refuse to replace an output from one of many jobs that share it."""
    if request.overwrite and (task := os.environ.get("SLURM_ARRAY_TASK_ID")):
        raise UnetcliError(
            f"--overwrite: refused in array element {task}, which shares {request.output_path} with others"
        )


def settle_plan(request: PredictRequest, source: Volume, model: Path, folder: RunFolder) -> Plan:
    """The plan that the request means; refused where the output belongs to another one."""
    made = marker(
        request.output_path
    )  # looked at first: another share may publish the plan, then the output, right now
    frozen = None if request.overwrite else folder.plan()
    plan = resolve_plan(request, source, model, frozen)
    if frozen:
        require_same(frozen, plan, request.output_path)
    elif made and not request.overwrite:
        raise UnetcliError(
            f"{request.output_path}: exists, but {folder.plan_file}, which says how it was made, is gone; "
            "--overwrite starts anew, --output names another place"
        )
    return plan


def require_same(frozen: Plan, plan: Plan, output: Place) -> None:
    """Refuse to go on with other settings than the output was begun with."""
    if told := differences(frozen, plan):
        raise UnetcliError(
            f"{output}: begun with other settings: {'; '.join(told)}; "
            "use those again, --overwrite starts anew, --output names another place"
        )
