"""The run folder: its marker, and the paths of plan, receipts, logs and the launcher's lock."""

from __future__ import annotations

import errno
import glob
import json
import os
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
from unetcli.core.records import from_json, to_json
from unetcli.engine.receipts import Ledger
from unetcli.executors.slurm.journal import JobJournal

MARKER = "unetcli-run.json"
FORMAT = 2
"""Version of what a run folder holds, and where."""
FORMER_NAMES = ("places.json", "troubles")
"""Contents that had other names in format 1."""
PREDICT, LABEL, EVALUATE = "predict", "label", "evaluate"
"""Steps that have run folders."""
LOCK_NAMES = ("lock", "lock.guard")
SHOWN = 3
"""Names of other files that a message lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Contents of a marker."""

    unetcli: str
    """Version of unetcli that made the folder."""
    format: int
    step: str


def read_mark(folder: Path) -> Mark | None:
    """The marker of a folder, or None if it has none.

    Raises
    ------
    UnetcliError
        The file is there, but unetcli did not write it, or it is damaged.
    """
    file = folder / MARKER
    try:
        values = json.loads(file.read_text())
        return Mark(unetcli=str(values["unetcli"]), format=int(values["format"]), step=str(values["step"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError, RecursionError, IsADirectoryError) as error:
        raise UnetcliError(f"{file}: not a marker of unetcli, or damaged; --run-folder names another place") from error


def require_format(folder: Path, mark: Mark, then: str) -> None:
    """Raise if another version of unetcli made the folder, in another format."""
    if mark.format != FORMAT:
        raise UnetcliError(
            f"{folder}: a run folder of format {mark.format}, made by unetcli {mark.unetcli}; "
            f"this unetcli ({__version__}) reads format {FORMAT}; {then}"
        )


def require_claimable(folder: Path, step: str, *, overwrite: bool = False) -> None:
    """Raise unless the folder is a run folder of ``step``, or is empty, or does not exist; changes nothing.

    With ``overwrite`` a run folder of another format is accepted as well.
    """
    found = read_mark(folder)
    if found is None:
        _require_empty(folder)
        return
    if found.step != step:
        raise UnetcliError(
            f"{folder}: a run folder of {found.step}; {step} needs one of its own; --run-folder names another place"
        )
    if not overwrite:
        way = "--overwrite replaces it" if step != EVALUATE else "delete it"
        require_format(folder, found, f"{way}, or --run-folder names another place")


def _require_empty(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UnetcliError(f"{folder}: not a folder; --run-folder names an empty or a new one")
    if others := _names_in(folder):
        listed = ", ".join(others[:SHOWN]) + (f" and {len(others) - SHOWN} more" if len(others) > SHOWN else "")
        raise UnetcliError(
            f"{folder}: holds {listed} and no {MARKER}, so this unetcli did not make it; "
            "move it away, or --run-folder names an empty or a new folder"
        )


def _names_in(folder: Path) -> list[str]:
    """Contents of a folder, but for drafts of the marker, which a killed launcher left."""
    return sorted(path.name for path in folder.iterdir() if not is_draft(path.name, MARKER))


def claim(folder: Path, step: str, *, overwrite: bool = False) -> None:
    """Make a run folder of ``step``, unless it is there already; raises as :func:`require_claimable` does."""
    require_claimable(folder, step, overwrite=overwrite)
    if not folder.exists():
        _make(folder, step)
    mark(folder, step, overwrite=overwrite)


def _make(folder: Path, step: str) -> None:
    """Have the folder appear with its marker in it, as who waits for the lock of an earlier one may write there."""
    draft = draft_of(folder)
    draft.mkdir(parents=True)
    try:
        publish(draft / MARKER, _text(step))
        os.rename(draft, folder)
        sync(folder.absolute().parent)
    except OSError as error:
        remove(draft)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another launcher was faster
            raise


def mark(folder: Path, step: str, *, overwrite: bool = False) -> None:
    """Publish the marker if there is none; raises if another launcher was faster, for another step."""
    if read_mark(folder) is None:
        publish(folder / MARKER, _text(step))
    require_claimable(folder, step, overwrite=overwrite)


def renew(folder: Path) -> None:
    """Rewrite a marker of another format, once the contents of that format are deleted."""
    found = read_mark(folder)
    if found and found.format != FORMAT:
        for path in (*(folder / name for name in FORMER_NAMES), *drafts(folder, *FORMER_NAMES)):
            remove_aside(path)
        with replacing(folder / MARKER) as draft:
            draft.write_text(_text(found.step))


def _text(step: str) -> str:
    return json.dumps(asdict(Mark(unetcli=__version__, format=FORMAT, step=step)))


def remove_run_folder(folder: Path, names: Collection[str]) -> None:
    """Delete a run folder whose contents are called ``names``. The caller holds its lock.

    The folder is renamed first, so that a kill leaves nothing behind that the same command would refuse. Files of
    others stay where they are; so does the marker then, and the lock, which the caller releases.
    """
    aside = _rename_aside(folder, names)
    if aside is None:
        for name in names:
            remove(folder / name)
    elif not _clear(aside, names):  # somebody wrote a file just before the folder was renamed
        with suppress(OSError):
            os.rename(aside, folder)


def _rename_aside(folder: Path, names: Collection[str]) -> Path | None:
    """The new place of a run folder; None if it has to stay, because of its contents or of what it is."""
    if not _all_ours(folder, names) or folder.is_symlink() or folder.name in ("", ".."):
        return None
    aside = draft_of(folder)
    try:
        os.rename(folder, aside)
    except OSError:  # a mount point, or the folder above is read-only
        return None
    return aside


def sweep_beside(folder: Path, step: str, names: Collection[str]) -> None:
    """Delete run folders whose creation or removal was interrupted. The caller holds the lock."""
    for aside in drafts(folder.parent, glob.escape(folder.name)):
        with suppress(UnetcliError, OSError):
            found = read_mark(aside)
            if not _names_in(aside) or (found and (found.step, found.format) == (step, FORMAT)):
                _clear(aside, names)


def _clear(aside: Path, names: Collection[str]) -> bool:
    """Delete the contents that are ours, then the marker and the folder; whether nothing of others was there.

    Another process may do the same at the same time. What one of them leaves, the next run deletes.
    """
    with suppress(OSError):
        for path in list(aside.iterdir()):
            if path.name != MARKER and _is_ours(path.name, names):
                remove(path)
        if not _all_ours(aside, names):
            return False
        (aside / MARKER).unlink(missing_ok=True)
        aside.rmdir()
    return True


def _all_ours(folder: Path, names: Collection[str]) -> bool:
    return all(_is_ours(path.name, names) for path in folder.iterdir())


def _is_ours(name: str, names: Collection[str]) -> bool:
    known = (MARKER, *LOCK_NAMES, *names)
    return name in known or is_draft(name, *known)


T = TypeVar("T")
CLAIMS = 50
"""How often a launcher claims a run folder that others delete at the same moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareLayout:
    """How the blocks are divided into shares, and which elements of a job array these are."""

    count: int
    first: int = 0
    """Array index of share 0."""
    step: int = 1
    """Between the array indices of neighbouring shares."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Owns every path of one step of one output."""

    path: Path

    @classmethod
    def of(cls, store: Place, step: str = "predict") -> RunFolder:
        """Beside the store; a remote one has to have it elsewhere."""
        if is_remote(store):
            raise UnetcliError(f"{store}: --run-folder FOLDER names a place on this file system for plan and receipts")
        return cls(Path(f"{os.path.abspath(store)}.run") / step)  # noqa: PTH100 - resolves no links

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
        """Blocks that failed or were set aside, a JSON line each; see :mod:`unetcli.engine.receipts`."""
        return self.path / "failures"

    @property
    def workers(self) -> Path:
        """Heartbeats."""
        return self.path / "workers"

    @property
    def canaries(self) -> Path:
        """One file per host whose results were compared with another's."""
        return self.path / "canaries"

    @property
    def stop(self) -> Path:
        """Exists when no worker shall begin another block; says why."""
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
        """Names of worker jobs on SLURM that a Dask scheduler of the launcher has."""
        return self.path / "dask-jobs.txt"

    @property
    def tls(self) -> Path:
        """The certificate of a Dask scheduler of the launcher."""
        return self.path / "tls"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders that exist while a run does."""
        return (self.receipts, self.logs, self.failures, self.workers, self.canaries)

    @property
    def contents(self) -> list[Path]:
        """What the engine keeps here for any step, beside marker and locks. The plan comes first."""
        files = (self.plan_file, self.paths_file, self.shares_file, self.stop, self.dask_jobs_file)
        return [*files, JobJournal(self.path).file, *self.folders, self.tls]

    def make(self) -> None:
        """Create the folders; existing ones stay."""
        for folder in self.folders:
            folder.mkdir(exist_ok=True)

    def read_plan(self, kind: type[T], version: int) -> T | None:
        """The frozen plan, or None where none was published."""
        try:
            return from_json(kind, self.plan_file.read_text(), version, "plan")
        except FileNotFoundError:
            return None
        except UnetcliError as error:
            raise UnetcliError(f"{self.plan_file}: {error}; --overwrite starts anew") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnetcliError(
                f"{self.plan_file}: no plan that can be read ({error!r}); --overwrite starts anew"
            ) from error

    def publish_plan(self, plan: T, version: int) -> T:
        """Freeze the plan; returns the one that holds, which is an earlier one where another launcher was faster."""
        publish(self.plan_file, to_json(plan, version))
        frozen = self.read_plan(type(plan), version)
        assert frozen is not None
        return frozen

    def replace_plan(self, plan: object, version: int) -> None:
        """Freeze another plan. For who holds the launcher's lock, once nothing vouches for blocks of the old one."""
        with replacing(self.plan_file) as draft:
            draft.write_text(to_json(plan, version))

    def read_paths(self, kind: type[T]) -> T:
        """Where the run's data are now."""
        return kind(**json.loads(self.paths_file.read_text()))

    def write_paths(self, paths: Any) -> None:
        """Note where the data are, for workers; paths may change between two launches, the plan does not."""
        with replacing(self.paths_file) as draft:
            draft.write_text(json.dumps(asdict(paths), indent=1))

    def ledger(self, blocks: int) -> Ledger:
        """What the receipts say by now."""
        return Ledger(self.receipts, blocks).refresh()

    def clear_receipts(self, own: Iterable[Path] = ()) -> None:
        """Drop all receipts, and with them ``own``: nothing they vouch for exists any more."""
        remove_aside(self.receipts)
        self.clear_failures()
        for path in own:
            remove_aside(path)

    def clear_failures(self) -> None:
        """Drop what went wrong before: it is tried again."""
        self.stop.unlink(missing_ok=True)
        for folder in (self.failures, self.workers):
            remove_aside(folder)
        self.make()

    def clear_run(self, own: Iterable[Path] = ()) -> None:
        """Drop plan, receipts, logs and ``own``. The plan goes first: without it nothing else is ever trusted.

        The marker stays: the folder is still unetcli's, wherever this is killed.
        """
        self.plan_file.unlink(missing_ok=True)
        self.shares_file.unlink(missing_ok=True)
        for folder in (self.logs, self.canaries):
            remove_aside(folder)
        self.clear_receipts(own)
        renew(self.path)

    @contextmanager
    def launcher(
        self, step: str, own: Sequence[Path] = (), *, overwrite: bool = False, take_over: bool = False, wait: float = 0
    ) -> Iterator[None]:
        """Claim the folder for a step, then hold the launcher's lock: one launcher per output.

        See :func:`unetcli.engine.runfolder.claim` and :func:`unetcli.core.lock.hold`. Leftovers of killed launchers are
        deleted; ``own`` is what the step keeps in the folder beside :attr:`contents`.
        """
        with ExitStack() as held:
            for left in reversed(range(CLAIMS)):
                try:
                    claim(self.path, step, overwrite=overwrite)
                    held.enter_context(hold(self.lock, take_over=take_over, wait=wait))
                    mark(self.path, step, overwrite=overwrite)
                    break
                except FileNotFoundError:  # who held the lock was an evaluation, which has deleted the folder
                    held.close()
                    if not left:
                        raise
            sweep_beside(self.path, step, [path.name for path in (*self.contents, *own)])
            self.sweep(own)
            self.make()
            yield

    def sweep(self, own: Sequence[Path] = ()) -> None:
        """Delete what killed launchers left unfinished directly in the folder. The caller holds the lock.

        Drafts with these names are of launchers, who write under the lock or cope with the loss (:func:`publish`).
        """
        names = [path.name for path in (*self.contents, *own)]
        for draft in drafts(self.path, MARKER, *LOCK_NAMES, "share-*.lock", *names):
            remove(draft)

    def sweep_workers(self) -> None:
        """Delete what killed workers left unfinished; only if no worker lives."""
        for folder in (self.workers, self.canaries, *self.logs.glob("slurm/*/outcomes")):
            for draft in drafts(folder, "*.json"):
                remove(draft)

    def share_lock(self, number: int) -> Path:
        """Held by the process that works on that share."""
        return self.path / f"share-{number}.lock"

    def require_no_shares(self, *, take_over: bool = False) -> None:
        """Raise where a process with ``--share`` works on this output and is not provably gone."""
        for path in sorted(self.path.glob("share-*.lock")):
            require_free(path, take_over=take_over)

    def share_layout(self) -> ShareLayout | None:
        """Into how many shares the blocks were divided, or None where nobody asked for shares yet."""
        try:
            return ShareLayout(**json.loads((self.shares_file).read_text()))
        except FileNotFoundError:
            return None

    def publish_share_layout(self, layout: ShareLayout) -> ShareLayout:
        """Freeze the number of shares; returns the one that holds."""
        publish(self.shares_file, json.dumps(asdict(layout)))
        return self.share_layout() or layout
