"""Registry of all steps; finds the runs of a store for ``status`` and ``verify``."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, is_remote, parent_of, parse_place
from unetcli.core.streams import ProgressCallback, silent
from unetcli.engine.runfolder import EVALUATE, LABEL, MARKER, PREDICT, RunFolder, read_mark, require_format
from unetcli.engine.step import Step
from unetcli.engine.verify import Drain, Verification, verify_step
from unetcli.evaluate.step import EvaluateStep
from unetcli.executors.options import VerifyRequest
from unetcli.label.step import LabelStep
from unetcli.predict.step import PredictStep

STEPS: dict[str, type[Step]] = {PREDICT: PredictStep, LABEL: LabelStep, EVALUATE: EvaluateStep}
"""Step classes by the name in the marker of their run folders, in the order in which they run."""
log = logging.getLogger(__name__)


def steps_of(output: str, named: Path | None = None, only: str | None = None) -> list[Step]:
    """Return every run of a store, in the order in which the steps run.

    Parameters
    ----------
    output
        The store, or labels in it: ``big.pred.zarr/labels/instances``.
    named
        The run folder, if the user names one.
    only
        The name of the only step to return.

    Raises
    ------
    UnetcliError
        There is no such run.
    """
    store, asked = store_and_step(output)
    only = only or asked
    root = named or RunFolder.of(store).path.parent
    tried = [step_in(folder, store) for folder in folders(root)]
    found = [each for each in tried if isinstance(each, Step)]
    unreadable = [each for each in tried if isinstance(each, UnetcliError)]
    found.sort(key=lambda step: (list(STEPS).index(step.command), step.name))
    if unreadable and not found:
        raise unreadable[0]
    for error in unreadable:
        log.warning("%s", error)
    if not found:
        sought = root if named else root / (only or PREDICT)
        made = any(read_mark(folder.path) for folder in folders(root))
        what = f"no plan of a run in {sought}" if made else f"{sought} is no run folder (no {MARKER})"
        raise UnetcliError(
            f"{output}: {what}; predict, label and evaluate create one; use --run-folder if it is elsewhere"
        )
    wanted = [step for step in found if only in (None, step.name)]
    if not wanted:
        raise UnetcliError(f"{output}: no step {only}; {root} has {', '.join(step.name for step in found)}")
    return wanted


def store_and_step(output: str) -> tuple[Place, str | None]:
    """Split the path of labels into the store that contains them and their name; any other path is a store.

    >>> store_and_step("s3://bucket/a.zarr/labels/cells"), store_and_step("s3://bucket/a.zarr")
    (('s3://bucket/a.zarr', 'cells'), ('s3://bucket/a.zarr', None))
    """
    place = parse_place(output)
    name, above = str(place).rpartition("/")[2], parent_of(place)
    in_labels = str(above).rpartition("/")[2] == "labels"
    is_store = Path(f"{place}.run").exists()  # a store of its own in a folder called labels
    return (parent_of(above), name) if in_labels and not is_store else (place, None)


def folders(root: Path) -> list[RunFolder]:
    """Return a folder and the run folders directly in it."""
    below = sorted(path.parent for path in root.glob(f"*/{MARKER}"))
    return [RunFolder(path) for path in dict.fromkeys([root, *below])]


def step_in(folder: RunFolder, store: Place) -> Step | UnetcliError | None:
    """Open the step of a run folder.

    Returns the error if it cannot be read, and None if the folder is no run folder or has no plan yet.
    """
    try:
        mark = read_mark(folder.path)
        if mark is None or mark.step not in STEPS:  # earlier versions had a separate step for coarser levels
            return None
        require_format(folder.path, mark, "use that version")
    except UnetcliError as error:
        return error
    try:
        step = STEPS[mark.step].open(folder)
        return step.moved(output_at(step, store))
    except FileNotFoundError:
        return None
    except UnetcliError as error:
        return error
    except (ValueError, KeyError, TypeError) as error:
        return UnetcliError(f"{folder.paths_file}: cannot be read ({error!r})")


def output_at(step: Step, store: Place) -> Place:
    """Return the current path or URL of a step's output in its store."""
    if not isinstance(step, LabelStep) or step.is_store:
        return store
    if step.name in ("", ".", ".."):
        raise UnetcliError(f"{step.folder.paths_file}: output is {step.output}; expected a path ending in labels/NAME")
    return f"{store}/labels/{step.name}" if is_remote(store) else Path(store) / "labels" / step.name


def verify_output(
    request: VerifyRequest, report: ProgressCallback = silent, drain: Drain = lambda: bool
) -> list[Verification]:
    """Compare the results of every step of an output with their receipts and, if requested, with the input.

    ``drain`` is called before a repair computes; once the function it returns gives True, no further block is started.

    Raises
    ------
    UnetcliError
        There is no output of unetcli, its run folder is missing, or it cannot be repaired.
    """
    steps = steps_of(str(request.output), request.run_folder, request.step)
    checkable = [step for step in steps if request.blocks or step.command != EVALUATE]
    wanted = [checkable[0], *(step for step in checkable[1:] if not warn_if_gone(step))] if checkable else steps
    return [
        verify_step(step.moved(step.output, request.device), replace(request, output=step.output), report, drain)
        for step in wanted
    ]


def warn_if_gone(step: Step) -> bool:
    """Return whether labels were deleted, and log a warning, so that the other steps can still be verified."""
    gone = step.command == LABEL and step.is_gone(step.ledger.refresh().done)
    if gone:
        log.warning("%s: deleted; the same label command creates the labels again", step.output)
    return gone
