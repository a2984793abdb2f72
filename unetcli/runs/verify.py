"""Whether an output is what was computed: every block read back, compared with its receipt, and repaired."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from unetcli.config import PredictRequest, VerifyRequest, Where
from unetcli.errors import UnetcliError
from unetcli.files import Place
from unetcli.planning.plan import Plan
from unetcli.planning.planner import ITEM_BYTES
from unetcli.planning.resolve import absolute
from unetcli.runs.changes import Change, changes
from unetcli.runs.clusters import require_no_jobs
from unetcli.runs.keeping import void_receipt
from unetcli.runs.prediction import compute
from unetcli.runs.receipts import Ledger, ReceiptBook, checksum
from unetcli.runs.rounds import Report
from unetcli.runs.run import Run
from unetcli.runs.runfolder import RunFolder
from unetcli.runs.seams import Seams, check_seams
from unetcli.runs.status import planned, run_folder_of
from unetcli.runs.workbench import Workbench, open_workbench
from unetcli.volumes.opening import open_volume
from unetcli.volumes.output import Output, marker
from unetcli.volumes.volume import describe

log = logging.getLogger(__name__)

READ_BYTES = 2**30
"""About the most that is held of blocks that are being read back."""
COPIES = 3
"""Of a block while it is decoded, put in order and summed up."""
MISSING, OTHER = "no receipt", "other content than its receipt says"


Drain = Callable[[], Callable[[], bool]]
"""From now on a signal asks for an orderly end; the function returned says whether it came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A block that is not what was computed."""

    block: int
    place: str
    what: str


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
    seams: Seams | None
    input_changes: list[Change] | None

    @property
    def sound(self) -> bool:
        """Whether all that was looked at is as it should be."""
        return not (self.damaged or self.input_changes or (self.seams and self.seams.exceeded))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sound": self.sound}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """How many blocks were read back, and what is wrong with which."""

    checked: int = 0
    damaged: dict[int, str] = field(default_factory=dict)
    repaired: dict[int, str] = field(default_factory=dict)


def verify_output(
    request: VerifyRequest,
    report: Report = lambda done, total: None,
    drain: Drain = lambda: bool,
    where: Where | None = None,
) -> Verification:
    """Compare an output with its receipts, as far as asked also with its input and with other tiles.

    ``drain`` is called before a repair computes; once what it returns is true, the blocks at work are the last ones.

    Raises
    ------
    UnetcliError
        There is no output of ours, or nothing that says how it was made; or a repair that cannot be.
    """
    folder = run_folder_of(str(request.output), request.run_folder)
    plan = planned(folder, str(request.output))
    require_output(request.output, plan)
    found = Findings()
    if request.repair:
        found = repair(request, adopted(request, folder, plan), report, drain, where or Where())
    elif request.blocks:
        found = find_damage(Output(request.output, plan), folder.ledger(plan.blocks), report)
    seams = check_seams(workbench_of(request, folder, plan), request.seams) if request.seams else None
    changed = changes(plan, folder.places()) if request.input or (seams and seams.exceeded) else None
    return Verification(
        blocks=plan.blocks,
        checked=found.checked,
        damaged=named(plan, found.damaged),
        output=str(request.output),
        complete=bool((marker(request.output) or {}).get("complete")),
        repaired=named(plan, found.repaired),
        seams=seams,
        input_changes=changed if changed or request.input else None,
    )


def require_output(output: Place, plan: Plan) -> None:
    """Raise where there is no output of ours that can be opened."""
    if marker(output) is None:
        raise UnetcliError(f"{output}: no output of unetcli predict; the same predict command makes it")
    try:
        Output(output, plan).open()
    except Exception as error:
        raise UnetcliError(
            f"{output}: its array cannot be opened ({error}); --overwrite of predict starts anew"
        ) from error


def find_damage(output: Output, ledger: Ledger, report: Report) -> Findings:
    """Read every block back; a block that is made anew meanwhile is looked at once more."""
    attempts, done = ledger.attempts.copy(), np.flatnonzero(ledger.done)
    damaged = dict(damage_of(output, ledger, done, report))
    ledger.refresh()
    remade = [number for number in damaged if ledger.attempts[number] != attempts[number]]
    for number in remade:
        del damaged[number]
    damaged |= damage_of(output, ledger, [number for number in remade if ledger.done[number]])
    damaged |= {int(number): MISSING for number in ledger.missing}
    return Findings(checked=len(done), damaged=damaged)


def damage_of(
    output: Output, ledger: Ledger, blocks: Iterable[int], report: Report = lambda done, total: None
) -> Iterator[tuple[int, str]]:
    """Blocks that are not what their receipts say, and how; several are read at a time."""
    numbers, size = [int(number) for number in blocks], output.plan.region.size
    waiting: deque[tuple[int, Future[str | None]]] = deque()
    with ThreadPoolExecutor(readers := reading_at_once(output.plan)) as pool:
        try:
            for place in range(len(numbers) + readers):
                if place < len(numbers):
                    waiting.append((numbers[place], pool.submit(damage, output, ledger, numbers[place])))
                if place >= readers and waiting:
                    number, future = waiting.popleft()
                    if (what := future.result()) is not None:
                        yield number, what
                    report(size * (place - readers + 1) // len(numbers), size)
        finally:
            pool.shutdown(cancel_futures=True)


def reading_at_once(plan: Plan) -> int:
    """Threads that read: one per core, fewer where blocks are large."""
    voxels = int(np.prod(plan.block_shape, dtype=np.int64)) * plan.choices.outputs
    block_bytes = COPIES * voxels * ITEM_BYTES[plan.choices.dtype]
    return max(1, min(len(os.sched_getaffinity(0)), READ_BYTES // block_bytes))


def damage(output: Output, ledger: Ledger, number: int) -> str | None:
    """What is wrong with a block; None: nothing."""
    try:
        voxels = output.read(output.plan.output_box(output.plan.block(number)))
    except MemoryError:
        raise
    except Exception as error:  # codecs raise what they like
        return f"unreadable ({' '.join(str(error).split()) or type(error).__name__})"
    return None if checksum(voxels) == ledger.checksums[number].tobytes().hex() else OTHER


def repair(request: VerifyRequest, run: Run, report: Report, drain: Drain, where: Where) -> Findings:
    """Compute anew what is damaged or missing, and nothing else; then look at it again.

    The receipts are void before anything is touched: wherever this is killed, predict or another repair goes on.
    """
    with run.folder.launcher(take_over=request.take_over):
        run.folder.require_no_shares(take_over=request.take_over)
        require_no_jobs(where, run)
        ledger = run.folder.ledger(run.plan.blocks)
        found = find_damage(run.output, ledger, report)
        if found.damaged:
            require_same_input(run)
            void(run, ledger, found.damaged)
            run.output.mark_incomplete()
            run.prepare()
            compute(run, ledger.refresh(), where, report, drain())
            found = look_again(run.output, ledger.refresh(), found)
        if not found.damaged:
            run.close(ledger)
    return found


def look_again(output: Output, ledger: Ledger, before: Findings) -> Findings:
    """What is still damaged of what was, and what is not."""
    made = [number for number in before.damaged if ledger.done[number]]
    still = dict(damage_of(output, ledger, made)) | {int(number): MISSING for number in ledger.missing}
    mended = {number: what for number, what in before.damaged.items() if number not in still}
    return Findings(checked=before.checked, damaged=still, repaired=mended)


def void(run: Run, ledger: Ledger, blocks: Iterable[int]) -> None:
    """Take back the receipts of blocks; on disk when this returns."""
    with ReceiptBook(run.folder.receipts, run.request.output_path) as book:
        for number in blocks:
            if ledger.done[number]:
                book.add(void_receipt(number, int(ledger.attempts[number]) + 1))


def require_same_input(run: Run) -> None:
    """Raise where volume or model are others now: what they give would not fit the rest."""
    if told := changes(run.plan, run.folder.places()):
        first = told[0]
        raise UnetcliError(
            f"{run.request.output_path}: cannot be repaired, the {first.source} {first.path} {first.what}; "
            "predict with the unchanged one notes where it is now"
        )


def adopted(request: VerifyRequest, folder: RunFolder, plan: Plan) -> Run:
    """The run that made an output, to go on with."""
    places = folder.places()
    return Run(
        request=PredictRequest(
            volume=places.volume,
            output=request.output,
            model=Path(places.model),
            mask=places.mask,
            device=request.device or places.device,
            run_folder=request.run_folder,
            retries=request.retries,
            take_over=request.take_over,
        ),
        source=open_volume(places.volume),
        model=Path(places.model),
        folder=folder,
        plan=plan,
    )


def workbench_of(request: VerifyRequest, folder: RunFolder, plan: Plan) -> Workbench:
    """What it takes to compute windows of an output anew."""
    places = folder.places()
    places = replace(places, output=absolute(str(request.output)), device=request.device or places.device)
    bench = open_workbench(folder, plan, places)
    bench.ledger.refresh()
    return bench


def named(plan: Plan, damaged: dict[int, str]) -> list[Damage]:
    """Damage with its place, in the order of the blocks."""
    return [
        Damage(block=number, place=describe(plan.block(number).box, plan.axes), what=what)
        for number, what in sorted(damaged.items())
    ]
