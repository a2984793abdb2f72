"""What the engine asks of a step: block-wise work on stores, frozen in a run folder.

The engine knows nothing of probabilities, labels or scores; a step knows nothing of receipts, locks or SLURM.
"""

from __future__ import annotations

import functools
import time
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError, UnreadableBlock
from unetcli.core.files import UNWRITABLE, Place, absolute
from unetcli.engine.receipts import Ledger
from unetcli.engine.runfolder import RunFolder
from unetcli.planning.plan import Stage, pending, stage_of

CPU = "cpu"
TRANSPORTS = ("aiohttp", "botocore")
"""Packages whose errors come from the connection to a remote store, such as a status 503, not from the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockResult:
    """What computing one block gave: the checksum of what is stored now, or an error."""

    number: int
    checksum: str = ""
    """128 bits, hexadecimal."""
    files: Sequence[Path] = ()
    """Written files, which have to reach the disk before the receipt; none for remote outputs."""
    voxels: int = 0
    error: Exception | None = None
    device: str = CPU
    tile: int = 0
    """Side of the tile used; 0 where no network ran."""
    read_seconds: float = 0.0
    forward_seconds: float = 0.0
    write_seconds: float = 0.0


class DamagedResult(UnreadableBlock):
    """The stored result of another block, which this one needs, is damaged: that block has to be computed again."""

    def __init__(self, block: int, message: str) -> None:
        super().__init__(message)
        self.block = block


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Part of the input that is not what it was when the run was planned."""

    source: str
    """``volume``, ``model``, ``prediction`` ..."""
    path: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one SLURM job needs by estimate, where the user says nothing."""

    host_bytes: int
    blocks: int
    """Blocks that a job is worth being started for."""


@dataclass(frozen=True, kw_only=True)
class StepPaths:
    """Where inputs and output of a step lie now. Subclasses add fields of text; those named ``device`` are no paths."""

    def absolute(self) -> Self:
        """The same for other processes, which may run in other folders."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "device"}
        return replace(self, **{name: absolute(path) for name, path in given.items() if isinstance(path, str)})


