"""The interface between the engine and a step, which processes stores block by block by a frozen plan.

The engine does not depend on probabilities, labels or scores; a step does not depend on receipts, locks or SLURM.
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
    """Result of computing one block: the checksum of the stored data, or an error."""

    number: int
    checksum: str = ""
    """128 bits, hexadecimal."""
    files: Sequence[Path] = ()
    """Files to be synced to disk before the receipt is written; empty for remote outputs."""
    voxels: int = 0
    error: Exception | None = None
    device: str = CPU
    tile: int = 0
    """Side of the tile used, in voxels; 0 if no network ran."""
    read_seconds: float = 0.0
    forward_seconds: float = 0.0
    write_seconds: float = 0.0


class OtherSettings(UnetcliError):
    """An output was begun with other settings."""


class DamagedResult(UnreadableBlock):
    """The stored result of another block, which this one needs, is damaged and has to be recomputed."""

    def __init__(self, block: int, message: str) -> None:
        super().__init__(message)
        self.block = block


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A part of the input that has changed since the run was planned."""

    source: str
    """``volume``, ``model``, ``prediction`` ..."""
    path: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Estimated needs of one SLURM job, used where the user sets none."""

    host_bytes: int
    blocks: int
    """Blocks per job, enough to make starting the job worthwhile."""


@dataclass(frozen=True, kw_only=True)
class StepPaths:
    """Current paths or URLs of the inputs and the output. ``device`` is not a path.

    Subclasses add fields that are a ``str`` or several in a tuple.
    """

    def absolute(self) -> Self:
        """Return absolute paths, for processes that run in other folders."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "device"}
        single = {name: absolute(path) for name, path in given.items() if isinstance(path, str)}
        several = {name: tuple(map(absolute, paths)) for name, paths in given.items() if isinstance(paths, tuple)}
        return replace(self, **single, **several)


