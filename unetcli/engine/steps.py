"""What predict, label and evaluate have in common once they run: blocks in stages, and a folder that vouches for them.

All that ``status`` has to know of a run, and where ``verify`` starts. A step is read from its run folder alone, and no
volume is opened for it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, is_remote, parent_of, place_of
from unetcli.engine.ownership import EVALUATE, LABEL, MARKER, PREDICT, PYRAMID, read_mark, require_format
from unetcli.engine.runfolder import RunFolder
from unetcli.evaluate.plan import EvaluationPlan
from unetcli.label.plan import LabelPlan
from unetcli.planning.plan import Plan
from unetcli.planning.pyramid_plan import PyramidPlan
from unetcli.planning.stages import Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A run, as its folder tells of it."""

    name: str
    """Of its folder: predict, pyramid, instances (or what labels are called), evaluate."""
    command: str
    """That goes on with it."""
    output: str
    """What is made, or scored."""
    folder: RunFolder
    stages: tuple[Stage, ...]
    voxels: Callable[[NDArray[np.bool_]], int]
    """Of the blocks that a mask over all of them picks."""
    closed: Callable[[], bool]
    """Whether nothing is left to do once every block is done: by the output's own word, mostly."""
    made: Callable[[], bool] = lambda: True
    """Whether there is an output of ours."""
    levels_missing: Callable[[], int] = lambda: 0
    """How many blocks of coarser levels are not made, of those that a prediction waits for to be complete."""
    writes: int = 0
    """The first block that writes to the output; what those before make is kept in the run folder."""

    @property
    def blocks(self) -> int:
        """Of all stages."""
        return self.stages[-1].blocks.stop

    def is_gone(self, done: NDArray[np.bool_]) -> bool:
        """Whether the output is not there any more, by the blocks that are done."""
        return bool(done[self.writes :].any()) and not self.made()

    @property
    def size(self) -> int:
        """Voxels of all blocks."""
        return self.voxels(np.ones(self.blocks, np.bool_))


def steps_of(output: str, named: Path | None = None, only: str | None = None) -> list[Step]:
    """Every run that is on record for a store, in the order in which they are made.

    Parameters
    ----------
    output
        The store, or labels in it: ``big.pred.zarr/labels/instances``.
    named
        The run folder that the user names.
    only
        The step that is asked for.

    Raises
    ------
    UnetcliError
        There is none.
    """
    store, asked = store_and_step(output)
    only = only or asked
    root = named or RunFolder.of(store).path.parent
    tried = [step_in(folder, store) for folder in folders(root)]
    found = [each for each in tried if isinstance(each, Step)]
    unreadable = [each for each in tried if isinstance(each, UnetcliError)]
    found.sort(key=lambda step: (_ORDER.get(step.name, 2), step.name))
    if unreadable and not found:
        raise unreadable[0]
    for error in unreadable:
        log.warning("%s", error)
    if not found:
        sought = root if named else root / (only or PREDICT)
        made = any(read_mark(folder.path) for folder in folders(root))
        what = f"no plan of a run in {sought}" if made else f"{sought} is no run folder (no {MARKER})"
        raise UnetcliError(f"{output}: {what}; predict, label and evaluate make one, --run-folder names another place")
    wanted = [step for step in found if only in (None, step.name)]
    if not wanted:
        raise UnetcliError(f"{output}: no step {only}; {root} has {', '.join(step.name for step in found)}")
    return wanted


_ORDER = {PREDICT: 0, PYRAMID: 1, EVALUATE: 3}


def store_and_step(output: str) -> tuple[Place, str | None]:
    """The store that an output is, or that labels lie in, and the step that made those.

    >>> store_and_step("s3://bucket/a.zarr/labels/cells"), store_and_step("s3://bucket/a.zarr")
    (('s3://bucket/a.zarr', 'cells'), ('s3://bucket/a.zarr', None))
    """
    place = place_of(output)
    name, above = str(place).rpartition("/")[2], parent_of(place)
    inside = str(above).rpartition("/")[2] == "labels" and not Path(f"{place}.run").exists()  # else a store of its own
    return (parent_of(above), name) if inside else (place, None)


