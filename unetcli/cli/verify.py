"""``unetcli verify``."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import typer

from unetcli.cli import options as o
from unetcli.cli import talk

if TYPE_CHECKING:
    from unetcli.engine.verify import Damage, Verification
    from unetcli.predict.seams import Seams

PARTS = {"evaluate": ", counts of its evaluation"}
"""Of what is made of an output, by step."""
AGAIN = "verify --repair computes them anew, as the same {} command does those without receipt"
REPAIRS = {
    "predict": AGAIN.format("predict"),
    "label": AGAIN.format("label"),
    "evaluate": "the same evaluate command counts them again",
}
INPUT = {
    "predict": "input: volume (sampled chunks) and model are what they were",
    "label": "input: prediction (sampled chunks) and what was measured are what they were",
}
SHOWN = 20
"""Damaged blocks listed; ``--json`` has them all."""


def verify(
    output: o.RunArgument,
    blocks: o.BlocksOption = True,
    repair: o.RepairOption = False,
    step: o.StepOption = None,
    seams: o.SeamsOption = 0,
    input: o.InputOption = False,
    run_folder: o.AnyRunFolderOption = None,
    device: o.DeviceOption = None,
    take_over: o.TakeOverOption = False,
    json: o.JsonOption = False,
) -> None:
    """Read every block made of OUTPUT back and compare checksums.

    Of predictions, levels, labels and evaluations. Exits 0 where all is as computed, 3 where blocks are damaged or
    missing, other tiles give other values, or the input is not what it was.
    """
    from unetcli.core.process import prepare

    prepare()  # before torch is imported
    from unetcli.config import VerifyRequest
    from unetcli.registry import verify_output

    request = VerifyRequest(
        output=output,
        step=step,
        run_folder=run_folder,
        blocks=blocks,
        repair=repair,
        seams=seams,
        input=input,
        device=device,
        take_over=take_over,
    )
    with talk.progress("voxels") as report:
        found = verify_output(request, report, o.stop_on_sigterm)
    told = "\n".join(itertools.chain.from_iterable(map(lines, found)))
    o.print_json(as_dict(found)) if json else typer.echo(told)
    if not all(each.sound for each in found):
        raise typer.Exit(o.INCOMPLETE)


def as_dict(found: list[Verification]) -> dict[str, Any]:
    """The first step, which is the prediction where there is one, and the others."""
    return found[0].to_dict() | {"others": [other.to_dict() for other in found[1:]]}


def lines(found: Verification) -> list[str]:
    """What was found, for people."""
    told, name = [], name_of(found)
    if found.repaired:
        told += [f"{name}: {len(found.repaired)} blocks made anew", *listed(found.repaired)]
    if found.checked or found.damaged:
        told += block_lines(found)
    if found.table:
        told.append(f"{found.table}; verify --repair writes it anew")
    if found.seams:
        told += seam_lines(found.seams)
    if found.input_changes is not None:
        told += [f"{change.source} {change.path}: {change.what}" for change in found.input_changes] or [
            INPUT[found.command]
        ]
    return told


def name_of(found: Verification) -> str:
    """The output, and which part of it."""
    return found.output + PARTS.get(found.step, "")


def block_lines(found: Verification) -> list[str]:
    """How many blocks are sound, and which are not."""
    there = found.checked if found.step == "evaluate" else found.blocks - found.not_kept
    head = f"{name_of(found)}: {there - len(found.damaged)} of {there} blocks are what was computed"
    if found.command != "label":
        return _with_damage(head, found)
    told = "labels at all levels, and the table of objects" if found.complete else "labels, and what was found so far"
    return _with_damage(f"{head} ({told})", found)


def _with_damage(head: str, found: Verification) -> list[str]:
    if not found.damaged:
        return [head if found.complete else f"{head}; not closed yet: the same {found.command} command does"]
    return [head, *listed(found.damaged), REPAIRS[found.command]]


def listed(damaged: list[Damage]) -> list[str]:
    """The first ones in full."""
    told = [f"  block {damage.block} ({damage.place}): {damage.what}" for damage in damaged[:SHOWN]]
    return told + ([f"  and {len(damaged) - SHOWN} more: --json tells all"] if len(damaged) > SHOWN else [])


def seam_lines(seams: Seams) -> list[str]:
    """How far other tiles give the same."""
    head = (
        f"{seams.windows} windows across borders computed anew in other tiles: "
        f"largest difference {seams.largest_difference:g}, {seams.allowed:g} allowed"
    )
    return [head, *(f"  {seam.place}: {seam.reason}" for seam in seams.exceeded)]