class Step(ABC):
    """One kind of block-wise work. Subclasses are dataclasses with at least the fields below."""

    FORMAT: typing.ClassVar[int] = 1
    """Version of the plan's JSON format."""

    folder: RunFolder
    plan: Any
    """A frozen dataclass of integers and settings that determines every block."""
    paths: Any
    """A :class:`StepPaths`."""

    # ---- identity and plan

    command: typing.ClassVar[str]
    """The command that runs or continues the step."""

    @property
    @abstractmethod
    def output(self) -> Place:
        """The store that is written or, in an evaluation, scored."""

    @property
    def name(self) -> str:
        """Name that distinguishes the step from others of the same store."""
        return self.command

    @property
    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """The stages in order; block numbers continue from one to the next."""

    @abstractmethod
    def place(self, number: int) -> str:
        """Return a description of a block's location, for messages."""

    @abstractmethod
    def voxels(self, blocks: NDArray[np.bool_]) -> int:
        """Return the number of voxels in the blocks that a mask over all blocks selects."""

    # ---- in a worker

    @abstractmethod
    def compute(self, blocks: Sequence[int], stopping: Callable[[], bool]) -> Generator[BlockResult]:
        """Compute and store blocks of one stage. Repeatable; ends early once ``stopping()`` returns True."""

    # ---- reading back

    @abstractmethod
    def read_back(self, number: int) -> str:
        """Return the checksum of the stored block; raise if the data are damaged."""

    @property
    @abstractmethod
    def block_bytes(self) -> int:
        """Approximate memory of the largest block, in bytes."""

    # ---- in a launcher

    @abstractmethod
    def is_made(self) -> bool:
        """Return whether the output exists."""

    @abstractmethod
    def create(self) -> None:
        """Create the empty output if it does not exist."""

    @abstractmethod
    def finish(self) -> Any:
        """Mark the output complete once all blocks are done. Repeatable.

        Raises
        ------
        DamagedResult
            A block is damaged; the engine computes it again.
        """

    @abstractmethod
    def is_complete(self) -> bool:
        """Return whether the step has finished, given that every block is done."""

    # ---- hooks with a default

    @property
    def own_files(self) -> tuple[Path, ...]:
        """Files and folders that the step keeps in the run folder, in addition to the engine's."""
        return ()

    @property
    def writes_from(self) -> int:
        """First block that writes to the output; earlier blocks write to the run folder."""
        return 0

    @property
    def levels_from(self) -> int | None:
        """First block of the coarser levels, which an otherwise complete output may lack."""
        return None

    @property
    def every_gpu(self) -> bool:
        """Whether to start one worker per GPU of this machine."""
        return False

    def data(self, stage: Stage) -> Place:
        """Return the folder or URL that the blocks of a stage write to."""
        return self.output

    def differences(self, frozen: Any) -> list[str]:
        """Describe each setting in which this plan differs from the frozen one."""
        return []

    def continue_from(self, frozen: Any) -> None:
        """Adopt the plan that an earlier launch froze; raise if its settings differ.

        The caller holds the launcher's lock.
        """
        require_continued(self, frozen, "--overwrite starts over")

    def announce(self, found: int) -> None:
        """Log the work ahead; ``found`` blocks are done already."""

    def prepare_stage(self, stage: Stage) -> None:
        """Create whatever the blocks of a stage write to."""

    def clear_cache(self) -> None:
        """Discard cached metadata of the output, which other processes may have changed."""

    def discard(self) -> None:
        """Delete the output, so that it can be created again."""

    def sweep(self) -> None:
        """Delete unfinished files of killed workers. Called only when no worker is running."""

    def kept(self, ledger: Ledger) -> NDArray[np.bool_]:
        """Return a mask of the blocks whose results must still exist."""
        return np.ones(len(ledger.done), np.bool_)

    def reopen(self) -> None:
        """Mark the output incomplete, because blocks are about to be recomputed."""

    def restore(self, damaged: Iterable[int], ledger: Ledger, stopping: Callable[[], bool]) -> bool:
        """Recreate intermediate results, deleted by design, that a repair needs; return False if stopped."""
        return True

    def with_dependents(self, damaged: Sequence[int]) -> Iterable[int]:
        """Return the damaged blocks and all blocks computed from them, which have to be recomputed too."""
        return damaged

    def input_changes(self) -> list[Change]:
        """Return the changes of the input since the run was planned."""
        return []

    def resources(self, asked: Any) -> Resources:
        """Estimate the needs of SLURM jobs; ``asked`` holds the user's own settings."""
        return Resources(host_bytes=2**30, blocks=max(1, self.blocks // 100))

    def require_ready(self) -> None:
        """Raise if the input cannot be used for a repair."""

    def require_readable(self) -> None:
        """Raise if there is no output to be read back."""

    replaces_unreadable_plan: typing.ClassVar[bool] = False
    """Whether to discard an unreadable frozen plan together with the results computed from it."""
    repairable: typing.ClassVar[bool] = True
    """Whether ``verify --repair`` recomputes damaged blocks. If not, missing blocks do not count as damage."""

    @property
    def remedy(self) -> str:
        """Advice for the user when the input has changed."""
        return f"{self.command} --overwrite starts over"

    def extra_checks(self, request: Any) -> dict[str, Any]:
        """Run further checks of verify; return fields of :class:`unetcli.engine.verify.Verification`."""
        return {}

    def moved(self, output: Place, device: str | None = None) -> Self:
        """Return the step with the current place of its output, and with another device if one is given."""
        return self

    # ---- provided by the engine

    @property
    def blocks(self) -> int:
        """Number of blocks in all stages."""
        return self.stages[-1].blocks.stop

    def pending(self) -> NDArray[np.intp]:
        """Return the blocks that can be computed now: the missing blocks of the first incomplete stage."""
        return pending(self.stages, self.ledger.refresh().missing)

    def stage_of(self, number: int) -> Stage:
        """Return the stage that a block belongs to."""
        return stage_of(self.stages, number)

    @property
    def size(self) -> int:
        """Number of voxels in all blocks."""
        return self.voxels(np.ones(self.blocks, np.bool_))

    def is_gone(self, done: NDArray[np.bool_]) -> bool:
        """Return whether the output was deleted although blocks in ``done`` had been written to it."""
        return bool(done[self.writes_from :].any()) and not self.is_made()

    @functools.cached_property
    def ledger(self) -> Ledger:
        """The receipts of the run; call ``refresh`` before relying on them."""
        return Ledger(self.folder.receipts, self.blocks)

    @classmethod
    def open(cls, folder: RunFolder) -> Self:
        """Open the step that a run folder describes.

        Raises
        ------
        FileNotFoundError
            The folder has no frozen plan yet.
        """
        types = typing.get_type_hints(cls)
        plan = folder.read_plan(types["plan"], cls.FORMAT)
        if plan is None:
            raise FileNotFoundError(folder.plan_file)
        return cls(folder=folder, plan=plan, paths=folder.read_paths(types["paths"]))  # type: ignore[call-arg]


def try_block(number: int, make: Callable[[], BlockResult]) -> BlockResult:
    """Call ``make`` for a block; return its result or error. Raise if writing would fail for every block."""
    started = time.perf_counter()
    try:
        made = make()
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise
        return BlockResult(number=number, error=error)
    return made if made.write_seconds else replace(made, write_seconds=time.perf_counter() - started)


def is_unusable(error: Exception) -> bool:
    """Return whether the input itself is unusable, so that a retry would not help."""
    cause = error.__cause__
    unreachable = (
        (isinstance(cause, OSError) and cause.errno is not None)  # codecs raise OSError without a number
        or isinstance(cause, TimeoutError)
        or type(cause).__module__.partition(".")[0] in TRANSPORTS
    )
    return isinstance(error, DamagedResult) or (isinstance(error, UnreadableBlock) and not unreachable)


def require_continued(step: Step, frozen: Any | None, way: str) -> None:
    """Raise unless an output can be continued: its plan exists and was made with the same settings.

    ``way`` is the advice at the end of the message.
    """
    if frozen is None:
        if step.is_made():
            raise UnetcliError(f"{step.output}: exists, but its plan {step.folder.plan_file} is missing; {way}")
    elif found := step.differences(frozen):
        raise OtherSettings(
            f"{step.output}: begun with other settings: {'; '.join(found)}; use the same settings; {way}"
        )
