"""``unetcli verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from unetcli.cli import options as o
from unetcli.cli import talk

if TYPE_CHECKING:
    from unetcli.runs.seams import Seams
    from unetcli.runs.verify import Damage, Verification

SHOWN = 20
"""Damaged blocks listed; ``--json`` has them all."""


def verify(
    output: o.PredictedArgument,
    blocks: o.BlocksOption = True,
    repair: o.RepairOption = False,
    seams: o.SeamsOption = 0,
    input: o.InputOption = False,
    run_folder: o.RunFolderOption = None,
    device: o.DeviceOption = None,
    take_over: o.TakeOverOption = False,
    json: o.JsonOption = False,
) -> None:
    """Read every block of OUTPUT back and compare it with its receipt.

    Exits 0 where all is as computed, 3 where blocks are damaged or missing, other tiles give other values, or the
    input is not what it was.
    """
    from unetcli.process import prepare

    prepare()  # before torch is imported
    from unetcli.config import VerifyRequest
    from unetcli.runs.verify import verify_output

    request = VerifyRequest(
        output=output,
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
    o.print_json(found.to_dict()) if json else typer.echo("\n".join(lines(found)))
    if not found.sound:
        raise typer.Exit(o.INCOMPLETE)


def lines(found: Verification) -> list[str]:
    """What was found, for people."""
    told = []
    if found.repaired:
        told += [f"{found.output}: {len(found.repaired)} blocks made anew", *listed(found.repaired)]
    if found.checked or found.damaged:
        told += block_lines(found)
    if found.seams:
        told += seam_lines(found.seams)
    if found.input_changes is not None:
        told += [f"{change.source} {change.path}: {change.what}" for change in found.input_changes] or [
            "input: volume (sampled chunks) and model are what they were"
        ]
    return told


def block_lines(found: Verification) -> list[str]:
    """How many blocks are sound, and which are not."""
    sound = found.blocks - len(found.damaged)
    head = f"{found.output}: {sound} of {found.blocks} blocks are what was computed"
    if not found.damaged:
        return [head if found.complete else f"{head}; not closed yet: the same predict command does"]
    return [
        head,
        *listed(found.damaged),
        "verify --repair computes them anew, as the same predict command does those without receipt",
    ]


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
