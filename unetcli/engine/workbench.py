"""Everything that a worker process needs of one run: opened once, used for all its calls."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unetcli.core.errors import UnetcliError
from unetcli.core.files import place_of
from unetcli.engine.receipts import Ledger
from unetcli.engine.runfolder import Places, RunFolder
from unetcli.model.file import load_network
from unetcli.planning.plan import Plan
from unetcli.predict.skipping import Mask, open_mask
from unetcli.volumes.opening import open_volume
from unetcli.volumes.output import Output
from unetcli.volumes.volume import Volume

if TYPE_CHECKING:
    from unetcli.predict.predictor import FinishedBlock, Predictor


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """The plan, and what it works on."""

    folder: RunFolder
    plan: Plan
    places: Places
    source: Volume
    mask: Mask | None
    output: Output
    ledger: Ledger
    """To be refreshed before it is believed."""

    def predict(self, blocks: Iterable[int], stopping: Callable[[], bool] = bool) -> Generator[FinishedBlock]:
        """Blocks one after the other; see :func:`unetcli.predict.predictor.predict_blocks`."""
        from unetcli.predict.predictor import predict_blocks  # torch

        return predict_blocks(self.plan, self.predictor, self.source, blocks, stopping, self.mask)

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The network on its device.

        Raises
        ------
        UnetcliError
            This machine cannot run what was planned: its result would be another.
        """
        from unetcli.model.device import exact_float32, require_precision, resolve_device
        from unetcli.predict.predictor import Predictor

        choices = self.plan.choices
        try:
            device = resolve_device(self.places.device or choices.device)
            require_precision(device, choices.precision)
        except UnetcliError as error:
            raise UnetcliError(f"host {socket.gethostname()}: {error}") from error
        exact_float32()
        return Predictor(load_network(Path(self.places.model)), choices, device)


def workbench(folder: str) -> Workbench:
    """The workbench of a run folder; the last one is kept for the next call, unless plan or places changed."""
    run = RunFolder(Path(folder))
    return _workbench(run, run.plan_file.read_text(), run.places())


@functools.lru_cache(maxsize=1)
def _workbench(folder: RunFolder, plan_text: str, places: Places) -> Workbench:
    return open_workbench(folder, Plan.from_json(plan_text), places)


def open_workbench(folder: RunFolder, plan: Plan, places: Places) -> Workbench:
    """The plan with all that it works on."""
    source = open_volume(places.volume)
    return Workbench(
        folder=folder,
        plan=plan,
        places=places,
        source=source,
        mask=open_mask(places.mask if plan.choices.mask else None, source, plan.footprint),
        output=Output(place_of(places.output), plan),
        ledger=Ledger(folder.receipts, plan.blocks),
    )