class Step(ABC):
    """One kind of block-wise work. Subclasses are dataclasses with at least these fields, opened from a run folder."""

    FORMAT: typing.ClassVar[int] = 1
    """Version of the plan's JSON."""

    folder: RunFolder
    plan: Any
    """A frozen dataclass of integers and settings, from which every block follows."""
    paths: Any
    """A :class:`StepPaths`."""

    # ---- what it is

    command: typing.ClassVar[str]
    """The command that continues it."""

    @property
    @abstractmethod
    def output(self) -> Place:
        """What is made, or scored."""

    @property
    def name(self) -> str:
        """Name of the step among those of a store."""
        return self.command

    @property
    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """Worked off one after the other; blocks are numbered through all of them."""

    @abstractmethod
    def place(self, number: int) -> str:
        """Where a block lies, for people."""

    @abstractmethod
    def voxels(self, blocks: NDArray[np.bool_]) -> int:
        """Voxels of the blocks that a mask over all of them picks."""

    # ---- in a worker

    @abstractmethod
    def compute(self, blocks: Sequence[int], stopping: Callable[[], bool]) -> Generator[BlockResult]:
        """Compute and store blocks of one stage; may be repeated. Ends early once ``stopping()`` is true."""

    # ---- reading back

    @abstractmethod
    def read_back(self, number: int) -> str:
        """Checksum of what is stored of a block; raises where that is damaged."""

    @property
    @abstractmethod
    def block_bytes(self) -> int:
        """Size of the largest block in memory, about."""

    # ---- in a launcher

    @abstractmethod
    def is_made(self) -> bool:
        """Whether the output exists."""

    @abstractmethod
    def create(self) -> None:
        """Make the output, empty, where it is missing."""

    @abstractmethod
    def finish(self) -> Any:
        """All blocks are there: mark the output complete. May be repeated.

        Raises
        ------
        DamagedResult
            A block turned out to be damaged: it is computed again.
        """

    @abstractmethod
    def is_complete(self) -> bool:
        """Whether nothing is left to do once every block is done."""

    # ---- where a step differs from most

    @property
    def own_files(self) -> tuple[Path, ...]:
        """Files and folders that the step keeps in the run folder, beside the engine's."""
        return ()

    @property
    def writes_from(self) -> int:
        """First block that writes to the output; what earlier blocks make lies in the run folder."""
        return 0

    @property
    def levels_from(self) -> int | None:
        """First block of coarser levels that may be missing from an output which is otherwise complete."""
        return None

    @property
    def every_gpu(self) -> bool:
        """Whether each GPU of this machine gets a worker of its own."""
        return False

    def data(self, stage: Stage) -> Place:
        """Folder or URL below which the blocks of a stage write."""
        return self.output

    def differences(self, frozen: Any) -> list[str]:
        """In which settings this plan differs from the frozen one, a phrase each."""
        return []

    def continue_from(self, frozen: Any) -> None:
        """Take up the plan that was frozen by an earlier launch; raises where its settings are others.

        The caller holds the launcher's lock.
        """
        require_continued(self, frozen, "--overwrite starts anew")

    def announce(self, found: int) -> None:
        """Log what is about to be computed; ``found`` blocks are done already."""

    def prepare_stage(self, stage: Stage) -> None:
        """Make what the blocks of a stage write to."""

    def look_again(self) -> None:
        """Forget what was read of the output: others may have changed it."""

    def discard(self) -> None:
        """Delete the output, to begin anew."""

    def sweep(self) -> None:
        """Delete what killed workers left unfinished. No worker lives."""

    def kept(self, ledger: Ledger) -> NDArray[np.bool_]:
        """Mask of blocks whose result must still exist."""
        return np.ones(len(ledger.done), np.bool_)

    def reopen(self) -> None:
        """Say in the output that it is not complete: blocks are about to be computed again."""

    def restore(self, damaged: Iterable[int], ledger: Ledger, stopping: Callable[[], bool]) -> bool:
        """Make again what a repair of damaged blocks needs and was deleted by design; False if it was stopped."""
        return True

    def also_void(self, damaged: Sequence[int]) -> Iterable[int]:
        """Blocks to be computed again when others are: these, and those made of them."""
        return damaged

    def input_changes(self) -> list[Change]:
        """What differs between the input now and when it was planned."""
        return []

    def resources(self, asked: Any) -> Resources:
        """Estimate of what SLURM jobs need; ``asked`` is what the user asks for."""
        return Resources(host_bytes=2**30, blocks=max(1, self.blocks // 100))

    def require_ready(self) -> None:
        """Raise where the input is not ready to be repaired from."""

    def require_readable(self) -> None:
        """Raise where there is no output that can be read back."""

    begins_anew: typing.ClassVar[bool] = False
    """Whether a frozen plan that cannot be read is dropped with all that was made by it."""
    repairable: typing.ClassVar[bool] = True
    """Whether verify --repair computes damaged blocks again. If not, missing blocks are no damage either."""

    @property
    def way_out(self) -> str:
        """What the user can do about an input that has changed."""
        return f"{self.command} --overwrite starts anew"

    def look_closer(self, request: Any) -> dict[str, Any]:
        """Other findings of verify, as fields of :class:`unetcli.engine.verify.Verification`."""
        return {}

    def moved(self, output: Place, device: str | None = None) -> Self:
        """The step where its output lies now, to be continued on that device."""
        return self

    # ---- the same for all

    @property
    def blocks(self) -> int:
        """Number of blocks of all stages."""
        return self.stages[-1].blocks.stop

    def pending(self) -> NDArray[np.intp]:
        """Blocks that can be worked off now: the missing ones of the first stage that has some."""
        return pending(self.stages, self.ledger.refresh().missing)

    def stage_of(self, number: int) -> Stage:
        """The stage of a block."""
        return stage_of(self.stages, number)

    @property
    def size(self) -> int:
        """Voxels of all blocks."""
        return self.voxels(np.ones(self.blocks, np.bool_))

    def is_gone(self, done: NDArray[np.bool_]) -> bool:
        """Whether the output was deleted, by the blocks that are done."""
        return bool(done[self.writes_from :].any()) and not self.is_made()

    @functools.cached_property
    def ledger(self) -> Ledger:
        """The receipts; to be refreshed before they are believed."""
        return Ledger(self.folder.receipts, self.blocks)

    @classmethod
    def open(cls, folder: RunFolder) -> Self:
        """The step as its run folder has it.

        Raises
        ------
        FileNotFoundError
            No plan was frozen there yet.
        """
        types = typing.get_type_hints(cls)
        plan = folder.read_plan(types["plan"], cls.FORMAT)
        if plan is None:
            raise FileNotFoundError(folder.plan_file)
        return cls(folder=folder, plan=plan, paths=folder.read_paths(types["paths"]))  # type: ignore[call-arg]


def attempt(number: int, make: Callable[[], BlockResult]) -> BlockResult:
    """The result of making a block, or its error. Raises where writing would fail for every other block too."""
    started = time.perf_counter()
    try:
        made = make()
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise
        return BlockResult(number=number, error=error)
    return made if made.write_seconds else replace(made, write_seconds=time.perf_counter() - started)


def is_unusable(error: Exception) -> bool:
    """Whether the input itself is at fault, and not the way to it: trying again would not help."""
    cause = error.__cause__
    unreachable = (
        (isinstance(cause, OSError) and cause.errno is not None)  # codecs raise OSError without a number
        or isinstance(cause, TimeoutError)
        or type(cause).__module__.partition(".")[0] in TRANSPORTS
    )
    return isinstance(error, DamagedResult) or (isinstance(error, UnreadableBlock) and not unreachable)


def require_continued(step: Step, frozen: Any | None, way: str) -> None:
    """Refuse to continue an output with other settings than it was begun with.

    ``way`` says what else the user can do.
    """
    if frozen is None:
        if step.is_made():
            raise UnetcliError(
                f"{step.output}: exists, but {step.folder.plan_file}, which says how it was made, is gone; {way}"
            )
    elif found := step.differences(frozen):
        raise UnetcliError(f"{step.output}: begun with other settings: {'; '.join(found)}; use those again, {way}")