def folders(root: Path) -> list[RunFolder]:
    """A folder, those below it, and the levels' one beside it: wherever a run of the same store can be."""
    below = sorted(path.parent for path in root.glob(f"*/{MARKER}"))
    return [RunFolder(path) for path in dict.fromkeys([root, *below, RunFolder(root).of_step(PYRAMID).path])]


def step_in(folder: RunFolder, store: Place) -> Step | UnetcliError | None:
    """The step whose folder it is; why it cannot be read; None if it is no run folder, or has no plan yet."""
    try:
        mark = read_mark(folder.path)
        if mark is None:
            return None
        require_format(folder.path, mark, "use that version")
    except UnetcliError as error:
        return error
    try:
        return _READERS[mark.step](folder, store, folder.plan_file.read_text())
    except FileNotFoundError:
        return None
    except UnetcliError as error:
        return UnetcliError(f"{folder.plan_file}: {error}")
    except (ValueError, KeyError, TypeError) as error:
        return UnetcliError(f"{folder.plan_file}: no plan that can be read ({error!r})")


def predict_step(folder: RunFolder, store: Place, plan: str) -> Step:
    """The step of a prediction's full resolution."""
    settled = Plan.from_json(plan)
    return Step(
        name=PREDICT,
        command=PREDICT,
        output=str(store),
        folder=folder,
        stages=(Stage(PREDICT, range(settled.blocks)),),
        voxels=settled.voxels,
        closed=lambda: says_complete(store),
        made=lambda: is_made(store),
        levels_missing=lambda: _levels_missing(folder.of_step(PYRAMID), store),
    )


def _levels_missing(folder: RunFolder, store: Place) -> int:
    levels = step_in(folder, store)
    return len(levels.folder.ledger(levels.blocks).missing) if isinstance(levels, Step) else 0


def pyramid_step(folder: RunFolder, store: Place, plan: str) -> Step:
    """The step of a prediction's coarser levels."""
    levels = PyramidPlan.from_json(json.loads((folder.path / "pyramid.json").read_text())["pyramid"])
    stages = tuple(Stage(f"level {stage.base + 1}", stage.blocks) for stage in levels.stages)
    finest = predict_step(folder, store, plan)
    return replace(finest, name=PYRAMID, stages=stages, voxels=levels.voxels, levels_missing=lambda: 0)


def label_step(folder: RunFolder, store: Place, plan: str) -> Step:
    """The step of labels."""
    settled = LabelPlan.from_json(plan)
    name = str(json.loads(folder.places_file.read_text())["output"]).rpartition("/")[2]
    labels = f"{store}/labels/{name}" if is_remote(store) else Path(store) / "labels" / name
    return Step(
        name=name,
        command=LABEL,
        output=str(labels),
        folder=folder,
        stages=settled.stages,
        voxels=settled.voxels,
        closed=lambda: says_complete(labels),
        made=lambda: is_made(labels),
        writes=settled.pieces + 1,
    )


def evaluate_step(folder: RunFolder, store: Place, plan: str) -> Step:
    """The step of scores; its folder is deleted when they are told."""
    settled = EvaluationPlan.from_json(plan)
    return Step(
        name=EVALUATE,
        command=EVALUATE,
        output=str(store),
        folder=folder,
        stages=(Stage("count", range(settled.blocks)),),
        voxels=settled.voxels,
        closed=lambda: not folder.plan_file.exists(),
        writes=settled.blocks,
    )


_READERS: Mapping[str, Callable[[RunFolder, Place, str], Step]] = {
    PREDICT: predict_step,
    PYRAMID: pyramid_step,
    LABEL: label_step,
    EVALUATE: evaluate_step,
}
"""By the step that the marker of the folder names."""


def says_complete(place: Place) -> bool:
    """Whether an output says of itself that nothing is missing."""
    from unetcli.volumes.output import marker  # zarr

    return bool((marker(place) or {}).get("complete"))


def is_made(place: Place) -> bool:
    """Whether there is an output of ours."""
    from unetcli.volumes.output import marker  # zarr

    return marker(place) is not None
