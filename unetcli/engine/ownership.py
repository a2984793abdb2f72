"""The marker of a run folder: published before anything else is made there, and removed last.

A folder without it belongs to the user. Nothing is written to such a folder unless it is empty, and nothing in it is
ever deleted.
"""

from __future__ import annotations

import errno
import glob
import json
import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from unetcli import __version__
from unetcli.core.errors import UnetcliError
from unetcli.core.files import draft_of, drafts, is_draft, publish, remove, replacing, sync

MARKER = "unetcli-run.json"
FORMAT = 2
"""Version of what a run folder holds, and where."""
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
