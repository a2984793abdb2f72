"""The one module that knows every step: finds the runs of a store, for status and verify."""

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
"""Steps by the name that the marker of their run folder has."""
log = logging.getLogger(__name__)


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
    found.sort(key=lambda step: (_ORDER.get(step.command, len(_ORDER)), step.name))
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


_ORDER = {PREDICT: 0, LABEL: 1, EVALUATE: 2}


def store_and_step(output: str) -> tuple[Place, str | None]:
    """The store that an output is, or that labels lie in, and the step that made those.

    >>> store_and_step("s3://bucket/a.zarr/labels/cells"), store_and_step("s3://bucket/a.zarr")
    (('s3://bucket/a.zarr', 'cells'), ('s3://bucket/a.zarr', None))
    """
    place = parse_place(output)
    name, above = str(place).rpartition("/")[2], parent_of(place)
    inside = str(above).rpartition("/")[2] == "labels" and not Path(f"{place}.run").exists()  # else a store of its own
    return (parent_of(above), name) if inside else (place, None)


def folders(root: Path) -> list[RunFolder]:
    """A folder and those below it: wherever a run of the same store can be."""
    below = sorted(path.parent for path in root.glob(f"*/{MARKER}"))
    return [RunFolder(path) for path in dict.fromkeys([root, *below])]


def step_in(folder: RunFolder, store: Place) -> Step | UnetcliError | None:
    """The step whose folder it is; why it cannot be read; None if it is no run folder, or has no plan yet."""
    try:
        mark = read_mark(folder.path)
        if mark is None or mark.step not in STEPS:  # an earlier version had a step of its own for coarser levels
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
    """Where the output of a step is, as its store lies now."""
    if step.command != LABEL:
        return store
    return f"{store}/labels/{step.name}" if is_remote(store) else Path(store) / "labels" / step.name


def verify_output(
    request: VerifyRequest, report: ProgressCallback = silent, drain: Drain = lambda: bool
) -> list[Verification]:
    """Compare what was made of an output, step by step, with its receipts, and as far as asked with its input.

    ``drain`` is called before a repair computes; once what it returns is true, the blocks at work are the last ones.

    Raises
    ------
    UnetcliError
        There is no output of unetcli, or nothing that says how it was made; or it cannot be repaired.
    """
    steps = steps_of(str(request.output), request.run_folder, request.step)
    telling = [step for step in steps if request.blocks or step.command != EVALUATE]
    wanted = [telling[0], *(step for step in telling[1:] if not is_said_to_be_gone(step))] if telling else steps
    return [
        verify_step(step.moved(step.output, request.device), replace(request, output=step.output), report, drain)
        for step in wanted
    ]


def is_said_to_be_gone(step: Step) -> bool:
    """Whether labels were deleted, which is said: what else there is can be looked at all the same."""
    gone = step.command == LABEL and step.is_gone(step.ledger.refresh().done)
    if gone:
        log.warning("%s: gone; the same label command makes them anew", step.output)
    return gone
