"""The run folder: its marker, its lock, and the paths of plan, receipts and logs."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from unetcli import __version__
from unetcli.core.errors import UnetcliError
from unetcli.core.files import (
    Place,
    draft_of,
    drafts,
    is_draft,
    is_remote,
    publish,
    remove,
    remove_aside,
    replacing,
    sync,
)
from unetcli.core.lock import hold, require_free
from unetcli.core.records import OddFile, from_json, read_record, read_text, to_json
from unetcli.engine.receipts import Ledger
from unetcli.executors.slurm.journal import JobJournal

MARKER = "unetcli-run.json"
FORMAT = 2
"""Version of the layout of run folders."""
FORMER_NAMES = ("places.json", "troubles")
"""Names from format 1 that are no longer used."""
PREDICT, LABEL, EVALUATE = "predict", "label", "evaluate"
"""Steps that have run folders."""
LOCK_NAMES = ("lock", "lock.guard")
MAX_LISTED = 3
"""Number of foreign files that a message lists."""
CLAIM_ATTEMPTS = 50
"""Maximum number of attempts to claim a run folder that other processes create or delete at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Contents of a marker file."""

    unetcli: str
    """Version of unetcli that created the folder."""
    format: int
    step: str


def read_mark(folder: Path) -> Mark | None:
    """Read the marker of a folder; return None if it has none.

    Raises
    ------
    UnetcliError
        The file exists, but unetcli did not write it, or it is damaged.
    """
    file = folder / MARKER
    try:
        return read_record(file, Mark, "damaged, or not written by unetcli; choose another folder with --run-folder")
    except (FileNotFoundError, NotADirectoryError):
        return None


def require_format(folder: Path, mark: Mark, then: str) -> None:
    """Raise if the folder has the format of another version of unetcli."""
    if mark.format != FORMAT:
        raise UnetcliError(
            f"{folder}: a run folder of format {mark.format}, made by unetcli {mark.unetcli}; "
            f"this unetcli ({__version__}) reads format {FORMAT}; {then}"
        )


def require_claimable(folder: Path, step: str, *, overwrite: bool = False) -> None:
    """Raise unless the folder is a run folder of ``step``, is empty, or does not exist.

    With ``overwrite``, a run folder of another format is accepted too.
    """
    found = _mark_or_empty(folder)
    if found is None:
        return
    if found.step != step:
        raise UnetcliError(
            f"{folder}: a run folder of {found.step}; choose another folder for {step} with --run-folder"
        )
    if not overwrite:
        way = "--overwrite replaces it" if step != EVALUATE else "delete it"
        require_format(folder, found, f"{way}, or choose another folder with --run-folder")


def _mark_or_empty(folder: Path) -> Mark | None:
    """Read the marker; return None if the folder is empty or does not exist, and raise if it has only foreign files.

    Other launchers may create or delete the folder between reading the marker and listing the folder. The files count
    as foreign only if they are still the same, and without a marker, when both are read again.
    """
    names: list[str] = []
    for _ in range(CLAIM_ATTEMPTS):
        before, found = names, read_mark(folder)
        names = [] if found else _names_in(folder)
        if not names or (names == before and MARKER not in names):
            break
    if names:
        rest = len(names) - MAX_LISTED
        listed = ", ".join(names[:MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
        raise UnetcliError(
            f"{folder}: contains {listed} but no {MARKER}, so unetcli did not create it; "
            "move it away, or use --run-folder with an empty or new folder"
        )
    return found


def _names_in(folder: Path) -> list[str]:
    """List a folder, except drafts of the marker that killed launchers left; a missing folder has no files."""
    try:
        return sorted(path.name for path in folder.iterdir() if not is_draft(path.name, MARKER))
    except (FileNotFoundError, NotADirectoryError) as error:
        if isinstance(error, FileNotFoundError) and not folder.is_symlink():
            return []
        raise UnetcliError(f"{folder}: not a folder; choose an empty or new one with --run-folder") from error


def claim(folder: Path, step: str, *, overwrite: bool = False) -> None:
    """Create a run folder of ``step`` if it does not exist; raise as :func:`require_claimable` does."""
    require_claimable(folder, step, overwrite=overwrite)
    if not folder.exists():
        _make(folder, step)
    mark(folder, step, overwrite=overwrite)


def _make(folder: Path, step: str) -> None:
    """Create the folder together with its marker, because a process that waits for its lock may write to it at once."""
    draft = draft_of(folder)
    draft.mkdir(parents=True)
    try:
        publish(draft / MARKER, _text(step))
        os.rename(draft, folder)
        sync(folder.absolute().parent)
    except (OSError, UnetcliError) as error:
        remove(draft)
        if getattr(error, "errno", None) not in (errno.ENOTEMPTY, errno.EEXIST):  # otherwise another was faster
            with suppress(OSError):  # the folder above, unless it has other files
                draft.parent.rmdir()
            raise


def mark(folder: Path, step: str, *, overwrite: bool = False) -> None:
    """Publish the marker if there is none; raise if another launcher has claimed the folder for another step."""
    if read_mark(folder) is None:
        publish(folder / MARKER, _text(step))
    require_claimable(folder, step, overwrite=overwrite)


def upgrade_marker(folder: Path) -> None:
    """Rewrite a marker of another format, after deleting the remaining files of that format."""
    found = read_mark(folder)
    if found and found.format != FORMAT:
        for path in (*(folder / name for name in FORMER_NAMES), *drafts(folder, *FORMER_NAMES)):
            remove_aside(path)
        with replacing(folder / MARKER) as draft:
            draft.write_text(_text(found.step))


def _text(step: str) -> str:
    return json.dumps(asdict(Mark(unetcli=__version__, format=FORMAT, step=step)))


def remove_run_folder(folder: Path, names: Collection[str]) -> None:
    """Delete a run folder whose contents have the given names. The caller holds its lock.

    The folder is renamed first, so that a kill leaves nothing that the same command would reject. If there are foreign
    files, they stay in place with the marker and the lock, which the caller releases.
    """
    aside = _rename_aside(folder, names)
    if aside is None:
        for name in names:
            remove(folder / name)
    elif not _clear(aside, names):  # a file was added just before the folder was renamed
        with suppress(OSError):
            os.rename(aside, folder)


def _rename_aside(folder: Path, names: Collection[str]) -> Path | None:
    """Rename a run folder and return its new path; None if its contents or type forbid it."""
    if not _all_ours(folder, names) or folder.is_symlink() or folder.name in ("", ".."):
        return None
    aside = draft_of(folder)
    try:
        os.rename(folder, aside)
    except OSError:  # a mount point, or the folder above is read-only
        return None
    return aside


def sweep_beside(folder: Path, step: str, names: Collection[str]) -> None:
    """Delete drafts of run folders whose creation or removal was interrupted. The caller holds the lock."""
    for aside in drafts(folder.parent, glob.escape(folder.name)):
        with suppress(UnetcliError, OSError):
            found = read_mark(aside)
            if not _names_in(aside) or (found and (found.step, found.format) == (step, FORMAT)):
                _clear(aside, names)


def _clear(aside: Path, names: Collection[str]) -> bool:
    """Delete unetcli's files, then the marker and the folder; return False if there are foreign files.

    Other processes may do the same concurrently, so that files vanish at any time. What a kill leaves, the next run
    deletes; the marker therefore stays while there are other files.
    """
    with suppress(OSError):
        for path in list(aside.iterdir()):
            if path.name != MARKER and _is_ours(path.name, names):
                shutil.rmtree(path, ignore_errors=True)  # has no effect on a file or a link
                path.unlink(missing_ok=True)
        if not _all_ours(aside, names):
            return False
        if [path.name for path in aside.iterdir()] in ([], [MARKER]):
            (aside / MARKER).unlink(missing_ok=True)
            aside.rmdir()
    return True


def _all_ours(folder: Path, names: Collection[str]) -> bool:
    return all(_is_ours(path.name, names) for path in folder.iterdir())


def _is_ours(name: str, names: Collection[str]) -> bool:
    known = (MARKER, *LOCK_NAMES, *names)
    return name in known or is_draft(name, *known)


T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareLayout:
    """Number of shares, and the job array elements that they belong to."""

    count: int
    first: int = 0
    """Array index of share 0."""
    step: int = 1
    """Difference between the array indices of consecutive shares."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.step < 1:
            raise UnetcliError(f"{self.count} shares at a difference of {self.step}; expected 1 or more of both")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Defines every path of one step of one output."""

    path: Path

    @classmethod
    def of(cls, store: Place, step: str = "predict") -> RunFolder:
        """Return the default run folder beside a store; raise if the store is remote."""
        if is_remote(store):
            raise UnetcliError(
                f"{store}: a remote store needs --run-folder FOLDER, a local folder for plan and receipts"
            )
        return cls(Path(f"{os.path.abspath(store)}.run") / step)  # noqa: PTH100 - does not resolve links

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def receipts(self) -> Path:
        return self.path / "receipts"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def failures(self) -> Path:
        """Failures of blocks, one JSON line each; see :mod:`unetcli.engine.receipts`."""
        return self.path / "failures"

    @property
    def workers(self) -> Path:
        """Heartbeats of workers."""
        return self.path / "workers"

    @property
    def canaries(self) -> Path:
        """One file per host whose results were compared with those of another host."""
        return self.path / "canaries"

    @property
    def stop(self) -> Path:
        """File whose presence stops workers before their next block; it contains the reason."""
        return self.path / "stop"

    @property
    def paths_file(self) -> Path:
        return self.path / "paths.json"

    @property
    def shares_file(self) -> Path:
        """The number of shares; see :class:`ShareLayout`."""
        return self.path / "shares.json"

    @property
    def dask_jobs_file(self) -> Path:
        """Names of the SLURM worker jobs of the launcher's Dask scheduler."""
        return self.path / "dask-jobs.txt"

    @property
    def tls(self) -> Path:
        """Certificate of the launcher's Dask scheduler."""
        return self.path / "tls"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders that every run has."""
        return (self.receipts, self.logs, self.failures, self.workers, self.canaries)

    @property
    def contents(self) -> list[Path]:
        """Files and folders of the engine, for any step, without marker and locks. The plan comes first."""
        files = (self.plan_file, self.paths_file, self.shares_file, self.stop, self.dask_jobs_file)
        return [*files, JobJournal(self.path).file, *self.folders, self.tls]

    def make(self) -> None:
        """Create the folders that do not exist."""
        for folder in self.folders:
            folder.mkdir(exist_ok=True)

    def read_plan(self, kind: type[T], version: int) -> T | None:
        """Read the frozen plan; return None if there is none."""
        try:
            return from_json(kind, read_text(self.plan_file), version, "plan")
        except FileNotFoundError:
            return None
        except OddFile as error:
            raise OddFile(f"{error}; --overwrite starts over") from error
        except (UnetcliError, ValueError) as error:
            raise OddFile(f"{self.plan_file}: not a readable plan: {error}; --overwrite starts over") from error

    def publish_plan(self, plan: T, version: int) -> T:
        """Freeze the plan; return the frozen one, which is another launcher's if that was faster."""
        publish(self.plan_file, to_json(plan, version))
        frozen = self.read_plan(type(plan), version)
        assert frozen is not None
        return frozen

    def replace_plan(self, plan: object, version: int) -> None:
        """Replace the frozen plan. The caller holds the launcher's lock and has deleted the old plan's receipts."""
        with replacing(self.plan_file) as draft:
            draft.write_text(to_json(plan, version))

    def read_paths(self, kind: type[T]) -> T:
        """Read the current paths of the run's data."""
        return read_record(self.paths_file, kind, "the command that made the run writes it again, or use --overwrite")

    def write_paths(self, paths: Any) -> None:
        """Store the paths of the data for workers; unlike the plan, they may change between two launches."""
        with replacing(self.paths_file) as draft:
            draft.write_text(json.dumps(asdict(paths), indent=1))

    def ledger(self, blocks: int) -> Ledger:
        """Read the receipts of the run."""
        return Ledger(self.receipts, blocks).refresh()

    def clear_receipts(self, own: Iterable[Path] = ()) -> None:
        """Delete all receipts and ``own``, because the results they describe no longer exist."""
        remove_aside(self.receipts)
        self.clear_failures()
        for path in own:
            remove_aside(path)

    def clear_failures(self) -> None:
        """Delete failures, heartbeats and the stop file, because failed blocks are about to be retried."""
        self.stop.unlink(missing_ok=True)
        for folder in (self.failures, self.workers):
            remove_aside(folder)
        self.make()

    def clear_run(self, own: Iterable[Path] = ()) -> None:
        """Delete plan, receipts, logs and ``own``; the plan first, because nothing is used without it.

        The marker stays, so that the folder still belongs to unetcli after a kill at any point.
        """
        self.plan_file.unlink(missing_ok=True)
        self.shares_file.unlink(missing_ok=True)
        for folder in (self.logs, self.canaries):
            remove_aside(folder)
        self.clear_receipts(own)
        upgrade_marker(self.path)

    @contextmanager
    def launcher(
        self, step: str, own: Sequence[Path] = (), *, overwrite: bool = False, take_over: bool = False, wait: float = 0
    ) -> Iterator[None]:
        """Claim the folder for a step and hold the launcher's lock, which allows one launcher per output.

        See :func:`unetcli.engine.runfolder.claim` and :func:`unetcli.core.lock.hold`. Leftovers of killed launchers are
        deleted; ``own`` lists what the step keeps in the folder in addition to :attr:`contents`.
        """
        with ExitStack() as held:
            for left in reversed(range(CLAIM_ATTEMPTS)):
                try:
                    claim(self.path, step, overwrite=overwrite)
                    held.enter_context(hold(self.lock, take_over=take_over, wait=wait))
                    mark(self.path, step, overwrite=overwrite)
                    break
                except FileNotFoundError:  # the lock belonged to an evaluation, which has deleted the folder
                    held.close()
                    if not left:
                        raise
            sweep_beside(self.path, step, [path.name for path in (*self.contents, *own)])
            self.sweep(own)
            self.make()
            yield

    def sweep(self, own: Sequence[Path] = ()) -> None:
        """Delete unfinished files of killed launchers directly in the folder. The caller holds the lock.

        Only launchers create drafts with these names; they hold the lock, or tolerate the loss (:func:`publish`).
        """
        names = [path.name for path in (*self.contents, *own)]
        for draft in drafts(self.path, MARKER, *LOCK_NAMES, "share-*.lock", *names):
            remove(draft)

    def sweep_workers(self) -> None:
        """Delete unfinished files of killed workers; only valid while no worker is running."""
        for folder in (self.workers, self.canaries, *self.logs.glob("slurm/*/outcomes")):
            for draft in drafts(folder, "*.json"):
                remove(draft)

    def share_lock(self, number: int) -> Path:
        """Return the lock that the process computing a share holds."""
        return self.path / f"share-{number}.lock"

    def require_no_shares(self, *, take_over: bool = False) -> None:
        """Raise if a process with ``--share`` uses this output, unless it has provably ended."""
        for path in sorted(self.path.glob("share-*.lock")):
            require_free(path, take_over=take_over)

    def share_layout(self) -> ShareLayout | None:
        """Read the layout of the shares; return None if the run has none."""
        try:
            return read_record(self.shares_file, ShareLayout, "--overwrite starts over")
        except FileNotFoundError:
            return None

    def publish_share_layout(self, layout: ShareLayout) -> ShareLayout:
        """Freeze the layout of the shares; return the frozen one."""
        publish(self.shares_file, json.dumps(asdict(layout)))
        return self.share_layout() or layout
