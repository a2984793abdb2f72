"""Whether what a run made is what was computed: every block read back, compared with its receipt, and repaired."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from unetcli.core.errors import UnetcliError
from unetcli.core.process import usable_cores
from unetcli.core.streams import ProgressCallback, ordered_map, silent
from unetcli.engine.clusters import require_no_live_jobs
from unetcli.engine.receipts import Ledger
from unetcli.engine.run import RunOptions, launching, prepare, work_off
from unetcli.engine.step import Change, Step
from unetcli.engine.worker import void
from unetcli.executors.options import VerifyRequest

Drain = Callable[[], Callable[[], bool]]
"""From now on a signal asks for an orderly end; the function returned says whether it came."""

READ_BYTES = 2**30
"""About the most that is held of blocks that are being read back."""
COPIES = 3
"""Copies of a block while it is decoded, put in order and summed up."""
MISSING, OTHER = "no receipt", "other content than its receipt says"


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A block that is not what was computed."""

    block: int
    place: str
    what: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """How many blocks were read back, and what is wrong with which."""

    checked: int = 0
    damaged: dict[int, str] = field(default_factory=dict)
    repaired: dict[int, str] = field(default_factory=dict)


def find_damage(step: Step, ledger: Ledger, report: ProgressCallback = silent) -> Findings:
    """Read every block back; a block that is made anew meanwhile is looked at once more."""
    attempts, there = ledger.attempts.copy(), np.flatnonzero(ledger.done & step.kept(ledger))
    damaged = dict(damage_of(step, ledger, there, report))
    ledger.refresh()
    remade = [number for number in damaged if ledger.attempts[number] != attempts[number]]
    for number in remade:
        del damaged[number]
    damaged |= damage_of(step, ledger, [number for number in remade if ledger.done[number]])
    damaged |= {int(number): MISSING for number in ledger.missing}
    return Findings(checked=len(there), damaged=damaged)


def damage_of(
    step: Step, ledger: Ledger, blocks: Iterable[int], report: ProgressCallback = silent
) -> Iterator[tuple[int, str]]:
    """Blocks that are not what their receipts say, and how; several are read at a time."""
    numbers, readers = [int(number) for number in blocks], reading_at_once(step.block_bytes)
    read = ordered_map(lambda number: damage(step, ledger, number), numbers, readers)
    for done, (number, future) in enumerate(read, 1):
        if (what := future.result()) is not None:
            yield number, what
        report(done, len(numbers))


def reading_at_once(block_bytes: int) -> int:
    """Threads that read: one per core, fewer where blocks are large."""
    return max(1, min(usable_cores(), READ_BYTES // (COPIES * max(block_bytes, 1))))


def damage(step: Step, ledger: Ledger, number: int) -> str | None:
    """What is wrong with a block; None: nothing."""
    try:
        found = step.read_back(number)
    except MemoryError:
        raise
    except Exception as error:  # codecs raise what they like
        return f"unreadable ({' '.join(str(error).split()) or type(error).__name__})"
    return None if found == ledger.checksum(number) else OTHER


def look_again(step: Step, ledger: Ledger, before: Findings) -> Findings:
    """What is still damaged of what was, and what is not."""
    again = [number for number in before.damaged if ledger.done[number] and step.kept(ledger)[number]]
    still = dict(damage_of(step, ledger, again)) | {int(number): MISSING for number in ledger.missing}
    mended = {number: what for number, what in before.damaged.items() if number not in still}
    return Findings(checked=before.checked, damaged=still, repaired=mended)


def named(step: Step, damaged: dict[int, str]) -> list[Damage]:
    """Damage with its place, in the order of the blocks."""
    return [Damage(block=number, place=step.place(number), what=what) for number, what in sorted(damaged.items())]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What verify found in one step, and what is left of it after a repair."""

    blocks: int
    checked: int
    """Blocks read back."""
    damaged: list[Damage]
    """Blocks that are not what was computed, or were not computed yet."""
    output: str
    complete: bool
    """Whether the output says that it is complete."""
    repaired: list[Damage]
    """What was wrong with blocks that are sound now."""
    seams: Any = None
    """Windows across borders, computed again in other tiles; has ``exceeded``."""
    input_changes: list[Change] | None = None
    step: str
    """Name of the step: predict, evaluate, or what labels are called."""
    command: str
    """The command that makes missing blocks."""
    not_kept: int
    """Blocks whose intermediate results are deleted by design."""
    table: str | None = None
    """What is wrong with the table of objects."""

    @property
    def sound(self) -> bool:
        """Whether all that was looked at is as it should be."""
        return not (self.damaged or self.table or self.input_changes or (self.seams and self.seams.exceeded))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sound": self.sound}


def verify_step(step: Step, request: VerifyRequest, report: ProgressCallback, drain: Drain) -> Verification:
    """Compare what a step made with its receipts, and as far as asked with its input.

    ``drain`` is called before a repair computes; once what it returns is true, the blocks at work are the last ones.

    Raises
    ------
    UnetcliError
        There is no output, or it cannot be repaired.
    """
    step.require_readable()
    found = look_at(step, request, report, drain)
    extra = step.look_closer(request)
    changes = step.input_changes() if request.input or (extra.get("seams") and extra["seams"].exceeded) else None
    return Verification(
        blocks=step.blocks,
        not_kept=step.blocks - int(step.kept(step.ledger.refresh()).sum()),
        checked=found.checked,
        damaged=named(step, found.damaged),
        output=str(step.output),
        complete=step.is_complete(),
        repaired=named(step, found.repaired),
        step=step.name,
        command=step.command,
        input_changes=changes if changes or request.input else None,
        **extra,
    )


def look_at(step: Step, request: VerifyRequest, report: ProgressCallback, drain: Drain) -> Findings:
    """Damaged blocks, and those that were repaired."""

    size = step.size

    def in_voxels(done: int, total: int, note: str = "") -> None:
        report(size * done // max(total, 1), size)

    if request.repair and step.repairable:
        return repair(step, request, report, drain)
    found = find_damage(step, step.ledger.refresh(), in_voxels) if request.blocks else Findings()
    if step.repairable:
        return found
    return replace(found, damaged={number: what for number, what in found.damaged.items() if what != MISSING})


def repair(step: Step, request: VerifyRequest, report: ProgressCallback, drain: Drain) -> Findings:
    """Compute again what is damaged or missing, and nothing else; then look at it again.

    The receipts are void before anything is touched: wherever this is killed, the step's command or another repair
    continues.
    """
    options = RunOptions.of(request)
    with launching(step, options):
        require_no_live_jobs(step.output, step.folder)
        ledger = step.ledger.refresh()
        found = find_damage(step, ledger, report)
        if found.damaged:
            step.require_ready()
            require_same_input(step)
            stopping = drain()
            if step.restore(sorted(found.damaged), ledger, stopping):
                void(step, ledger, step.also_void(sorted(found.damaged)))
                step.reopen()
                prepare(step)
                work_off(step, options, report, stopping)
            found = look_again(step, ledger.refresh(), found)
        else:
            work_off(step, options, silent, bool)  # nothing is missing: it is only finished
    return found


def require_same_input(step: Step) -> None:
    """Raise where the input is not what it was: what it gives would not fit the rest."""
    for change in step.input_changes():
        raise UnetcliError(
            f"{step.output}: cannot be repaired, the {change.source} {change.path} {change.what}; {step.way_out}"
        )
