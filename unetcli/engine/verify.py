"""Whether what a run made is what was computed: every block read back, compared with its receipt, and repaired."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from unetcli.core.files import place_of
from unetcli.engine.changes import Change, changes
from unetcli.engine.ownership import EVALUATE, PREDICT, PYRAMID
from unetcli.engine.reading_back import Damage, Drain, Findings, Made, find_damage, named, without_missing
from unetcli.engine.repair import (
    PredictionMade,
    adopted,
    levels_of,
    repair_levels,
    repair_prediction,
    require_output,
)
from unetcli.engine.request import VerifyRequest
from unetcli.engine.rounds import Report
from unetcli.engine.runfolder import RunFolder
from unetcli.engine.seams import Seams, check_seams
from unetcli.engine.steps import Step, steps_of
from unetcli.engine.workbench import Workbench, open_workbench
from unetcli.evaluate.checking import counts_made
from unetcli.label.repair import labels_made, prediction_changes, repair_labels, wrong_with_table
from unetcli.planning.plan import Plan
from unetcli.predict.resolve import absolute
from unetcli.volumes.output import Output

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What verify found, and what is left of it after a repair."""

    blocks: int
    checked: int
    """Blocks read back."""
    damaged: list[Damage]
    """Those that are not what was computed, or were not computed yet."""
    output: str
    complete: bool
    """By the output's own word."""
    repaired: list[Damage]
    """What was wrong with blocks that are sound now."""
    seams: Seams | None = None
    input_changes: list[Change] | None = None
    step: str
    """predict, pyramid (its coarser levels), instances (or what labels are called), evaluate."""
    command: str
    """That makes missing blocks."""
    not_kept: int
    """Blocks that what they made is not kept of, by design: what was found before it was numbered."""
    table: str | None = None
    """What is wrong with the table of objects."""

    @property
    def sound(self) -> bool:
        """Whether all that was looked at is as it should be."""
        return not (self.damaged or self.table or self.input_changes or (self.seams and self.seams.exceeded))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sound": self.sound}


def verify_output(
    request: VerifyRequest, report: Report = lambda done, total: None, drain: Drain = lambda: bool
) -> list[Verification]:
    """Compare what was made of an output, step by step, with its receipts, and as far as asked with its input.

    ``drain`` is called before a repair computes; once what it returns is true, the blocks at work are the last ones.

    Raises
    ------
    UnetcliError
        There is no output of ours, or nothing that says how it was made; or a repair that cannot be.
    """
    return [verify_step(step, request, report, drain) for step in wanted(request)]


def wanted(request: VerifyRequest) -> list[Step]:
    """The steps that can tell something about what is asked for."""
    steps = steps_of(str(request.output), request.run_folder, request.step)
    telling = [step for step in steps if request.blocks or step.name not in (PYRAMID, EVALUATE)]
    return [telling[0], *(step for step in telling[1:] if not said_to_be_gone(step))] if telling else steps


def said_to_be_gone(step: Step) -> bool:
    """Whether labels were deleted, which is said: what else there is can be looked at all the same."""
    gone = step.command == "label" and step.is_gone(step.folder.ledger(step.blocks).done)
    if gone:
        log.warning("%s: gone; the same label command makes them anew", step.output)
    return gone


def verify_step(step: Step, request: VerifyRequest, report: Report, drain: Drain) -> Verification:
    """The same for one step."""
    request = replace(request, output=place_of(step.output))

    def in_voxels(done: int, total: int) -> None:
        report(step.size * done // max(total, 1), step.size)

    verify = verify_labels if step.command == "label" else _BY_NAME[step.name]
    return verify(step, request, in_voxels if not request.repair else report, drain)


def verify_prediction(step: Step, request: VerifyRequest, report: Report, drain: Drain) -> Verification:
    """Full resolution, and what can be computed anew of it in other tiles."""
    plan = plan_of(step)
    require_output(request.output, plan)
    made, found = PredictionMade(Output(request.output, plan)), Findings()
    if request.repair:
        found = repair_prediction(request, adopted(request, step.folder, plan), report, drain)
    elif request.blocks:
        found = find_damage(made, step.folder.ledger(plan.blocks), report)
    seams = check_seams(workbench_of(request, step.folder, plan), request.seams) if request.seams else None
    changed = changes(plan, step.folder.places()) if request.input or (seams and seams.exceeded) else None
    return _verification(step, made, found, seams=seams, input_changes=changed if changed or request.input else None)


def verify_levels(step: Step, request: VerifyRequest, report: Report, drain: Drain) -> Verification:
    """The coarser levels of a prediction."""
    plan = plan_of(step)
    require_output(request.output, plan)
    made, found = levels_of(step.folder, Output(request.output, plan)), Findings()
    if request.repair:
        finest = next(other for other in steps_of(step.output, request.run_folder) if other.name == PREDICT)
        found = repair_levels(request, adopted(request, finest.folder, plan), step.folder, report, drain)
    elif request.blocks:
        found = find_damage(made, step.folder.ledger(step.blocks), report)
    return _verification(step, made, found)


def verify_labels(step: Step, request: VerifyRequest, report: Report, drain: Drain) -> Verification:
    """Labels at all levels, their table, and what the run folder keeps of them."""
    made, found = labels_made(step), Findings()
    if request.repair:
        found = repair_labels(request, step, made, report, drain)
    elif request.blocks:
        found = find_damage(made, step.folder.ledger(step.blocks), report)
    table = wrong_with_table(step, made) if request.blocks and step.closed() else None
    return _verification(
        step, made, found, table=table, input_changes=prediction_changes(made) if request.input else None
    )


def verify_counts(step: Step, request: VerifyRequest, report: Report, drain: Drain) -> Verification:
    """What an evaluation has counted so far; what it has not is no damage. Its command counts damaged ones again."""
    made, found = counts_made(step.folder), Findings()
    if request.blocks:
        found = without_missing(find_damage(made, step.folder.ledger(step.blocks), report))
    return _verification(step, made, found)


_BY_NAME: Mapping[str, Callable[[Step, VerifyRequest, Report, Drain], Verification]] = {
    PREDICT: verify_prediction,
    PYRAMID: verify_levels,
    EVALUATE: verify_counts,
}


def _verification(step: Step, made: Made, found: Findings, **more: Any) -> Verification:
    kept = made.kept(step.folder.ledger(step.blocks))
    return Verification(
        blocks=step.blocks,
        not_kept=step.blocks - int(kept.sum()),
        checked=found.checked,
        damaged=named(made, found.damaged),
        output=step.output,
        complete=step.closed(),
        repaired=named(made, found.repaired),
        step=step.name,
        command=step.command,
        **more,
    )


def plan_of(step: Step) -> Plan:
    """The plan of a prediction."""
    return Plan.from_json(step.folder.plan_file.read_text())


def workbench_of(request: VerifyRequest, folder: RunFolder, plan: Plan) -> Workbench:
    """What it takes to compute windows of an output anew."""
    places = folder.places()
    places = replace(places, output=absolute(str(request.output)), device=request.device or places.device)
    bench = open_workbench(folder, plan, places)
    bench.ledger.refresh()
    return bench
