"""Verify an output: read every block back, compare it with its receipt, and repair it if asked."""

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
from unetcli.engine.run import RunOptions, launching, prepare, run_to_completion
from unetcli.engine.step import Change, Step
from unetcli.engine.worker import void
from unetcli.executors.options import VerifyRequest

Drain = Callable[[], Callable[[], bool]]
"""Makes signals request an orderly stop from now on; the returned function reports whether one arrived."""

READ_BYTES = 2**30
"""Approximate limit on the memory of blocks being read back."""
COPIES = 3
"""Copies of a block in memory while it is decoded, reordered and checksummed."""
MISSING, OTHER = "no receipt", "content differs from its receipt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A block whose stored data are missing or differ from what was computed."""

    block: int
    place: str
    what: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Number of blocks read back, and descriptions of damage by block number."""

    checked: int = 0
    damaged: dict[int, str] = field(default_factory=dict)
    repaired: dict[int, str] = field(default_factory=dict)


def find_damage(step: Step, ledger: Ledger, report: ProgressCallback = silent) -> Findings:
    """Read every block back; a block that is recomputed in the meantime is checked once more."""
    attempts, there = ledger.attempts.copy(), np.flatnonzero(ledger.done & step.kept(ledger))
    damaged = dict(find_damaged(step, ledger, there, report))
    ledger.refresh()
    recomputed = [number for number in damaged if ledger.attempts[number] != attempts[number]]
    for number in recomputed:
        del damaged[number]
    damaged |= find_damaged(step, ledger, [number for number in recomputed if ledger.done[number]])
    damaged |= {int(number): MISSING for number in ledger.missing}
    return Findings(checked=len(there), damaged=damaged)


def find_damaged(
    step: Step, ledger: Ledger, blocks: Iterable[int], report: ProgressCallback = silent
) -> Iterator[tuple[int, str]]:
    """Yield the damaged blocks, each with a description; several blocks are read at a time."""
    numbers, readers = [int(number) for number in blocks], reader_count(step.block_bytes)
    read = ordered_map(lambda number: check_block(step, ledger, number), numbers, readers)
    for done, (number, future) in enumerate(read, 1):
        if (what := future.result()) is not None:
            yield number, what
        report(done, len(numbers))


def reader_count(block_bytes: int) -> int:
    """Return the number of reading threads: one per core, fewer if blocks are large."""
    return max(1, min(usable_cores(), READ_BYTES // (COPIES * max(block_bytes, 1))))


def check_block(step: Step, ledger: Ledger, number: int) -> str | None:
    """Describe the damage of a block; None if there is none."""
    try:
        found = step.read_back(number)
    except MemoryError:
        raise
    except Exception as error:  # codecs raise errors of any class
        return f"unreadable ({' '.join(str(error).split()) or type(error).__name__})"
    return None if found == ledger.checksum(number) else OTHER


def recheck(step: Step, ledger: Ledger, before: Findings) -> Findings:
    """Check the damaged blocks again and divide them into damaged and repaired ones."""
    again = [number for number in before.damaged if ledger.done[number] and step.kept(ledger)[number]]
    still = dict(find_damaged(step, ledger, again)) | {int(number): MISSING for number in ledger.missing}
    repaired = {number: what for number, what in before.damaged.items() if number not in still}
    return Findings(checked=before.checked, damaged=still, repaired=repaired)


def describe_damage(step: Step, damaged: dict[int, str]) -> list[Damage]:
    """Add the location to each damage, in order of block numbers."""
    return [Damage(block=number, place=step.place(number), what=what) for number, what in sorted(damaged.items())]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Findings of verify in one step, and what remains after a repair."""

    blocks: int
    checked: int
    """Number of blocks read back."""
    damaged: list[Damage]
    """Blocks that are damaged or not computed yet."""
    output: str
    complete: bool
    """Whether the output is marked complete."""
    repaired: list[Damage]
    """Former damage of blocks that have been repaired."""
    seams: Any = None
    """Comparison of windows across block borders with other tiles; has an attribute ``exceeded``."""
    input_changes: list[Change] | None = None
    step: str
    """Name of the step: predict, evaluate, or the name of the labels."""
    command: str
    """The command that computes missing blocks."""
    not_kept: int
    """Number of blocks whose intermediate results are deleted by design."""
    table: str | None = None
    """Description of damage to the table of objects; None if there is none."""

    @property
    def sound(self) -> bool:
        """Whether no check found anything wrong."""
        return not (self.damaged or self.table or self.input_changes or (self.seams and self.seams.exceeded))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sound": self.sound}


def verify_step(step: Step, request: VerifyRequest, report: ProgressCallback, drain: Drain) -> Verification:
    """Compare the output of a step with its receipts and, if requested, with its input.

    ``drain`` is called before a repair computes; once the function it returns gives True, no further block is started.

    Raises
    ------
    UnetcliError
        There is no output, or it cannot be repaired.
    """
    step.require_readable()
    found = check_blocks(step, request, report, drain)
    extra = step.extra_checks(request)
    changes = step.input_changes() if request.input or (extra.get("seams") and extra["seams"].exceeded) else None
    return Verification(
        blocks=step.blocks,
        not_kept=step.blocks - int(step.kept(step.ledger.refresh()).sum()),
        checked=found.checked,
        damaged=describe_damage(step, found.damaged),
        output=str(step.output),
        complete=step.is_complete(),
        repaired=describe_damage(step, found.repaired),
        step=step.name,
        command=step.command,
        input_changes=changes if changes or request.input else None,
        **extra,
    )


def check_blocks(step: Step, request: VerifyRequest, report: ProgressCallback, drain: Drain) -> Findings:
    """Find damaged blocks, and repair them if requested."""

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
    """Recompute only the damaged and missing blocks, then check them again.

    Receipts are voided before any data change, so that after a kill at any point the step's command or another repair
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
                void(step, ledger, step.with_dependents(sorted(found.damaged)))
                step.reopen()
                prepare(step)
                run_to_completion(step, options, report, stopping)
            found = recheck(step, ledger.refresh(), found)
        else:
            run_to_completion(step, options, silent, bool)  # no block is missing: this only finishes the output
    return found


def require_same_input(step: Step) -> None:
    """Raise if the input has changed, because recomputed blocks would not match the others."""
    for change in step.input_changes():
        raise UnetcliError(
            f"{step.output}: cannot be repaired, the {change.source} {change.path} {change.what}; {step.remedy}"
        )
